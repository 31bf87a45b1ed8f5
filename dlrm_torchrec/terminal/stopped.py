"""The signal that stopped the last run of this program, which its exit code then tells."""

by = 0  # 0 means none


def exit_code() -> int:
    """0, or 128 + the number of the signal that stopped the run, as shells number them.

    A stopped run is no success: a scheduler would start what depends on it, and Kubernetes would not start it again.
    Only rank 0 says so, since torchrun ends the other ranks as soon as one rank fails, and rank 0 is the last to write.
    """
    return 128 + by if by else 0

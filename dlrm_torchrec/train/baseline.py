"""The metrics of a finished run that another run is compared with."""

from __future__ import annotations

from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from dlrm_torchrec.train.checkpoints.marker import read_progress


def read_baseline(run: str, data_digest: str) -> dict[str, float]:
    """The last validation metrics of the run in folder ``run``, named ``baseline/...``; none if ``run`` is empty.

    Raises ValueError when there is no such run, or when it was trained on other data than those of ``data_digest``.
    """
    if not run:
        return {}
    progress = read_progress(checkpoint_path(f"{run}/checkpoints"))
    digest = progress.identity.get("data_digest")
    if digest != data_digest or not progress.last:
        found = f"data of digest {digest!r}" if digest != data_digest else "no evaluation yet"
        raise ValueError(
            f"baseline must be a finished run on the data of this run, of digest {data_digest!r}: got {found} in "
            f"{run}; train it on this data"
        )
    return {f"baseline/{name}": value for name, value in progress.last.items()}

"""The files of one window after another, compared with their checksums before the window is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlrm_torchrec.datasets.prepared.verification import Place, Verification


class WindowFiles:
    """A ``Verification`` of the files that ``begin`` was last called with; of none before."""

    def __init__(self, world: Place, say: Callable[[str], None]) -> None:
        self._world, self._say = world, say
        self._current = Verification((), world, say)

    def begin(self, files: Sequence[tuple[str, str | None]]) -> None:
        """Compare these files from now on, and no others."""
        self._current.close()
        self._current = Verification(files, self._world, self._say)

    def fault(self) -> str:
        """A sentence that names a file that is not what it was; empty as long as none is known."""
        return self._current.fault()

    def wait(self, timeout_s: float) -> bool:
        """Whether all files have been compared, or one found damaged, within ``timeout_s`` seconds."""
        return self._current.wait(timeout_s)

    def close(self) -> None:
        """End, whatever has been compared by then."""
        self._current.close()

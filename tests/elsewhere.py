"""A store that only its own iopath handler reaches, as a user's ``s3://`` is."""

from __future__ import annotations

from pathlib import Path

from iopath.common.file_io import PathHandler


class Elsewhere(PathHandler):
    """Files below a local folder under the name ``elsewhere://``, as the handler of a user's store serves them."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def _get_supported_prefixes(self) -> list[str]:
        return ["elsewhere://"]

    def _path(self, path: str) -> Path:
        return self.root / path.removeprefix("elsewhere://")

    def _open(self, path: str, mode: str = "r", **_: object) -> object:
        return self._path(path).open(mode)

    def _exists(self, path: str, **_: object) -> bool:
        return self._path(path).exists()

    def _isfile(self, path: str, **_: object) -> bool:
        return self._path(path).is_file()

    def _isdir(self, path: str, **_: object) -> bool:
        return self._path(path).is_dir()

    def _ls(self, path: str, **_: object) -> list[str]:
        return [entry.name for entry in self._path(path).iterdir()]

    def _mkdirs(self, path: str, **_: object) -> None:
        self._path(path).mkdir(parents=True, exist_ok=True)

    def _rm(self, path: str, **_: object) -> None:
        self._path(path).unlink()

    def _mv(self, source: str, target: str, **_: object) -> bool:
        self._path(source).rename(self._path(target))
        return True

"""Files in object stores, by the clients that Arrow brings along; the environment has addresses and credentials.

``s3://bucket/folder`` needs AWS_ACCESS_KEY_ID and so on, as the tools of AWS read them; AWS_ENDPOINT_URL names another
store that speaks S3. ``gs://``, ``abfs://`` and ``hdfs://`` work alike.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Any

from iopath.common.file_io import PathHandler, g_pathmgr

PREFIXES = ("s3://", "gs://", "abfs://", "hdfs://")


class Store(PathHandler):
    """The files of one kind of store, as iopath sees them. Folders are there as long as they hold files."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix
        self._clients: dict[tuple[int, str], Any] = {}

    def _get_supported_prefixes(self) -> list[str]:
        return [self._prefix]

    def _at(self, path: str) -> tuple[Any, str]:
        """The client for a path, which no other process shares, and the path as the client calls it."""
        from pyarrow.fs import FileSystem  # takes a while, which local files need not wait for

        host, _, inner = path.removeprefix(self._prefix).partition("/")
        key = (os.getpid(), host)
        if key not in self._clients:
            self._clients[key] = FileSystem.from_uri(self._prefix + host)
        client, root = self._clients[key]
        return client, f"{root.rstrip('/')}/{inner.rstrip('/')}".rstrip("/")

    def _kind(self, path: str) -> str:
        client, place = self._at(path)
        return str(client.get_file_info(place).type.name)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> Any:  # noqa: ARG002  # iopath's
        client, place = self._at(path)
        file = client.open_output_stream(place) if "w" in mode else client.open_input_file(place)
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")

    def _exists(self, path: str, **_: Any) -> bool:
        return self._kind(path) != "NotFound"

    def _isfile(self, path: str, **_: Any) -> bool:
        return self._kind(path) == "File"

    def _isdir(self, path: str, **_: Any) -> bool:
        return self._kind(path) == "Directory"

    def _ls(self, path: str, **_: Any) -> list[str]:
        from pyarrow.fs import FileSelector

        client, place = self._at(path)
        return [each.base_name for each in client.get_file_info(FileSelector(place, allow_not_found=True))]

    def _mkdirs(self, path: str, **_: Any) -> None:
        """Nothing: a file makes its folders."""

    def _rm(self, path: str, **_: Any) -> None:
        client, place = self._at(path)
        client.delete_file(place)

    def _mv(self, source: str, target: str, **_: Any) -> bool:
        client, place = self._at(source)
        client.move(place, self._at(target)[1])
        return True


def register_stores() -> None:
    """Let iopath open the files of stores for which nobody has registered a handler yet."""
    for prefix in PREFIXES:
        with suppress(KeyError):
            g_pathmgr.register_handler(Store(prefix), allow_override=False)

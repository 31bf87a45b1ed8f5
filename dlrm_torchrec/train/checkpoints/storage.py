"""Checkpoint storage through iopath, and a metadata reader that cannot run code."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from iopath.common.file_io import g_pathmgr
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta

# Records of bytes are not allowed, because torch.distributed.checkpoint unpickles them. Checkpoints hold only tensors.
_ALLOWED_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
}  # fmt: skip


class IoPathFileSystem(FileSystemBase):
    """Files of ``torch.distributed.checkpoint`` through iopath, so that a user's ``s3://`` handler works here too."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with g_pathmgr.open(os.fspath(path), mode) as stream:
            yield stream

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{os.fspath(path).rstrip('/')}/{suffix}"

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        g_pathmgr.mv(os.fspath(path), os.fspath(new_path))

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        g_pathmgr.mkdirs(os.fspath(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return bool(os.fspath(checkpoint_id))

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return bool(g_pathmgr.exists(os.fspath(path)))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        g_pathmgr.rm(os.fspath(path))


class IoPathWriter(FileSystemWriter):
    """A checkpoint writer that syncs every file to disk before the metadata appears."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.fs = IoPathFileSystem()  # type: ignore[assignment]  # torch types the base class as its local one
        self.path = self.fs.init_path(path)


class IoPathReader(FileSystemReader):
    """A checkpoint reader that unpickles only the plain records of the metadata file."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.fs = IoPathFileSystem()  # type: ignore[assignment]  # torch types the base class as its local one
        self.path = self.fs.init_path(path)

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        with self.fs.create_stream(self.fs.concat_path(self.path, ".metadata"), "rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(f"checkpoint metadata must be a Metadata record: got {type(metadata)}; delete {self.path}")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Reads TorchDCP's metadata, which is a pickle, and allows only TorchDCP's own record types in it."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _ALLOWED_NAMES.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        raise _foreign(f"{module}.{name}")


def _memory_format(kind: Any, name: Any) -> Any:
    """In place of ``getattr``, by which Python up to 3.11.3 pickles the member of an enumeration."""
    if kind is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
        raise _foreign(f"getattr of {kind}")
    return _MEM_FORMAT_ENCODING[name]


def _foreign(found: str) -> ValueError:
    return ValueError(
        f"checkpoint metadata must name only checkpoint records: got {found}; "
        "do not load this checkpoint, because it may run foreign code"
    )

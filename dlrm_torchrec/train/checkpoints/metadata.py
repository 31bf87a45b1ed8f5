"""Reads TorchDCP's metadata, which is a pickle, without running code and without leaving the checkpoint's folder."""

from __future__ import annotations

import pickle
from typing import IO, Any

import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from dlrm_torchrec.train.checkpoints.checksums import is_plain_name

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


def unpickle_metadata(stream: IO[bytes], path: str) -> Metadata:
    """The metadata of the checkpoint in folder ``path``; ValueError when it is not plain records of tensors."""
    metadata = _MetadataUnpickler(stream).load()
    if not isinstance(metadata, Metadata):
        raise ValueError(f"checkpoint metadata must be a Metadata record: got {type(metadata)}; delete {path}")
    for info in (metadata.storage_data or {}).values():
        if not is_plain_name(str(info.relative_path)):
            raise ValueError(
                f"files of the checkpoint {path} must lie in its folder: got {info.relative_path!r}; do not load this "
                "checkpoint, because somebody changed it"
            )
    return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Allows only TorchDCP's own record types."""

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

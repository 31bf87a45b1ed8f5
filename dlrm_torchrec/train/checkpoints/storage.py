"""Checkpoint storage through iopath, in slices: neither saving nor loading holds a second copy of a tensor."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import torch
from iopath.common.file_io import g_pathmgr
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from dlrm_torchrec.train.checkpoints.checksums import FileSum, SummedStream
from dlrm_torchrec.train.checkpoints.metadata import unpickle_metadata
from dlrm_torchrec.train.checkpoints.reports import Report, Say, say_on_stderr

RAW = "raw"  # marks a piece whose numbers lie in the file one after another, without torch.save's archive around them
SLICE_BYTES = 1 << 24


class IoPathFileSystem(FileSystemBase):
    """Files of ``torch.distributed.checkpoint`` through iopath, so that a user's ``s3://`` handler works here too.

    What is written is summed, and is on the disk when its stream closes.
    """

    def __init__(self) -> None:
        self.sums: dict[str, FileSum] = {}  # of the files written, by name

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with g_pathmgr.open(os.fspath(path), mode) as stream:
            if mode != "wb":
                yield stream
                return
            summed = SummedStream(stream)
            yield summed
            summed.sync()
            self.sums[os.path.basename(path)] = summed.sum

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{os.fspath(path).rstrip('/')}/{suffix}"

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        if not g_pathmgr.mv(os.fspath(path), os.fspath(new_path)):
            raise PermissionError(f"cannot write {new_path}; check the permissions of the run folder")
        self.sums[os.path.basename(new_path)] = self.sums.pop(os.path.basename(path))

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
    """A checkpoint writer with one file per rank, which takes the memory of two slices beside the tensors.

    ``sums`` has the checksums of the files that this rank wrote.
    """

    def __init__(self, path: str, say: Say = say_on_stderr) -> None:
        super().__init__(path, sync_files=False)  # the file system syncs
        files = IoPathFileSystem()
        self.fs = files  # type: ignore[assignment]  # torch types the base class as its local one
        self.path = self.fs.init_path(path)
        self.sums = files.sums
        self._say = say

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's pieces one after another; torch's own writer keeps a copy of every one until the end."""
        name = f"{plan.storage_data.prefix}0.distcp"
        report = Report(self._say, f"saving {self.path}, first rank", sum(map(_num_bytes, plan.items)))
        results, offset = [], 0
        with self.fs.create_stream(self.fs.concat_path(self.path, name), "wb") as stream:
            for item in plan.items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, torch.Tensor)  # checkpoints hold nothing else
                for piece in _slices(tensor.detach()):
                    report.add(cast(IO[bytes], stream).write(piece))
                assert tensor.nbytes == _num_bytes(item)
                info = _StorageInfo(name, offset, _num_bytes(item), transform_descriptors=(RAW,))
                results.append(WriteResult(index=item.index, size_in_bytes=info.length, storage_data=info))
                offset += info.length
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def _num_bytes(item: WriteItem) -> int:
    assert item.tensor_data is not None
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize


def _slices(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor on any device, row after row."""
    numbers = tensor.view(-1) if tensor.is_contiguous() else tensor
    per_row = numbers[:1].numel() * numbers.element_size()
    for part in numbers.split(max(1, SLICE_BYTES // max(1, per_row))):
        yield _bytes(part.cpu().contiguous().view(-1).view(torch.uint8))


def _bytes(values: torch.Tensor) -> memoryview:
    """The memory of a tensor of bytes."""
    memory: Any = values.numpy()
    return memoryview(memory)


class IoPathReader(FileSystemReader):
    """A checkpoint reader that unpickles only the plain records of the metadata file, and copies slice by slice."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.fs = IoPathFileSystem()  # type: ignore[assignment]  # torch types the base class as its local one
        self.path = self.fs.init_path(path)
        self._chunks: dict[MetadataIndex, tuple[torch.Size, torch.dtype]] = {}

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        with self.fs.create_stream(self.fs.concat_path(self.path, ".metadata"), "rb") as stream:
            metadata = unpickle_metadata(cast(IO[bytes], stream), str(self.path))
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: FBT001  # torch's signature
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)  # the unpickler allows nothing else
            for chunk in entry.chunks:
                self._chunks[MetadataIndex(name, chunk.offsets)] = chunk.sizes, entry.properties.dtype

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read into the tensors of ``planner``; a checkpoint of the format before has archives, which torch reads."""
        places: list[tuple[_StorageInfo, ReadItem]] = [
            (self.storage_data[each.storage_index], each) for each in plan.items
        ]
        if not all(info.transform_descriptors == (RAW,) for info, _ in places):
            return super().read_data(plan, planner)
        files: dict[str, list[tuple[_StorageInfo, ReadItem]]] = {}
        for info, item in sorted(places, key=lambda place: place[0].offset):
            files.setdefault(info.relative_path, []).append((info, item))
        for name, found in files.items():
            with self.fs.create_stream(self.fs.concat_path(self.path, name), "rb") as stream:
                for info, item in found:
                    target = planner.resolve_tensor(item).detach()
                    self._copy(cast(IO[bytes], stream), info, item, target)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _copy(self, stream: IO[bytes], info: _StorageInfo, item: ReadItem, target: torch.Tensor) -> None:
        """Copy the part of a piece that ``item`` names into ``target``, whole rows of the piece at a time."""
        sizes, dtype = self._chunks[item.storage_index]
        row_bytes = math.prod(sizes[1:]) * dtype.itemsize
        first, rows = (item.storage_offsets[0], item.lengths[0]) if sizes else (0, 1)
        columns = [slice(start, start + count) for start, count in zip(item.storage_offsets, item.lengths, strict=True)]
        target = target if sizes else target.view(1)
        if info.length != math.prod(sizes) * dtype.itemsize or list(target.shape) != list(item.lengths or (1,)):
            raise ValueError(
                f"{item.storage_index.fqn} of {self.path} must fill {info.length} bytes: got shape {sizes}"
            )
        stream.seek(info.offset + first * row_bytes)
        step = max(1, SLICE_BYTES // max(1, row_bytes))
        buffer = torch.empty(min(step, rows) * row_bytes, dtype=torch.uint8)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            part = buffer[: count * row_bytes]
            _fill(_bytes(part), stream)
            whole = part.view(dtype).view(count, *sizes[1:])
            target[start : start + count].copy_(whole[(slice(None), *columns[1:])])


def _fill(view: memoryview, stream: IO[bytes]) -> None:
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]  # of every stream of bytes
        if not count:
            raise OSError(f"the checkpoint ends {len(view)} bytes early")
        view = view[count:]

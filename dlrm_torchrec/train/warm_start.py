"""A new run begins with what another one learned, also where a value has another row now."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from iopath.common.file_io import g_pathmgr
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torchrec.distributed.types import ShardedTensor
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.table_names import table_of
from dlrm_torchrec.train.checkpoints.folder import check, checkpoint_path
from dlrm_torchrec.train.checkpoints.marker import read_progress
from dlrm_torchrec.train.checkpoints.state import materialise_state, run_tensors
from dlrm_torchrec.train.checkpoints.storage import IoPathReader
from dlrm_torchrec.train.log import RunLog


class RowMap(Protocol):
    """Where the rows of a table come from; see ``dlrm_torchrec.datasets.windows.row_maps``."""

    @property
    def old_rows(self) -> int: ...

    @property
    def rows(self) -> Any:
        """For each row the old one, or -1: an array (rows,) of int64."""


class RowMaps(Protocol):
    """Gives the maps from the rows of earlier data to those of the run, by table; see the same module."""

    def __call__(self, old_spec: dict[str, Any], old_data: str, last: str) -> Mapping[str, RowMap]: ...


def found_checkpoint(start_from: str) -> tuple[str, str]:
    """The newest checkpoint of the run in the folder ``start_from``, or the one that it is, and the run's data.

    Raises ValueError when there is none, when it is damaged, or when its run does not say what it was trained on.
    """
    path = start_from.rstrip("/")
    if not os.path.basename(path).startswith("step-"):
        path = checkpoint_path(f"{path}/checkpoints")
    check(path)
    config = f"{os.path.dirname(os.path.dirname(path))}/config.json"
    try:
        with g_pathmgr.open(config, "rb") as stream:
            return path, json.loads(stream.read())["data"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{config} must say which data the run was trained on: got {error!r}; name the folder of a whole run"
        ) from error


@torch.no_grad()
def warm_start(
    model: nn.Module,
    optimizer: CombinedOptimizer,
    start_from: str,
    row_maps: RowMaps,
    *,
    log: RunLog,
) -> None:
    """Set the model and the moments of its optimizer to those of another run; nothing if ``start_from`` is empty.

    Rows whose places have changed follow their values, with their moments; a row without an old one stays as it is,
    and so do moments of another kind of optimizer, which ``log`` says. All ranks call this. Raises ValueError,
    before any tensor is touched, when the checkpoint has another model.

    Args:
        model: the sharded model, whose tables have their initial weights
        optimizer: that of the whole model
        start_from: the folder of the run, or of one of its checkpoints
        row_maps: gives a map for each table whose rows have changed their places
        log: that of the run
    """
    if not start_from:
        return
    path, data = found_checkpoint(start_from)
    progress = read_progress(path)
    window = progress.windows[-1]["name"] if progress.windows else ""
    maps = row_maps(progress.identity["spec"], data, window)
    materialise_state(optimizer)
    tensors = run_tensors(model, optimizer)
    saved = {
        name: tuple(entry.size)
        for name, entry in IoPathReader(path).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    wanted = {f"{part}.{name}": value for part, values in tensors.items() for name, value in values.items()}
    _check(path, wanted, saved, maps)
    moments = [name for name in wanted if name.startswith("optimizer.")]
    fitting = {name for name in moments if saved.get(name) == _old_size(name, wanted[name], maps)}
    if len(fitting) < len(moments):
        log.say(
            f"{path} has moments of another optimizer, so those of {len(moments) - len(fitting)} parameters begin at 0"
        )
    taken = {name: value for name, value in wanted.items() if name in fitting or not name.startswith("optimizer.")}
    moved = {name for name in taken if _table(name) in maps}
    same = {name: value for name, value in taken.items() if name not in moved}
    dcp.load(same, storage_reader=IoPathReader(path), process_group=log.world.control)
    for name in sorted(moved):
        _take_rows(path, name, taken[name], maps[_table(name)])
    if fitting:
        optimizer.set_optimizer_step(progress.step)
    fresh = {name: int((each.rows < 0).sum()) for name, each in maps.items()}
    told = "".join(f"; {name}: {count:,} of {len(maps[name].rows):,} rows are new" for name, count in fresh.items())
    log.say(f"began with the model of {path}{told}")


def _check(
    path: str, wanted: Mapping[str, Any], saved: Mapping[str, tuple[int, ...]], maps: Mapping[str, RowMap]
) -> None:
    """Raises ValueError unless the checkpoint has just this model, but for rows that have moved."""
    config = f"{os.path.dirname(os.path.dirname(path))}/config.json"
    cure = (
        "begin with a run of the same model, or give this one its options, --top among them if the number of rows "
        f"chose it, from {config}"
    )
    for name, value in wanted.items():
        table = _table(name)
        if table in maps and _size(value)[0] != len(maps[table].rows):
            raise ValueError(
                f"table {table} must have a row for each value, to begin with rows of other places: got "
                f"{_size(value)[0]} rows for {len(maps[table].rows)} values; use plain tables, or the old vocabulary"
            )
        if name.startswith("model.") and saved.get(name) != _old_size(name, value, maps):
            found = f"one of shape {saved[name]}" if name in saved else "none of that name"
            raise ValueError(
                f"checkpoint {path} must hold {name} of shape {_old_size(name, value, maps)}: got {found}; {cure}"
            )
    left = sorted(name for name in saved if name.startswith("model.") and name not in wanted)
    if left:
        raise ValueError(
            f"checkpoint {path} must hold no more than this model has: got {left[0]}, one of {len(left)} that it "
            f"lacks; {cure}"
        )


def _take_rows(path: str, name: str, target: Any, row_map: RowMap) -> None:
    """Copy the old rows of this rank's pieces of a tensor; the old tensor is in memory as a whole meanwhile."""
    entry = IoPathReader(path).read_metadata().state_dict_metadata[name]
    assert isinstance(entry, TensorStorageMetadata)
    old = torch.empty(tuple(entry.size), dtype=entry.properties.dtype)
    dcp.load({name: old}, storage_reader=IoPathReader(path), no_dist=True)
    rows = torch.from_numpy(row_map.rows)
    for piece, offsets in _pieces(target):
        own = rows[offsets[0] : offsets[0] + len(piece)]
        values = old[own[own >= 0]]
        if piece.dim() > 1:
            values = values[:, offsets[1] : offsets[1] + piece.size(1)]
        piece[(own >= 0).to(piece.device)] = values.to(piece.device, piece.dtype)


def _pieces(value: Any) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """The pieces of a tensor that this rank holds, each with its place."""
    if not isinstance(value, ShardedTensor):
        yield value, [0] * value.dim()
        return
    for shard in value.local_shards():
        yield shard.tensor, shard.metadata.shard_offsets


def _table(name: str) -> str:
    """The table of a tensor, or of its moments; empty for any other tensor."""
    return table_of(name) or ""


def _size(value: Any) -> tuple[int, ...]:
    return tuple(value.metadata().size if isinstance(value, ShardedTensor) else value.size())


def _old_size(name: str, value: Any, maps: Mapping[str, RowMap]) -> tuple[int, ...]:
    """The size of a tensor before its rows moved."""
    size, table = _size(value), _table(name)
    return (maps[table].old_rows, *size[1:]) if table in maps else size

"""Turns one-hot columns into bags as ``synthesis`` defines them: whole columns, by a function or from tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from iopath.common.file_io import g_pathmgr
from numba import boolean, int32, int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.datasets.block import Block
from dlrm_torchrec.datasets.numpy_columns import IdLists
from dlrm_torchrec.datasets.prepared.files import NewFile, join
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.synthesis import PARETO_SHAPE, MultiHot
from dlrm_torchrec.datasets.random.counter import below, derived_key, uniform
from dlrm_torchrec.schema import SparseFeature

Ids = NDArray[np.int32]
Fill = Callable[[Ids, Ids], None]  # from ids (n,), fills bags (n, size)

_BLOCK_IDS = 1 << 20  # of a table that are drawn at a time
_INT32_END = 2.0**31


class Expander:
    """Turns rows as the files of a manifest hold them into rows as its spec describes them."""

    def __init__(self, manifest: Manifest, folder: str) -> None:
        self._sizes = {} if manifest.multi_hot is None else manifest.multi_hot.sizes
        self._names = [feature.name for feature in manifest.spec.sparse]
        self._fill: dict[str, Fill] = {}
        self.features: dict[str, SparseFeature] = {}  # that become bags; as the files hold them
        if manifest.multi_hot is not None:
            for index, feature in enumerate(manifest.stored_spec.sparse):
                if feature.name in self._sizes:
                    self.features[feature.name] = feature
                    self._fill[feature.name] = _fill(manifest.multi_hot, index, feature, folder)

    def block(self, block: Block) -> Block:
        """The rows of a block with all features as in the spec; ids are int32."""
        if not self._fill:
            return block
        lengths = np.empty((len(self._names), len(block)), np.int64)
        lengths[:] = block.lengths
        for name, row in zip(self._names, lengths, strict=True):
            if name in self._fill:
                row[:] = self._sizes[name]
        offsets = np.zeros((len(self._names), len(block) + 1), np.int64)
        np.cumsum(lengths, axis=1, out=offsets[:, 1:])
        offsets[1:] += np.cumsum(offsets[:-1, -1])[:, None]
        ids = np.empty(offsets[-1, -1], np.int32)
        weights = None if block.id_weights is None else np.ones(len(ids), np.float32)
        for index, (name, starts) in enumerate(zip(self._names, offsets, strict=True)):
            source = None if block.offsets is None else slice(*block.offsets[index, [0, -1]])
            stored = block.ids[index if source is None else source]
            target = ids[starts[0] : starts[-1]]
            if name in self._fill:
                self._fill[name](stored.astype(np.int32, copy=False), target.reshape(-1, self._sizes[name]))
            else:
                target[:] = stored
                if weights is not None and block.id_weights is not None:
                    weights[starts[0] : starts[-1]] = block.id_weights[source]
        return replace(block, ids=ids, offsets=offsets, id_weights=weights)

    def bags(self, name: str, bags: IdLists) -> IdLists:
        """One feature of some rows as in the spec."""
        if name not in self._fill:
            return bags
        size = self._sizes[name]
        ids = np.empty((len(bags.values), size), np.int32)
        self._fill[name](bags.values.astype(np.int32, copy=False), ids)
        return IdLists(ids.reshape(-1), np.arange(len(ids) + 1) * size)


def table_name(feature: str) -> str:
    """The name of the file in a prepared folder that holds the table of a feature for ``mt19937``."""
    return f"multi-hot-{feature}.npy"


def write_tables(multi_hot: MultiHot, features: Sequence[SparseFeature], folder: str) -> None:
    """Writes the files that ``mt19937`` reads: (rows, size - 1) int32 for each feature with a size, in their order."""
    random = np.random.RandomState(multi_hot.seed)
    for feature in features:
        width = multi_hot.sizes.get(feature.name, 1) - 1
        if width == 0:
            continue
        with NewFile(folder, table_name(feature.name)) as file:
            header = {"descr": "<i4", "fortran_order": False, "shape": (feature.rows, width)}
            np.lib.format.write_array_header_1_0(file, header)
            block = max(1, _BLOCK_IDS // width)
            for first, last in pairwise([*range(0, feature.rows, block), feature.rows]):
                # Drawing in blocks gives the same numbers as a single call.
                file.write(_drawn(random, multi_hot, feature.rows, (last - first, width)).astype("<i4"))


def _drawn(random: np.random.RandomState, multi_hot: MultiHot, rows: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    if multi_hot.distribution == "uniform":
        return random.randint(0, rows, shape, dtype=np.int64)
    drawn = random.pareto(PARETO_SHAPE, shape)
    result: NDArray[np.int64] = np.where(drawn < _INT32_END, drawn, -_INT32_END).astype(np.int64) % rows
    return result


def _fill(multi_hot: MultiHot, index: int, feature: SparseFeature, folder: str) -> Fill:
    size, rows = multi_hot.sizes[feature.name], feature.rows
    if multi_hot.generator == "mt19937":
        path = join(folder, table_name(feature.name))
        table = np.load(g_pathmgr.get_local_path(path), mmap_mode="r")
        if table.shape != (rows, size - 1):
            raise ValueError(f"table {path} must be {rows} x {size - 1}: got {table.shape}; make the folder again")

        def look_up(ids: Ids, bags: Ids) -> None:
            bags[:, 0], bags[:, 1:] = ids, table.take(ids, axis=0)

        return look_up
    key, pareto = derived_key(multi_hot.seed, index), multi_hot.distribution == "pareto"
    return lambda ids, bags: _draw(ids, key, rows, bags, pareto=pareto)


@compiled(uint64, uint64, int64)
def _pareto(key: np.uint64, number: np.uint64, rows: int) -> int:
    above = 1.0 - uniform(key, number)
    drawn = 1.0 / (above * above) ** 2 - 1.0  # above ** (-1 / PARETO_SHAPE) - 1
    if drawn < rows:
        return int(drawn)
    return int(drawn if drawn < _INT32_END else -_INT32_END) % rows


@compiled(read_only(int32), uint64, int64, int32[:, ::1], boolean)
def _draw(ids: Ids, key: np.uint64, rows: int, bags: Ids, *, pareto: bool) -> None:
    """Fill ``bags``: the added ids of id i are the random numbers i * size + 1 .. i * size + size - 1 of ``key``."""
    num_bags, size = bags.shape
    for bag in range(num_bags):
        bags[bag, 0] = ids[bag]
        first = np.uint64(ids[bag]) * np.uint64(size)
        for position in range(1, size):
            number = first + np.uint64(position)
            bags[bag, position] = _pareto(key, number, rows) if pareto else below(key, number, rows)

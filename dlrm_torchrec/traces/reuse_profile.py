"""Makes ids whose number of lookups follows published histograms.

Source: facebookresearch/dlrm_datasets. Its ``locality_stats`` files describe one batch of production-like lookups: the
share of the ids ("col sizes") and the share of the lookups ("index distribution") that belong to ids looked up once,
twice, 3 or 4 times, 5 to 8 times, and so on by powers of two.

These shares determine how many ids share how many lookups. They do not determine the order of the lookups, the
differences between tables, the number of ids in a bag, or how the counts vary within a bin. Here the order is random,
every table follows the histograms of all tables together, and the ids of a bin are looked up equally often.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from iopath.common.file_io import g_pathmgr
from numba import int32, int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.datasets.random.counter import below

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ROUNDED = 0.0005  # the shares have three decimals
_SHARE = re.compile(r"^\((\d+)(?:, \d+\]|\+): (\d\.\d+)$", re.MULTILINE)  # (lower bound, upper bound]: share


@dataclass(frozen=True)
class ReuseProfile:
    """Bin b holds the ids looked up 2^(b-1) + 1 to 2^b times; the last bin has no upper bound."""

    mean: float  # lookups per id
    ids: tuple[float, ...]  # share of all ids, by bin, three decimals
    lookups: tuple[float, ...]  # share of all lookups, likewise

    def __post_init__(self) -> None:
        sums = [sum(self.ids), sum(self.lookups)]
        if len(self.ids) != len(self.lookups) or self.mean < 1 or max(abs(total - 1) for total in sums) > 0.02:
            raise ValueError(
                "a reuse profile must have as many shares of ids as of lookups, which sum to 1, and a mean of at least "
                f"1: got {self.ids}, {self.lookups} and {self.mean}; fit it again"
            )

    def trace(self, key: np.uint64, *, lookups: int, rows: int) -> ReuseTrace:
        """A trace of so many lookups of a table of ``rows`` rows. Raises ValueError if it needs more ids than rows."""
        trace = ReuseTrace(self, lookups, key)
        if trace.distinct > rows:
            raise ValueError(
                f"a table must have at least the {trace.distinct:,} ids that {lookups:,} lookups of this profile have: "
                f"got {rows:,} rows; ask for fewer rows of data, or fit the profile to larger tables"
            )
        return trace

    def counts(self, lookups: int) -> tuple[Ints, Ints]:
        """The number of ids and of lookups in each bin of a trace of so many lookups: (B,) and (B,)."""
        low, high = self._bounds()
        share, ids_share = np.array(self.lookups), np.array(self.ids)
        # Lookups per id: the ratio of the shares; if rounding makes it inexact, a possible value near the middle.
        middle = np.sqrt(low * np.minimum(high, 2 * low))
        per_id = np.where(ids_share > 20 * _ROUNDED, share * self.mean / np.maximum(ids_share, _ROUNDED), middle)
        least = (share - _ROUNDED) * self.mean / (ids_share + _ROUNDED)
        most = (share + _ROUNDED) * self.mean / np.maximum(ids_share - _ROUNDED, 1e-9)
        per_id = per_id.clip(least, most).clip(low, high)
        # Both shares, in the middle of the range that their rounding and ``per_id`` allow.
        least = np.maximum(share - _ROUNDED, (ids_share - _ROUNDED) * per_id / self.mean)
        most = np.minimum(share + _ROUNDED, (ids_share + _ROUNDED) * per_id / self.mean)
        share = np.where(share > 0, (least + most) / 2, 0.0)
        wanted = share / share.sum() * lookups
        if (wanted[share > 0] < low[share > 0]).any():
            needed = lookups * (low[share > 0] / wanted[share > 0]).max()
            raise ValueError(
                f"a trace must have at least {needed:,.0f} lookups per feature to look up its ids as often "
                f"as in the profile: got {lookups:,}; ask for more rows or a larger pooling factor"
            )
        in_bin = wanted.astype(np.int64)
        in_bin[in_bin.argmax()] += lookups - in_bin.sum()
        return np.round(in_bin / per_id).clip(np.ceil(in_bin / high), in_bin // low).astype(np.int64), in_bin

    def _bounds(self) -> tuple[Floats, Floats]:
        """The least and the greatest number of lookups of an id of each bin."""
        high = np.exp2(np.arange(len(self.ids), dtype=np.float64))
        low = np.append(1.0, high[:-1] + 1)
        high[-1] = np.inf
        return low, high


class ReuseTrace:
    """Ids 0, 1, 2, ..., the most frequent first numbers; the order of the ``lookups`` is a random permutation."""

    def __init__(self, profile: ReuseProfile, lookups: int, key: np.uint64) -> None:
        ids, in_bin = (counts[::-1] for counts in profile.counts(lookups))
        self._ids, self._lookups = (np.concatenate([[0], np.cumsum(counts)]) for counts in (ids, in_bin))
        self._key, self._taken = key, 0

    @property
    def distinct(self) -> int:
        return int(self._ids[-1])

    def take(self, lookups: int) -> NDArray[np.int32]:
        """The next ids: (lookups,). All calls together must not take more ids than the trace has."""
        ids = np.empty(lookups, np.int32)
        _fill(ids, self._ids, self._lookups, taken=self._taken, key=self._key)
        self._taken += lookups
        return ids


def read_locality_stats(path: str) -> dict[str, tuple[ReuseProfile, float]]:
    """The sections of a ``locality_stats`` file by name, each with its mean number of ids per bag."""
    with g_pathmgr.open(path, "r") as file:
        sections = [section.strip() for section in file.read().split("\n\n") if section.strip()]
    try:
        return {section.partition("\n")[0]: _section(section) for section in sections}
    except ValueError as error:
        raise ValueError(
            f"{path} must be a locality_stats file of facebookresearch/dlrm_datasets: got {error}; name another"
        ) from error


def _section(text: str) -> tuple[ReuseProfile, float]:
    tables, batch = _number(r"_t(\d+)_", text), _number(r"_bs(\d+)", text)
    lookups, distinct = _number(r"# of indices: (\d+)", text), _number(r"# of unique cols: (\d+)", text)
    bins = [(int(low), float(share)) for low, share in _SHARE.findall(text)]
    half = len(bins) // 2
    if [low for low, _ in bins] != 2 * [0, *(1 << power for power in range(half - 1))]:
        raise ValueError("bins that are not two times (0, 1], (1, 2], (2, 4], ...")
    shares = [share for _, share in bins]
    profile = ReuseProfile(mean=lookups / distinct, ids=tuple(shares[:half]), lookups=tuple(shares[half:]))
    return profile, lookups / (tables * batch)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"a section without {pattern!r}")
    return int(match[1])


@compiled(int64, int64, int64, uint64)
def _permuted(position: int, size: int, half_bits: int, key: np.uint64) -> int:
    """The place to which a random permutation of [0, ``size``) moves ``position``, in constant memory.

    A Feistel network of four rounds permutes the numbers of 2 x ``half_bits`` bits. It is repeated until its result is
    below ``size``.
    """
    mask = (1 << half_bits) - 1
    while True:
        left, right = position >> half_bits, position & mask
        for round_ in range(4):
            left, right = right, left ^ below(key, np.uint64(round_ << 32 | right), mask + 1)
        position = left << half_bits | right
        if position < size:
            return position


@compiled(int32[::1], read_only(int64), read_only(int64), int64, uint64)
def _fill(ids: NDArray[np.int32], first_ids: Ints, first_lookups: Ints, *, taken: int, key: np.uint64) -> None:
    """Fill ``ids``. Before the permutation, bin b has the lookups from number ``first_lookups[b]`` of the trace."""
    size, half_bits = first_lookups[-1], 1
    while size > 1 << 2 * half_bits:
        half_bits += 1
    for index in range(len(ids)):
        place = _permuted(taken + index, size, half_bits, key)
        bin_ = np.searchsorted(first_lookups, place, side="right") - 1
        place -= int(first_lookups[bin_])
        num_ids = first_ids[bin_ + 1] - first_ids[bin_]
        per_id, more = divmod(first_lookups[bin_ + 1] - first_lookups[bin_], num_ids)
        # The first ``more`` ids of the bin are looked up once more than the others.
        if place < more * (per_id + 1):
            ids[index] = first_ids[bin_] + place // (per_id + 1)
        else:
            ids[index] = first_ids[bin_] + more + (place - more * (per_id + 1)) // per_id

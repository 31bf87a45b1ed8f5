"""How one-hot ids become bags while they are read: the entry ``multi_hot`` of ``dataset.json``.

The definition comes from MLPerf training for DLRM-DCNv2 (``Multihot`` of its reference, arXiv 1906.00091's code). A
feature of n rows and size s has a fixed random table of n x (s - 1) ids. The bag of id i is i, followed by row i of
that table. The ids of the table are drawn from all n ids with replacement, so a bag may hold an id twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from dlrm_torchrec.schema import DatasetSpec

Distribution = Literal["uniform", "pareto"]
Generator = Literal["counter", "mt19937"]
PARETO_SHAPE = 0.25
MAX_ROWS = 1 << 31  # the ids are int32, as in the reference


@dataclass(frozen=True, kw_only=True)
class MultiHot:
    """The features that become bags, and where the added ids come from.

    - ``uniform``: every id is equally likely;
    - ``pareto``: floor(x) mod n, where P(x > t) = (1 + t)^-0.25. An x of 2^31 or more, 0.46 % of them, becomes -2^31
      before the mod, because it overflows the int32 of the reference.
    - ``counter``: a table is a function of (seed, feature, id), which is computed when it is read and never stored;
    - ``mt19937``: exactly the numbers of the reference: ``numpy.random.seed(seed)``, then feature after feature. They
      can only be drawn in that order, so the tables are files, with 4 bytes per added id of every row of a table.
    """

    sizes: Mapping[str, int]  # ids per row, at least 2, by feature; other features stay one-hot
    distribution: Distribution = "uniform"
    generator: Generator = "counter"
    seed: int = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.sizes, Mapping) and all(type(size) is int for size in self.sizes.values())
        if not whole or type(self.seed) is not int:
            raise ValueError(
                f"multi-hot sizes and seed must be whole numbers: got {self.sizes} and {self.seed}; correct them"
            )
        small = {name: size for name, size in self.sizes.items() if size < 2}
        if small or not self.sizes:
            raise ValueError(
                f"multi-hot sizes must be at least 2: got {small or 'none'}; leave out the features that stay one-hot"
            )
        for name, value, known in (
            ("distribution", self.distribution, get_args(Distribution)),
            ("generator", self.generator, get_args(Generator)),
        ):
            if value not in known:
                raise ValueError(f"multi-hot {name} must be one of {known}: got {value!r}; choose one of them")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"multi-hot seed must be in [0, 2^32): got {self.seed}; MLPerf's is 0")

    def applied(self, spec: DatasetSpec) -> DatasetSpec:
        """``spec`` with these features multi-hot. Raises ValueError unless they are one-hot in it, with int32 ids."""
        self._check(spec, multi_hot=False)
        sparse = (
            replace(f, multi_hot=True, pooling_factor=float(self.sizes[f.name])) if f.name in self.sizes else f
            for f in spec.sparse
        )
        return replace(spec, sparse=tuple(sparse))

    def stored(self, spec: DatasetSpec) -> DatasetSpec:
        """The inverse of ``applied``: the spec of the columns in the files."""
        self._check(spec, multi_hot=True)
        sparse = (replace(f, multi_hot=False, pooling_factor=1.0) if f.name in self.sizes else f for f in spec.sparse)
        return replace(spec, sparse=tuple(sparse))

    def _check(self, spec: DatasetSpec, *, multi_hot: bool) -> None:
        features = {f.name: f for f in spec.sparse if f.multi_hot == multi_hot}
        if not self.sizes.keys() <= features.keys():
            raise ValueError(
                f"features with a multi-hot size must be {'multi' if multi_hot else 'one'}-hot in spec {spec.name!r}: "
                f"got {sorted(self.sizes.keys() - features.keys())}; correct the sizes"
            )
        large = {f.name: f.rows for f in spec.sparse if f.rows > MAX_ROWS}
        if large:
            raise ValueError(
                f"all features of multi-hot data must have at most {MAX_ROWS} rows: got {large}; hash them into fewer"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, the inverse of ``MultiHot(**data)``."""
        return asdict(self)

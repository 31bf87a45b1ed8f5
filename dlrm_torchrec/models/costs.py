"""What one sample costs in each kind of module: multiply-adds, and bytes that are moved for it, in the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch

from torch import nn
from torchrec.models.dlrm import InteractionArch
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS, BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from dlrm_torchrec.embeddings.compositional.operations import Passed
from dlrm_torchrec.embeddings.compositional.table_configs import StackedTable
from dlrm_torchrec.embeddings.mixed_dimensions import Projections
from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.models.factorization_machine import DenseRows, Pairs
from dlrm_torchrec.models.hstu.costs import (
    Work,
    layer_moved_floats,
    layer_multiply_adds,
    moved_floats,
    multiply_adds,
    pooled_moved_floats,
    pooled_multiply_adds,
)
from dlrm_torchrec.models.hstu.next_item_model import NextItemScores
from dlrm_torchrec.models.hstu.pooled import PooledRanker
from dlrm_torchrec.models.hstu.ranker import HSTURanker
from dlrm_torchrec.models.matrix_factorization import MatrixFactorization
from dlrm_torchrec.models.neumf import NeuMF

FLOAT_BYTES = 4  # of an activation


@dataclass(frozen=True)
class Cost:
    """Of one sample; ``uncounted`` names the classes of modules that have parameters and no formula here."""

    multiply_adds: float = 0
    moved_bytes: float = 0
    uncounted: frozenset[str] = frozenset()

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.moved_bytes + other.moved_bytes,
            self.uncounted | other.uncounted,
        )


@dataclass(frozen=True)
class Sample:
    """The shapes of one sample in a model."""

    dim: int  # of the vectors that the model gets from tables
    vectors: int  # such vectors
    dense: int  # dense columns
    ids: Mapping[str, float]  # mean ids by feature


@singledispatch
def cost(module: nn.Module, sample: Sample) -> Cost:
    """The cost of ``module`` for one sample: by default, that of its children.

    A multiply-add is a product of two numbers of which neither is a constant, with or without a sum; adding a row of a
    table to its bag counts as one for each element. Bytes moved are the rows of tables that are read, and the inputs
    and outputs of products. The weights of dense layers are not among them, as they are read once per batch.
    """
    children = sum((cost(child, sample) for child in module.children()), Cost())
    own = any(True for _ in module.parameters(recurse=False))
    return children + Cost(uncounted=frozenset({type(module).__name__} if own else ()))


def _products(multiply_adds: float, elements: float) -> Cost:
    """That of products with so many elements of inputs and outputs."""
    return Cost(multiply_adds, FLOAT_BYTES * elements)


@cost.register
def _(module: nn.Linear, sample: Sample) -> Cost:  # noqa: ARG001 (a layer knows its widths)
    return _products(module.in_features * module.out_features, module.in_features + module.out_features)


@cost.register
def _(module: InteractionArch, sample: Sample) -> Cost:
    vectors = module.F + 1  # all pairs are multiplied, although only those of two different vectors are used
    return _products(vectors**2 * sample.dim, vectors * sample.dim + vectors**2)


@cost.register
def _(module: LowRankCrossNet, sample: Sample) -> Cost:  # noqa: ARG001 (a layer knows its widths)
    layers = Cost()
    for narrow, widen in zip(module.V_kernels, module.W_kernels, strict=True):
        rank, width = narrow.shape
        layers += _products(narrow.numel() + widen.numel() + width, 2 * (width + rank) + 3 * width)
    return layers


@cost.register
def _(module: DenseRows, sample: Sample) -> Cost:  # noqa: ARG001 (a layer knows its widths)
    return _products(module.weight.numel(), len(module.weight) + module.weight.numel())


@cost.register
def _(module: Pairs, sample: Sample) -> Cost:  # noqa: ARG001 (it has no widths of its own)
    factors, vectors = sample.dim - 1, sample.vectors + sample.dense
    return _products((vectors + 1) * factors, 2 * (vectors + 1) * factors)


@cost.register
def _(module: MatrixFactorization, sample: Sample) -> Cost:  # noqa: ARG001 (it has no widths of its own)
    return _products(sample.dim - 1, 3 * (sample.dim - 1))


@cost.register
def _(module: NeuMF, sample: Sample) -> Cost:
    return _products(module.gmf_dim, 3 * module.gmf_dim) + cost(module.mlp, sample) + cost(module.output, sample)


@cost.register
def _(module: HSTURanker, sample: Sample) -> Cost:  # noqa: ARG001 (a ranker knows the sizes of samples)
    config, work = module.config, module.work(1)
    return _products(sum(multiply_adds(config, work).values()), moved_floats(config, work))


@cost.register
def _(module: PooledRanker, sample: Sample) -> Cost:  # noqa: ARG001 (likewise)
    config, work = module.config, module.work(1)
    return _products(sum(pooled_multiply_adds(config, work).values()), pooled_moved_floats(config, work))


@cost.register
def _(module: NextItemScores, sample: Sample) -> Cost:
    """Without the products with items, of which a batch has some for all of its samples."""
    config = module.next_item.config
    events = sample.ids[module.item]
    work = Work.of_equal_samples(1, events, candidates=0, features=1, context=0, table_dim=config.dim)
    return _products(sum(layer_multiply_adds(config, work).values()), layer_moved_floats(config, work))


@cost.register
def _(module: Projections, sample: Sample) -> Cost:
    return sum((cost(module[table], sample) for table in module.table_of.values() if table in module), Cost())


@cost.register(EmbeddingBagCollection)
@cost.register(EmbeddingCollection)
def _(module: nn.Module, sample: Sample) -> Cost:
    return sum((_lookups(config, sample.ids) for config in physical_configs(module)), Cost())


def _lookups(config: BaseEmbeddingConfig, ids: Mapping[str, float]) -> Cost:
    """The rows that are read from a stored table; with paths, also the networks that each id passes through."""
    element_bytes = DATA_TYPE_NUM_BITS[config.data_type] / 8
    if not isinstance(config, StackedTable):
        elements = sum(ids[name] for name in config.feature_names) * config.embedding_dim
        return Cost(elements, element_bytes * elements)
    looked_up = sum(ids[name] for name in config.logical.feature_names)
    k, network = len(config.stack.sizes), 0
    rows = k  # of which an id reads one
    if isinstance(config.operation, Passed):
        rows, network = 1, config.operation.products(config.embedding_dim, k)
    elements = looked_up * rows * config.embedding_dim
    return Cost(elements + looked_up * network, element_bytes * elements)

"""The recipes that read histories, and batches of them."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.next_items import next_item_spec
from dlrm_torchrec.datasets.sequences.open import open_next_items, open_sequences
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.train.config import OptimizerConfig

COMPOSED = TablesConfig(kind="quotient_remainder", collisions=4, threshold=100)
SMALL: dict[str, Any] = {"layers": 1, "most_tokens": 24, "positions": 16, "time_buckets": 32}
USERS, SAMPLES = 40, 12


class Read(NamedTuple):
    """A recipe with some of its options."""

    recipe: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.recipe, *(str(getattr(value, "kind", value)) for value in self.options.values())])

    def config(self, recipe: Any) -> Any:
        """The demo's config with these options, and an optimizer of tables that FBGEMM also has on a CPU."""
        own = {"rows": USERS, "batch_size": SAMPLES, "sparse": OptimizerConfig(kind="sgd", lr=0.1)}
        return recipe.Config(**own, **self.options)


def read() -> list[Read]:
    """Every recipe that reads histories; train_hstu with both layers, in chunks, pooled, and with composed tables."""
    sizes = HSTUConfig(**SMALL)
    mlperf = HSTUConfig(variant="mlperf", chunk_tokens=40, **SMALL)
    return [
        Read("train_hstu", {"hstu": sizes, "tables": COMPOSED}),
        Read("train_hstu", {"hstu": mlperf}),
        Read("train_hstu", {"hstu": sizes, "history": "pooled"}),
        Read("train_hstu_daily", {"hstu": sizes}),
        Read("train_hstu_next_item", {"hstu": sizes, "samples": SamplesConfig(history=20, held_out="last")}),
    ]


def spec_of(config: Any) -> DatasetSpec:
    """What the recipe builds its model for."""
    spec = config.samples.of(config.shape)
    return next_item_spec(spec) if hasattr(config, "draws") else spec


def batches_of(config: Any) -> list[SequenceBatch]:
    """Two batches of training, on the host."""
    open_streams = partial(open_next_items, draws=config.draws) if hasattr(config, "draws") else open_sequences
    alone = Ranks(config.batch_size, 0, 1)
    streams = open_streams("synthetic", spec_of(config), alone, config.samples, users=config.rows, epochs=1, seed=0)
    return list(islice(streams["train"].batches(), 2))

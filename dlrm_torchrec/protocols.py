"""Published protocols for Criteo: shapes of the data, settings of training, and what came of it. No torch, for --help.

BARS (arXiv 2009.05794) trains every model alike and publishes logs. The settings here are those of its runs; a learning
rate falls at the epochs at which it fell there, and training ends with the epoch whose weights BARS kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dlrm_torchrec.datasets.criteo import criteo_1tb_spec as criteo_1tb_spec  # recipes import all shapes from here
from dlrm_torchrec.datasets.criteo import criteo_kaggle_spec as criteo_kaggle_spec
from dlrm_torchrec.datasets.criteo import criteo_x1_spec, criteo_x4_spec
from dlrm_torchrec.train.config import CheckpointConfig, OptimizerConfig, Schedule

Data = Literal["x1", "x4"]
Model = Literal["LR", "FM", "DeepFM", "DCNv2", "DLRM"]
_RATE = 0.001


@dataclass(frozen=True, kw_only=True)
class Published:
    """A run of BARS: its settings, and the metrics on the test rows."""

    auc: float
    log_loss: float
    l2: float  # strength of the penalty on tables, ½ l2 |w|²
    l2_of_all: bool = False  # whether dense parameters have the penalty, too
    epochs: int  # up to the one with the best validation AUC
    falls: tuple[int, ...]  # epochs after which the learning rate falls to a tenth


# The first of five runs each of DeepFM and DCNv2 on x1; the means are .81381 and .81394, deviations .0001 and .0002.
BARS: dict[tuple[Data, Model], Published] = {
    ("x1", "LR"): Published(auc=0.788625, log_loss=0.460914, l2=5e-7, l2_of_all=True, epochs=17, falls=(5, 11, 16)),
    ("x1", "FM"): Published(auc=0.802157, log_loss=0.449063, l2=5e-6, l2_of_all=True, epochs=35, falls=(6, 22, 33)),
    ("x1", "DeepFM"): Published(auc=0.813666, log_loss=0.438147, l2=1e-5, epochs=13, falls=(10,)),
    ("x1", "DCNv2"): Published(auc=0.814195, log_loss=0.437788, l2=1e-5, epochs=10, falls=(7,)),
    ("x1", "DLRM"): Published(auc=0.813804, log_loss=0.438155, l2=1e-5, epochs=15, falls=(12,)),
    ("x4", "LR"): Published(auc=0.793359, log_loss=0.456754, l2=1e-7, l2_of_all=True, epochs=12, falls=(5,)),
    ("x4", "FM"): Published(auc=0.808607, log_loss=0.443109, l2=1e-5, l2_of_all=True, epochs=38, falls=(7, 23, 34)),
    ("x4", "DeepFM"): Published(auc=0.814332, log_loss=0.437584, l2=1e-5, epochs=8, falls=(5,)),
    ("x4", "DCNv2"): Published(auc=0.814514, log_loss=0.437631, l2=1e-5, epochs=7, falls=(6,)),
}


def bars(data: Data, model: Model) -> dict[str, Any]:
    """The options of a recipe's Config that a run of BARS had, all but those of the layers."""
    run = BARS[data, model]
    rows, batch_size, seed = {"x1": (33_003_326, 4096, 2021), "x4": (36_672_493, 10_000, 2019)}[data]
    steps = -(-rows // batch_size)
    return {
        "data": f"prepared/criteo-{data}",
        "shape": criteo_x1_spec() if data == "x1" else criteo_x4_spec(),
        "batch_size": batch_size,
        "epochs": run.epochs,
        "seed": seed,
        "clip_norm": 10.0,
        "sparse": _of_sums(run.l2)
        if model == "LR"
        else OptimizerConfig(kind="dense_adam", lr=_RATE, weight_decay=run.l2),
        "dense": OptimizerConfig(kind="adam", lr=_RATE, weight_decay=run.l2 if run.l2_of_all else 0.0),
        "schedule": Schedule(falls=tuple(steps * epoch for epoch in run.falls)),
        "eval_every": steps,
        "checkpoint": CheckpointConfig(every=steps),
    }


def _of_sums(l2: float) -> OptimizerConfig:
    """What trains an id's weight as BARS does where the weight is a tenth of the sum of four equal numbers.

    Each number gets a tenth of the weight's gradient, and has 2.5 times its value: so with this penalty, all that Adam
    sees of it is ten times smaller.
    """
    return OptimizerConfig(kind="dense_adam", lr=_RATE / 0.4, eps=1e-9, weight_decay=l2 / 25)

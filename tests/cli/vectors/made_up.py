"""Sources of made-up vectors, without a run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from dlrm_torchrec.cli.vectors.counts import Counts
from dlrm_torchrec.cli.vectors.source import Source
from dlrm_torchrec.cli.vectors.values import Values
from dlrm_torchrec.raw_values import TextForm
from dlrm_torchrec.schema import SparseFeature


def made_up(rows: int = 60, *, dim: int = 5, counted: bool = True, seed: int = 0) -> tuple[Source, torch.Tensor]:
    """A source of a vocabulary of odd names, and its table; id 2 is the most frequent, and id 1 was never seen."""
    table = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    words = [f"</script> & <b>{number}</b> {'long' * (1 + number % 9)}" for number in range(rows - 2)]
    feature = SparseFeature(name="thing", rows=rows, encoding="vocab")
    values = Values(feature, TextForm(missing=("",), decimal=".", thousands=""), pa.chunked_array([words]))
    times = np.maximum(0, np.concatenate([[5, 0], 1000 // np.arange(1, rows - 1)]))
    counts = Counts(times, int(times.sum()), int(times.sum())) if counted else None
    return Source("runs/x, step 7", values, lambda ids: table[ids], counts, 1), table

"""The measured choice of a kernel: made once per machine, kept, and overridden by what FBGEMM lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.sharding.modules import fastest_update as module
from dlrm_torchrec.sharding.modules.fastest_update import Work, processor, sorting_pays
from dlrm_torchrec.train.config import OptimizerConfig, OptimizerKind
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward

SGD, ADAGRAD = EmbOptimType.EXACT_SGD, EmbOptimType.EXACT_ADAGRAD


def tables(optimizer: OptimizerKind, dim: int) -> EmbeddingBagCollection:
    """Two tables on meta, of ``dim`` and of half of it."""
    configs = [
        EmbeddingBagConfig(name=f"t{each}", num_embeddings=9, embedding_dim=each, feature_names=[f"f{each}"])
        for each in (dim // 2, dim)
    ]
    marked = EmbeddingBagCollection(device=torch.device("meta"), tables=configs)
    optimize_tables_in_backward(marked, OptimizerConfig(kind=optimizer, lr=0.1))
    return marked


def pays(optimizer: OptimizerKind, dim: int) -> bool:
    """The answer for batches of 500 rows."""
    features = tuple(
        SparseFeature(name=f"f{each}", rows=9, multi_hot=True, pooling_factor=ids)
        for each, ids in ((dim // 2, 7.0), (dim, 1.4))
    )
    spec = DatasetSpec(name="measured", label="click", dense=(), sparse=features)
    return sorting_pays(tables(optimizer, dim), spec, 500)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[EmbOptimType, Work]]:
    """What was measured; FBGEMM is said to be faster at SGD and slower at all else."""
    calls = []

    def measure(optimizer: EmbOptimType, work: Work) -> dict[str, float]:
        calls.append((optimizer, work))
        return {"fbgemm": 1.0, "sorted": 2.0 if optimizer is SGD else 0.5}

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return calls


def test_is_measured_once_for_an_optimizer_and_a_dim(measured: list[tuple[EmbOptimType, Work]], tmp_path: Path) -> None:
    for _ in range(2):
        assert not pays("sgd", 16)
        assert pays("adagrad", 16)
        assert not pays("sgd", 64)
    small, large = (
        Work(tables=max(1, 2 // torch.get_num_threads()), rows=8, dim=dim, bags=512, ids=4) for dim in (16, 64)
    )
    assert measured == [(SGD, small), (ADAGRAD, small), (SGD, large)]
    kept = json.loads((tmp_path / "dlrm_torchrec" / "updates.json").read_text())
    assert len(kept) == 3
    assert all(processor() in key for key in kept)


def test_a_damaged_or_forbidden_file_is_no_obstacle(
    measured: list[tuple[EmbOptimType, Work]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not pays("sgd", 16)
    (tmp_path / "dlrm_torchrec" / "updates.json").write_text("{")
    assert not pays("sgd", 16)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not pays("sgd", 16)
    assert len(measured) == 3


def test_what_fbgemm_lacks_is_not_measured(measured: list[tuple[EmbOptimType, Work]]) -> None:
    assert pays("adam", 16)
    assert measured == []


def test_both_kernels_are_timed() -> None:
    times = module.measure(SGD, Work(tables=2, rows=64, dim=8, bags=32, ids=3))
    assert times.keys() == {"fbgemm", "sorted"}
    assert min(times.values()) > 0

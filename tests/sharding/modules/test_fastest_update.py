"""The measured choice of a kernel: made once per machine, kept, and overridden by what must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fbgemm_gpu.split_embedding_configs import EmbOptimType

from dlrm_torchrec.sharding.modules import fastest_update as module
from dlrm_torchrec.sharding.modules.fastest_update import fastest_update, processor, wants_sorted_updates
from tests.sharding.modules.test_sorted_updates import build

SGD, ADAGRAD, ADAM = EmbOptimType.EXACT_SGD, EmbOptimType.EXACT_ADAGRAD, EmbOptimType.ADAM


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[EmbOptimType, int]]:
    """What was measured; FBGEMM is said to be faster at SGD and slower at all else."""
    calls = []

    def measure(optimizer: EmbOptimType, dim: int) -> dict[str, float]:
        calls.append((optimizer, dim))
        return {"fbgemm": 1.0, "sorted": 2.0 if optimizer is SGD else 0.5}

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return calls


def test_is_measured_once_for_an_optimizer_and_a_dim(measured: list[tuple[EmbOptimType, int]], tmp_path: Path) -> None:
    for _ in range(2):
        assert fastest_update(SGD, 16) == "fbgemm"
        assert fastest_update(ADAGRAD, 16) == "sorted"
        assert fastest_update(SGD, 64) == "fbgemm"
    assert measured == [(SGD, 16), (ADAGRAD, 16), (SGD, 64)]
    kept = json.loads((tmp_path / "dlrm_torchrec" / "updates.json").read_text())
    assert len(kept) == 3
    assert all(processor() in key for key in kept)


def test_a_damaged_or_forbidden_file_is_no_obstacle(
    measured: list[tuple[EmbOptimType, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert fastest_update(SGD, 16) == "fbgemm"
    (tmp_path / "dlrm_torchrec" / "updates.json").write_text("{")
    assert fastest_update(SGD, 16) == "fbgemm"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fastest_update(SGD, 16) == "fbgemm"
    assert len(measured) == 3


@pytest.mark.usefixtures("measured")
def test_what_is_asked_for_comes_first_and_what_fbgemm_lacks_is_ours() -> None:
    chosen = [wants_sorted_updates(build(SGD), updates) for updates in ("fbgemm", "auto", "sorted")]
    assert chosen == [False, False, True]
    assert wants_sorted_updates(build(ADAGRAD), "auto")
    assert wants_sorted_updates(build(SGD, decay=0.1), "auto")  # FBGEMM ignores the decay
    assert wants_sorted_updates(build(ADAM), "fbgemm")


def test_both_kernels_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUMBERS", 2**14)
    times = module.measure(SGD, 8)
    assert times.keys() == {"fbgemm", "sorted"}
    assert min(times.values()) > 0

"""Exact resume, resume on other ranks and shardings, and refusals."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from dlrm_torchrec.embeddings.table_files import write_table
from dlrm_torchrec.train.checkpoints.storage import IoPathReader
from tests.recipe import records, run_recipe

BATCH = 128


def train(folder: Path, steps: int, world_size: int, *options: str) -> dict[str, float]:
    """Train the demo to ``steps`` steps; a longer run continues a shorter one of the same folder."""
    arguments = [
        "demo", f"--rows={steps * BATCH}", f"--batch-size={BATCH}", f"--run-dir={folder}", "--log.every=1",
        "--eval-every=4", "--schedule.decay-steps=0", *options,
    ]  # fmt: skip
    metrics = run_recipe("train_dlrm", arguments, world_size)
    return {name: value for name, value in metrics.items() if name != "samples_per_s"}


def nearly(metrics: dict[str, float]) -> dict[str, Any]:
    """These metrics after sums in another order, which may move a row with a probability of 0.5 to the other class."""
    return {
        name: pytest.approx(value, rel=1e-5, abs=1e-3 if "accuracy" in name else 0) for name, value in metrics.items()
    }


def steps_saved(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("demo/checkpoints/*/checkpoint.json"))


@pytest.mark.parametrize(
    ("optimizer", "dense", "world_size"),
    [
        ("sgd", "adam", 2),
        ("adagrad", "sgd", 2),
        ("rowwise_adagrad", "adagrad", 2),
        pytest.param("sgd", "adam", 1, marks=pytest.mark.slow),
        pytest.param("adagrad", "sgd", 1, marks=pytest.mark.slow),
        pytest.param("rowwise_adagrad", "adagrad", 1, marks=pytest.mark.slow),
    ],
)
def test_resumed_run_equals_uninterrupted_one_bit_for_bit(
    tmp_path: Path, optimizer: str, dense: str, world_size: int
) -> None:
    options = [f"--sparse.kind={optimizer}", f"--dense.kind={dense}", "--sparse.lr=0.02", "--dense.lr=0.02"]
    options += ["--schedule.warmup-steps=8", "--schedule.decay-start=8", "--schedule.decay-steps=10", "--clip-norm=1"]
    whole = train(tmp_path / "whole", 12, world_size, *options)
    train(tmp_path / "parts", 8, world_size, *options)
    assert train(tmp_path / "parts", 12, world_size, *options) == whole
    losses = [
        [r["train/loss"] for r in records(tmp_path / f / "demo") if "train/loss" in r] for f in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_a_resumed_run_draws_no_tables(tmp_path: Path) -> None:
    given = tmp_path / "tables"
    given.mkdir()
    file = write_table(str(given), "t_id_0", torch.zeros(50, 16), "safetensors")
    train(tmp_path, 2, 1, f"--tables.pretrained={given}")
    Path(file).unlink()  # a run that begins would miss it
    assert train(tmp_path, 4, 1, f"--tables.pretrained={given}")["steps"] == 4


def test_resume_on_other_ranks_and_shardings(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 20, 2, "--sharding.kind=table_wise", "--sparse.kind=adagrad")
    train(tmp_path / "parts", 4, 2, "--sharding.kind=table_wise", "--sparse.kind=adagrad")
    train(tmp_path / "parts", 8, 1, "--sharding.kind=row_wise", "--sparse.kind=adagrad")
    train(tmp_path / "parts", 12, 2, "--sharding.kind=column_wise", "--sparse.kind=adagrad")
    train(tmp_path / "parts", 16, 2, "--sharding.kind=data_parallel", "--sparse.kind=adagrad")
    parts = train(tmp_path / "parts", 20, 2, "--sharding.kind=row_wise", "--sparse.kind=adagrad")
    assert parts == nearly(whole)


def test_replicated_row_wise_state_becomes_sharded_state(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 12, 2, "--sharding.kind=row_wise")
    train(tmp_path / "parts", 4, 2, "--sharding.kind=data_parallel")
    train(tmp_path / "parts", 8, 2, "--sharding.kind=table_wise")
    assert train(tmp_path / "parts", 12, 1, "--sharding.kind=data_parallel") == nearly(whole)


def test_finished_run_prints_its_metrics_again(tmp_path: Path) -> None:
    first = train(tmp_path, 4, 1)
    lines = records(tmp_path / "demo")
    assert train(tmp_path, 4, 1) == first
    assert records(tmp_path / "demo") == lines


@pytest.mark.parametrize(
    "asynchronous", ["--checkpoint.asynchronous", pytest.param("--checkpoint.no-asynchronous", marks=pytest.mark.slow)]
)
def test_keeps_the_last_k(tmp_path: Path, asynchronous: str) -> None:
    left_by_a_killed_save = tmp_path / "demo/checkpoints/step-00000001"
    left_by_a_killed_save.mkdir(parents=True)
    (left_by_a_killed_save / "__0_0.distcp").write_bytes(b"half")
    options = ["--checkpoint.every=2", "--checkpoint.keep=2", asynchronous]
    metrics = train(tmp_path / "saved", 9, 2, *options)
    assert steps_saved(tmp_path / "saved") == ["step-00000008", "step-00000009"]
    assert metrics == train(tmp_path / "plain", 9, 2)
    train(tmp_path, 3, 1, *options)
    assert steps_saved(tmp_path) == ["step-00000002", "step-00000003"]
    assert not left_by_a_killed_save.exists()


def test_an_unfinished_checkpoint_is_not_seen(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 6, 1)
    train(tmp_path / "parts", 3, 1)
    half = tmp_path / "parts/demo/checkpoints/step-00000005"
    half.mkdir()
    (half / ".metadata").write_bytes(b"half")
    assert train(tmp_path / "parts", 6, 1) == whole


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--bottom 32 8",
            r"bottom must be what the checkpoint .* was trained with, \[64, 16\]: got \[32, 8\]; restore",
        ),
        ("--seed 1", r"seed must be what the checkpoint .* was trained with, 0: got 1; restore it, or start anew"),
        (
            "--sparse.kind adagrad",
            r"sparse\.kind must be what the checkpoint .*, rowwise_adagrad: got adagrad; rest",
        ),
    ],
)
def test_foreign_checkpoint_is_refused(tmp_path: Path, option: str, message: str) -> None:
    train(tmp_path, 3, 1)
    with pytest.raises(RuntimeError, match=message):
        train(tmp_path, 6, 1, *option.split())


def test_older_format_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 3, 1)
    marker = next(tmp_path.glob("demo/checkpoints/*/checkpoint.json"))
    saved = json.loads(marker.read_text())
    del saved["checksum"]
    marker.write_text(json.dumps({**saved, "format": 0}))
    with pytest.raises(
        RuntimeError, match=r"must have format 4 or 3: got 0; use the version of dlrm-torchrec that wrote"
    ):
        train(tmp_path, 6, 1)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('foreign code ran')",))


def _chain_of_allowed_modules() -> bytes:
    """A pickle that reaches ``exec`` through a helper of the file system module: modules alone are no allow-list."""

    def text(value: bytes) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value

    def attribute_of_torch(name: bytes) -> bytes:
        return b"ctorch.distributed.checkpoint.filesystem\n_get_device_module\n" + text(name) + b"\x85R"

    swap = attribute_of_torch(b"_utils") + b"N}" + text(b"torch") + attribute_of_torch(b"builtins") + b"s\x86b0"
    return b"\x80\x02" + swap + attribute_of_torch(b"exec") + text(b"raise SystemExit('foreign code ran')") + b"\x85R."


class _Attribute:
    """Pickles as ``getattr`` of an allowed record, which is how old Pythons pickle members of enumerations."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (Metadata, "__init__")


FOREIGN = [pickle.dumps(each) for each in (_Evil(), torch.nn.Linear(1, 1), _Attribute())]
FOREIGN += [_chain_of_allowed_modules()]


@pytest.mark.parametrize("content", FOREIGN)
def test_metadata_cannot_run_code(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"must name only checkpoint records: got .*; do not load this checkpoint"):
        IoPathReader(str(tmp_path)).read_metadata()

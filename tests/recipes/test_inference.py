"""recipes/quantize_dlrm.py and secret_shared_layer.py: on a short run, and on one of compositional tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrm_torchrec.datasets.open import open_streams
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.inference.predictor import Predictor
from tests.distributed import run_ranks
from tests.recipe import load_recipe, run_recipe

SMALL = ["demo", "--rows=40960", "--batch-size=1024", "--eval-every=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run of two ranks, tables by rows, and its final metrics."""
    folder = tmp_path_factory.mktemp("run")
    return folder / "demo", run_recipe("train_dlrm", [*SMALL, "--sharding.kind=row_wise", f"--run-dir={folder}"], 2)


def quantize(run: Path, recipe: str = "train_dlrm", **options: Any) -> dict[str, float]:
    module = load_recipe("quantize_dlrm")
    return module.main(module.Config(recipe=recipe, run=str(run), batch_size=8192, calibration_batches=1, **options))


def raw_columns(rows: int) -> dict[str, list[Any]]:
    """Validation rows of the demo, as a client would send them."""
    spec = demo_spec()
    stream = open_streams("synthetic", spec, Ranks(1024, 0, 1), rows=40_960, epochs=1, seed=0, lanes=1)["val"]
    batch = next(iter(stream.batches()))
    dense, ids = batch.dense_features[:rows], batch.sparse_features.to_dict()
    columns = {each.name: dense[:, number].tolist() for number, each in enumerate(spec.dense)}
    for each in spec.sparse:
        bags = ids[each.name].to_dense()[:rows]
        columns[each.name] = [bag.tolist() if each.multi_hot else int(bag) for bag in bags]
    return columns


ELSEWHERE = """
import importlib.util, json, sys
import numpy as np
for name in ("dlrm_torchrec", "torchrec"):
    sys.modules[name] = None  # importing it fails
spec = importlib.util.spec_from_file_location("predictor", sys.argv[1] + "/predictor.py")
predictor = importlib.util.module_from_spec(spec)
sys.modules["predictor"] = predictor
spec.loader.exec_module(predictor)
np.save(sys.argv[2], predictor.Predictor.load(sys.argv[1])(json.load(sys.stdin)).probabilities)
"""


def test_the_package_is_the_quantised_model_wherever_it_is_loaded(
    trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    run, metrics = trained
    found = quantize(run)
    for name in ("val/auc", "val/logloss", "val/ne", "val/samples"):
        assert found[f"before/{name}"] == pytest.approx(metrics[name], rel=1e-5)
    assert found["val/auc"] == pytest.approx(metrics["val/auc"], abs=1e-4)
    assert 0 < found["largest_change"] < 0.05
    assert found["bytes/tables"] / found["before/bytes/tables"] == pytest.approx((16 + 4) / 64)
    assert found["bytes/mlps"] < found["before/bytes/mlps"]

    package = json.loads((run / "package/package.json").read_text())
    assert set(package["model"]["tables"].values()) == {"int8"}
    assert package["metrics"]["after"]["auc"] == found["val/auc"]
    columns = raw_columns(64)
    here = Predictor.load(run / "package")(columns)
    assert here.unseen == {}
    assert here.probabilities.std() > 0.01
    there = tmp_path / "there.npy"
    subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(run / "package"), str(there)],
        input=json.dumps(columns), text=True, check=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert np.array_equal(np.load(there), here.probabilities)


def test_a_float_package_gives_the_trained_models_probabilities(trained: tuple[Path, dict[str, float]]) -> None:
    run, _ = trained
    output = str(run / "float")
    found = quantize(run, tables="fp32", mlps="fp32", output=output)
    assert found["largest_change"] <= 1e-5
    assert found["bytes/tables"] == found["before/bytes/tables"]


def test_low_bits_with_outliers_and_a_budget_of_bytes(trained: tuple[Path, dict[str, float]]) -> None:
    run, _ = trained
    output = str(run / "small")
    found = quantize(run, budget_mib=0.25, bits=4, outliers=0.02, max_auc_loss=0.01, output=output)
    assert found["bytes/tables"] <= 2**18
    assert found["bytes/tables"] > 0.9 * 2**18
    assert found["before/val/auc"] - found["val/auc"] < 0.01
    kinds = json.loads((run / "small/package.json").read_text())["model"]["tables"]
    assert len(set(kinds.values())) > 1


def test_compositional_tables(tmp_path: Path) -> None:
    run_recipe("train_dlrm_compositional", [*SMALL, f"--run-dir={tmp_path}"], 1)
    found = quantize(tmp_path / "demo", "train_dlrm_compositional", mlps="dynamic", table_types={"t_id_1": "int4"})
    assert found["val/auc"] == pytest.approx(found["before/val/auc"], abs=1e-3)
    assert Predictor.load(tmp_path / "demo/package")(raw_columns(8)).probabilities.shape == (8,)


def test_a_model_that_lost_too_much_is_not_written(trained: tuple[Path, dict[str, float]]) -> None:
    run, _ = trained
    with pytest.raises(ValueError, match=r"AUC must not fall by more than 1e-05: got [\d.e-]+ less, and nothing was w"):
        quantize(run, tables="int2", max_auc_loss=1e-5, output=str(run / "bad"))
    assert not (run / "bad").exists()


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("train_mf", {}, "recipe must define open_streams: got 'train_mf', which does not"),
        ("train_dlrm", {"step": 7}, r"must hold a whole checkpoint of step 7: got those of steps \[40\]"),
        ("train_dlrm", {"split": "test"}, "split must be one of synthetic: got 'test'; name one of"),
        ("train_dlrm", {"tables": "bfloat16"}, "type of table 't_id_0' must be one of fp32, .*: got 'bfloat16'"),
        ("train_dlrm", {"table_types": {"t_x": "int4"}}, r"types must name every table .*: got \['t_x'\]"),
        ("train_dlrm", {"budget_mib": 0.01}, r"budget must hold all tables .*, \d+ bytes: got 10485"),
    ],
)
def test_errors(trained: tuple[Path, dict[str, float]], recipe: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(trained[0], recipe, **options)


def shared_layer(run: Path) -> dict[str, float]:
    module = load_recipe("secret_shared_layer")
    return module.main(module.Config(recipe="train_dlrm", run=str(run), rows=512))


def test_parties_that_see_noise_compute_the_layer(trained: tuple[Path, dict[str, float]]) -> None:
    found = run_ranks(2, shared_layer, trained[0], join=False)[0]
    assert found["rows"] == 512
    assert found["largest_output"] > 1
    assert found["largest_error"] < 3e-4
    assert found["mean_size_of_a_share"] == pytest.approx(2.0 ** (63 - 16 - 1), rel=0.05)  # half of the largest
    with pytest.raises(ValueError, match="parties must be at least 2: got 1 rank; start 2 with torchrun"):
        shared_layer(trained[0])
    assert torch.distributed.is_initialized() is False

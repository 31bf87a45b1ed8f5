"""recipes/quantize_dlrm.py and secret_shared_layer.py: on a short run, and on one of compositional tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlrm_torchrec.datasets.open import open_streams
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.quality.report import Report, check_quality
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.splits import Whole
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from dlrm_torchrec.train.metrics.auc import auc
from dlrm_torchrec.train.metrics.scores import Scores
from tests.distributed import run_ranks
from tests.recipe import load_recipe, run_recipe
from tests.rich_data import RATINGS, RICH, write_rich

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
import json, sys
import numpy as np
for name in ("dlrm_torchrec", "torchrec"):
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, sys.argv[1])
from predictor import Predictor
np.save(sys.argv[2], Predictor.load(sys.argv[1])(json.load(sys.stdin)).probabilities)
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


@pytest.mark.parametrize("recipe", ["train_fm", "train_deepfm"])
def test_factorisation_machines(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_recipe(recipe, ["demo", "--rows=16384", "--batch-size=1024", "--eval-every=0", f"--run-dir={tmp_path}"], 1)
    found = quantize(tmp_path / "demo", recipe, max_auc_loss=0.01)
    assert found["val/auc"] == pytest.approx(found["before/val/auc"], abs=1e-3)
    assert (found["before/bytes/mlps"] == 0) == (recipe == "train_fm")
    assert "mlps: " in capsys.readouterr().err
    assert Predictor.load(tmp_path / "demo/package")(raw_columns(8)).probabilities.std() > 0


@pytest.mark.parametrize("spec", [RICH, RATINGS], ids=["two labels and weights", "numbers"])
def test_all_that_a_spec_can_say(spec: DatasetSpec, tmp_path: Path) -> None:
    rows = write_rich(tmp_path, spec, rows=2000)["val"]
    sizes = ["--batch-size=64", "--bottom", "16", "--top", "16", "1", "--epochs=2", "--eval-every=0"]
    metrics = run_recipe("train_dlrm", ["demo", f"--data={tmp_path}", *sizes, f"--run-dir={tmp_path}/runs"], 1)
    run = tmp_path / "runs/demo"
    found = quantize(run, max_auc_loss=0.1)
    packed = Predictor.load(run / "package")
    assert packed.columns == tuple(spec.raw_features)
    sources = {"tag_scores": "tags weights"}
    got = packed({name: [row[sources.get(name, name)] for row in rows] for name in packed.columns}).predictions
    weights = np.array([row["importance"] for row in rows])
    if spec.target == "number":
        errors = got[:, 0] - np.array([row["rating"] for row in rows])
        assert np.sqrt(np.average(errors**2, weights=weights)) == pytest.approx(found["val/rmse"], rel=1e-5)
        assert found["before/val/rmse"] == pytest.approx(metrics["val/rmse"], rel=1e-5)
        with pytest.raises(
            ValueError, match=r"RMSE must not rise by a share by more than -1 plus .*: got .*nothing was written"
        ):
            quantize(run, max_auc_loss=-1)
        return
    for number, label in enumerate(("click", "buy")):
        known = [i for i, row in enumerate(rows) if row[label] is not None and row["importance"] > 0]
        labels = np.array([rows[i][label] for i in known])
        scores = torch.from_numpy(got[known, number])
        served = auc(Scores(scores, torch.from_numpy(labels), torch.from_numpy(weights[known])))
        assert served == pytest.approx(found[f"val/{label}/auc"], abs=1e-6)
        assert found[f"before/val/{label}/auc"] == pytest.approx(metrics[f"val/{label}/auc"], abs=1e-6)


SHOPS = DatasetSpec(
    name="shops",
    label="click",
    dense=(DenseFeature(name="price"),),
    sparse=(
        SparseFeature(name="city", rows=0, encoding="vocab"),
        SparseFeature(name="shop", rows=1000, encoding="hash"),
    ),
)


def prepare_shops(folder: Path, cities: list[int]) -> dict[str, list[Any]]:
    """A prepared folder whose clicks follow city and shop, and its raw validation rows; cities[0] is the most frequent.

    Shops are texts in training and whole numbers in validation.
    """
    sources, raw = [], dict[str, list[Any]]()
    for split, count in (("train", 4000), ("val", 1000)):
        random = np.random.default_rng(count)
        city, shop = random.choice(cities, count, p=np.arange(9, 0, -1) / 45), random.integers(9, size=count)
        raw = {
            "click": (random.random(count) < 1 / (1 + np.exp(-1.2 * (city + shop - 8.0)))).astype(int).tolist(),
            "price": random.normal(size=count).tolist(),
            "city": [f"c{each}" for each in city],
            "shop": [str(each + 100) if split == "train" else int(each) + 100 for each in shop],
        }
        pq.write_table(pa.table(raw), folder / f"{split}.parquet")
        reader = ParquetReader(columns=Columns(spec=SHOPS))
        sources.append(Source(path=str(folder / f"{split}.parquet"), reader=reader, assignment=Whole(split)))
    prepare(SHOPS, sources, str(folder / "prepared"), workers=1, overwrite=True)
    return raw


def test_a_value_is_the_same_in_any_type_and_ids_of_other_data_are_refused(tmp_path: Path) -> None:
    raw = prepare_shops(tmp_path, list(range(9)))
    options = ["demo", f"--data={tmp_path}/prepared", "--batch-size=64", "--eval-every=0", f"--run-dir={tmp_path}"]
    metrics = run_recipe("train_dlrm", options, 1)
    assert metrics["val/auc"] > 0.85  # it was .56 when texts and numbers had different ids
    run = tmp_path / "demo"
    assert quantize(run, max_auc_loss=0.05)["before/val/auc"] == pytest.approx(metrics["val/auc"], abs=1e-5)
    packed = Predictor.load(run / "package")
    as_number = packed(raw)
    forms: list[list[Any]] = [[float(shop) for shop in raw["shop"]], [f" {shop}.0 " for shop in raw["shop"]]]
    forms.append([form[i % 2] for i, form in enumerate(zip(raw["shop"], map(str, raw["shop"]), strict=True))])
    for shops in forms:
        np.testing.assert_array_equal(packed(raw | {"shop": shops}).predictions, as_number.predictions)
    assert as_number.unseen == {}

    before = (run / "package/package.json").read_bytes()
    prepare_shops(tmp_path, list(range(8, -1, -1)))
    with pytest.raises(ValueError, match=r"feature 'city' of .*prepared must mean what it meant in training"):
        quantize(run, max_auc_loss=1)
    assert (run / "package/package.json").read_bytes() == before


def test_a_model_that_lost_too_much_is_not_written(trained: tuple[Path, dict[str, float]]) -> None:
    run, _ = trained
    with pytest.raises(
        ValueError,
        match=r"AUC must not fall by more than 1e-05 plus two standard errors of [\d.e-]+: got [\d.e-]+, and",
    ):
        quantize(run, tables="int2", max_auc_loss=1e-5, output=str(run / "bad"))
    assert not (run / "bad").exists()


@pytest.mark.parametrize(
    ("metric", "before", "after", "said"),
    [
        ("auc", 0.8, 0.798, "AUC must not fall"),
        ("rmse", 4.0, 4.008, "RMSE must not rise by a share"),
        ("logloss", 0.2, 0.202, "log-loss of labels that are all alike must not rise"),
    ],
)
def test_quality_is_judged_by_what_the_labels_allow(metric: str, before: float, after: float, said: str) -> None:
    sizes: dict[str, Any] = {"split": "val", "largest_change": 0.0, "bytes_before": {}, "bytes_after": {}}
    for found, error in ((before, 0.0), (after, 6e-4)):  # no change, and one that may be chance
        report = Report(before={metric: before}, after={metric: found}, standard_errors={metric: error}, **sizes)
        check_quality(report, 1e-3, option="--max-auc-loss")
    report = Report(before={metric: before}, after={metric: after}, standard_errors={metric: 2e-4}, **sizes)
    fault = f"{said} by more than 0.001 plus two standard errors of 0.0002: got 0.002"
    with pytest.raises(ValueError, match=f"{fault}, and nothing was written; .* raise --max-auc-loss"):
        check_quality(report, 1e-3, option="--max-auc-loss")


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            "train_dlrm_daily",
            {},
            "recipe must train on splits: got 'train_dlrm_daily', which goes over windows; its runs",
        ),
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

"""Packages: written whole or not at all, loaded only as they were written, and by a process without this library."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlrm_torchrec import __version__
from dlrm_torchrec.cli.main import main
from dlrm_torchrec.inference.loading import PackageError, load_package
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Label, SparseFeature
from tests.inference.packages import scripted

ROOT = Path(__file__).parents[2]
SPEC = DatasetSpec(
    name="small",
    label="click",
    dense=(DenseFeature(name="x"),),
    sparse=(
        SparseFeature(name="city", rows=4, encoding="vocab"),
        SparseFeature(name="item", rows=30, encoding="hash", multi_hot=True),
    ),
)
ROWS: list[dict[str, Any]] = [
    {"x": 1, "city": "Kraków", "item": [1, 2]},
    {"x": None, "city": None, "item": None},
    {"x": 0.5, "city": "nowhere", "item": []},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def write(path: Path, spec: DatasetSpec = SPEC, metrics: dict[str, float] | None = None) -> None:
    vocabulary = path.parent / "city.parquet"
    pq.write_table(pa.table({"value": ["Paris", "Kraków"]}), vocabulary)
    words = {"city": str(vocabulary)}
    write_package(path, scripted(spec), spec, vocabularies=words, model_facts={"tables": "int8"}, metrics=metrics or {})


@pytest.fixture
def package(tmp_path: Path) -> Path:
    write(tmp_path / "package", metrics={"auc": 0.75})
    return tmp_path / "package"


def test_a_package_tells_what_is_in_it(package: Path) -> None:
    predictor = Predictor.load(package)
    files = {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()}
    code = {"predictor.py", "encoder.py", "history_encoder.py", "lookups.py", "stored_rows.py", "raw_values.py"}
    assert files == {"package.json", "model.pt", "vocab/city.parquet", *code}
    assert set(predictor.manifest["files"]) == files - {"package.json"}
    assert predictor.manifest["name"] == "small"
    assert predictor.manifest["versions"].keys() == {"dlrm_torchrec", "torch", "fbgemm_gpu"}
    assert predictor.manifest["versions"]["dlrm_torchrec"] == __version__
    assert predictor.manifest["model"] == {"tables": "int8"}
    assert predictor.manifest["metrics"] == {"auc": 0.75}
    assert DatasetSpec.from_json(predictor.spec) == SPEC
    assert predictor.columns == ("x", "city", "item")
    assert sorted(path.name for path in package.parent.iterdir()) == ["city.parquet", "package"]


def test_probabilities_are_those_of_the_model_for_the_ids(package: Path) -> None:
    prediction = Predictor.load(package)(COLUMNS)
    inputs = Predictor.load(package).encode(COLUMNS)
    assert inputs.ids[0].tolist() == [3, 0, 1]
    items = inputs.ids[1].astype(np.float32)
    logits = [1 + np.cos(3) + np.cos(2 * items[:2]).sum(), 0 + np.cos(0), 0.5 + np.cos(1)]
    np.testing.assert_allclose(prediction.probabilities, 1 / (1 + np.exp(-np.array(logits))), rtol=1e-6)
    assert prediction.unseen == {"city": 1}


STANDALONE = """
import runpy, sys
for name in ("dlrm_torchrec", "torchrec"):
    sys.modules[name] = None  # importing it fails
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} was imported")
sys.argv = [sys.argv[1], "-"]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])  # as ``python predictor.py`` does
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_process_without_the_library_gives_the_same_probabilities(package: Path) -> None:
    command = [sys.executable, "-c", STANDALONE, str(package / "predictor.py")]
    done = subprocess.run(
        command, input=json.dumps(ROWS), cwd=package.parent, capture_output=True, text=True, check=True
    )
    expected = Predictor.load(package)(COLUMNS)
    assert json.loads(done.stdout) == {
        "probabilities": expected.probabilities.tolist(),  # the decimal digits of a float give it back exactly
        "unseen": {"city": 1},
    }


@pytest.fixture
def command(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], None]]:
    """The main function of a package's predictor.py."""
    monkeypatch.syspath_prepend(str(package))
    yield runpy.run_path(str(package / "predictor.py"))["main"]
    for name in ("encoder", "lookups", "raw_values"):
        del sys.modules[name]


def test_the_command_says_what_is_wrong(
    package: Path, command: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = package.parent / "rows.json"

    def exits(text: str, message: str) -> None:
        rows.write_text(text)
        with pytest.raises(SystemExit, match=message):
            command([str(rows)])

    exits("[1]", "error: .*rows.json must be a list of objects with the same names: got TypeError.*; correct it")
    exits('{"x": 1}', "must be a list of objects with the same names: got TypeError")
    exits(json.dumps([*ROWS, {"x": 1}]), "must be a list of objects with the same names: got KeyError")
    exits(json.dumps([{"x": 1}]), r"error: columns must be the raw ones of 'small': got no \['city', 'item'\]")
    exits("[", "error: Expecting value")
    rows.unlink()
    with pytest.raises(SystemExit, match=r"error: .*No such file.*rows.json"):
        command([str(rows)])
    with pytest.raises(SystemExit, match=r"python predictor\.py rows\.json"):
        command([])
    assert capsys.readouterr().out == ""


def test_a_package_takes_the_place_of_an_older_one(package: Path) -> None:
    older = Predictor.load(package)
    write(package, replace(SPEC, dense=()), metrics={"auc": 0.8})
    assert Predictor.load(package).columns == ("city", "item")
    assert older(COLUMNS).unseen == {"city": 1}
    assert sorted(path.name for path in package.parent.iterdir()) == ["city.parquet", "package"]


@pytest.mark.parametrize("failing", ["torch.jit.save", "pathlib.Path.rename"])
def test_an_older_package_stays_when_the_new_one_fails(
    package: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    rename = Path.rename

    def fail(source: Any, target: Any) -> Any:
        if isinstance(source, Path) and not source.name.endswith(".new"):
            return rename(source, target)
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(OSError, match="no space left"):
            write(package, replace(SPEC, dense=()))
    assert Predictor.load(package).columns == ("x", "city", "item")
    assert sorted(path.name for path in package.parent.iterdir()) == ["city.parquet", "package"]


def test_only_a_package_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/only_copy.tex").touch()
    (tmp_path / "file").touch()
    for name in ("thesis", "file"):
        with pytest.raises(ValueError, match=f"{name} must be a package or not exist: got a file or folder without"):
            write(tmp_path / name)
    assert (tmp_path / "thesis/only_copy.tex").exists()


def test_vocabularies_are_those_of_the_spec(tmp_path: Path) -> None:
    model, path = scripted(SPEC), tmp_path / "package"

    def fails(vocabularies: dict[str, str], message: str, spec: DatasetSpec = SPEC) -> None:
        with pytest.raises(ValueError, match=message):
            write_package(path, model, spec, vocabularies=vocabularies, model_facts={}, metrics={})
        assert not path.exists()

    files = {name: str(tmp_path / f"{name}.parquet") for name in ("two", "three", "numbers", "columns")}
    pq.write_table(pa.table({"value": ["a", "b"]}), files["two"])
    pq.write_table(pa.table({"value": ["a", "b", "c"]}), files["three"])
    pq.write_table(pa.table({"value": [0.5, 1.5]}), files["numbers"])
    pq.write_table(pa.table({"key": ["a", "b"]}), files["columns"])
    fails({}, r"vocabularies must be those of 'small': got no \['city'\] and unknown \[\]; take the files from vocab/")
    fails({"city": files["two"], "town": files["two"]}, r"got no \[\] and unknown \['town'\]")
    fails({"city": str(tmp_path / "none")}, "vocabulary of 'city' must be a Parquet file: got .*; prepare the data")
    fails({"city": files["three"]}, "vocabulary of 'city' must have 2 values of int64 or string: got 3 of .*; take")
    fails({"city": files["numbers"]}, r"must have 2 values of int64 or string: got 2 of \['double'\]")
    fails({"city": files["columns"]}, r"must have 2 values of int64 or string: got 2 of \[\]")
    known = replace(SPEC, sparse=(replace(SPEC.sparse[0], vocabulary="0123456789abcdef"), SPEC.sparse[1]))
    fails({"city": files["two"]}, "vocabulary of 'city' must have digest 0123456789abcdef: got .*; take the v", known)
    scaled = replace(SPEC, dense=(DenseFeature(name="x", standardise=True, mean=1.0),))
    fails({"city": files["two"]}, "mean and deviation of feature 'x' must be numbers: got 1.0 and None", scaled)
    ids = replace(SPEC, sparse=(replace(SPEC.sparse[0], encoding="id"), SPEC.sparse[1]))
    fails({"city": files["two"]}, r"got no \[\] and unknown \['city'\]", ids)
    write_package(path, model, ids, vocabularies={}, model_facts={}, metrics={})
    assert Predictor.load(path)({"x": [0], "city": [3], "item": [[]]}).unseen == {}


def spoil_format(package: Path) -> None:
    manifest = json.loads((package / "package.json").read_text())
    (package / "package.json").write_text(json.dumps(manifest | {"format": 1}))


def spoil_model(package: Path) -> None:
    """A model of operators that are not there, with the right checksum."""
    manifest = json.loads((package / "package.json").read_text())
    (package / "model.pt").write_bytes(b"torch of another time")
    manifest["files"]["model.pt"] = hashlib.sha256(b"torch of another time").hexdigest()
    (package / "package.json").write_text(json.dumps(manifest))


def spoil_digest(package: Path) -> None:
    """A vocabulary with the right checksum, of another run."""
    manifest = json.loads((package / "package.json").read_text())
    manifest["spec"]["sparse"][0]["vocabulary"] = "0123456789abcdef"
    (package / "package.json").write_text(json.dumps(manifest))


def edited(**fields: Any) -> Callable[[Path], object]:
    """Changes fields of the manifest."""

    def spoil(package: Path) -> None:
        manifest = json.loads((package / "package.json").read_text())
        (package / "package.json").write_text(json.dumps(manifest | fields))

    return spoil


def spoil_link(package: Path) -> None:
    """A model outside of the package, with the right checksum."""
    (package / "model.pt").rename(package.parent / "model.pt")
    (package / "model.pt").symlink_to("../model.pt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda package: shutil.rmtree(package),
            r"folder .* must hold a package.json: got FileNotFoundError.*; name a package",
        ),
        (lambda package: (package / "package.json").write_text("{"), "must hold a package.json: got JSONDecodeError"),
        (lambda package: (package / "package.json").write_text("[]"), "must hold a package.json: got TypeError"),
        (spoil_format, "format of package .* must be 3: got 1; use the package's predictor.py"),
        (
            lambda package: (package / "model.pt").unlink(),
            "model.pt must have sha256 .*: got no file; copy the package",
        ),
        (
            lambda package: (package / "vocab/city.parquet").write_bytes(b""),
            "city.parquet must have sha256 .*: got e3b0",
        ),
        (
            spoil_digest,
            "vocabulary of feature 'city' must have digest 0123456789abcdef: got .*; write the package",
        ),
        (edited(files={}), r"files in .*package.json must name every file with its sha256: got no 'model.pt'; copy"),
        (edited(files={"../x": "0"}), "files in .* must name every file with its sha256: got no 'model.pt'"),
        (edited(files=[]), r"files in .*package.json must be an object: got \[\]; copy the package again"),
        (edited(name=5), "name in .*package.json must be a text: got 5; copy the package again"),
        (edited(versions=None), "versions in .* must be an object: got None"),
        (edited(vocabularies={"city": "vocab/../../city.parquet"}), r"got no 'vocab/../../city.parquet'; copy"),
        (lambda package: (package / "package.json").write_text("[" * 100_000), "must hold a package.json: got Recurs"),
        (spoil_link, "files of package .* must lie in it: got 'model.pt'; load only packages of your own"),
        (spoil_model, "model of .* must load: got .*; install torch and fbgemm_gpu "),
    ],
)
def test_what_is_no_whole_package_is_refused(package: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(package)
    with pytest.raises(ValueError, match=message) as raised:
        Predictor.load(package)
    assert len(str(raised.value).splitlines()) == 1


def test_a_file_outside_of_the_package_is_not_read(package: Path) -> None:
    manifest = json.loads((package / "package.json").read_text())
    outside = package.parent / "city.parquet"
    for name in ("../city.parquet", str(outside)):
        manifest["files"][name] = hashlib.sha256(outside.read_bytes()).hexdigest()
        (package / "package.json").write_text(json.dumps(manifest | {"vocabularies": {"city": name}}))
        with pytest.raises(ValueError, match=f"must lie in it: got '{name}'"):
            Predictor.load(package)
        del manifest["files"][name]


class Writing(torch.nn.Module):
    """A model that writes a file when it runs."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(
        self, dense: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        torch.save(dense, self.path)
        return dense.new_full([dense.size(0), 1], 0.5), torch.zeros([2]).long() * (ids.numel() + lengths.numel())


def test_a_package_is_code_and_whoever_loads_one_is_told(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checksum tells what a model does, so the first screen of the guide and the help of the commands must."""
    torch.jit.script(Writing(str(tmp_path / "written"))).save(str(package / "model.pt"))
    manifest = json.loads((package / "package.json").read_text())
    manifest["files"]["model.pt"] = hashlib.sha256((package / "model.pt").read_bytes()).hexdigest()
    (package / "package.json").write_text(json.dumps(manifest))
    load_package(package)
    assert (tmp_path / "written").exists()
    first_screen = (ROOT / "docs/serving.md").read_text(encoding="utf-8").splitlines()[:20]
    assert any(line.startswith("**A package is code.**") for line in first_screen)
    for command in ("serve", "predict"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "load only your own" in " ".join(capsys.readouterr().out.split())


WRONG = [
    ({"rows": 1e30}, "rows of .*'item' must be a whole number: got 1e[+]30; correct it"),
    ({"rows": 10**30}, "must give predictions: got OverflowError.*; export it again"),
    ({"rows": -5}, "rows of hash feature 'item' must be at least 2"),
    ({"multi_hot": 3}, "multi_hot of .*'item' must be"),
    ({"part": "year"}, "part of .*'item' must be one of"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_spec_that_fails_only_on_real_values_is_not_loaded(
    package: Path, changes: dict[str, Any], message: str
) -> None:
    load_package(package)
    manifest = json.loads((package / "package.json").read_text())
    (item,) = (feature for feature in manifest["spec"]["sparse"] if feature["name"] == "item")
    item.update(changes)
    (package / "package.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=message):
        load_package(package)


def digest(values: Sequence[str]) -> str:
    return hashlib.sha256(b"".join(value.encode() + b"\0" for value in values)).hexdigest()[:16]


def test_any_names_several_labels_and_a_shared_vocabulary(tmp_path: Path) -> None:
    values = ["Kraków", "7", "São Paulo"]  # "7" stands for a whole number
    pq.write_table(pa.table({"value": values}), tmp_path / "towns.parquet")
    towns: dict[str, Any] = {"rows": 5, "encoding": "vocab", "table": "../towns", "vocabulary": digest(values)}
    spec = DatasetSpec(
        name="any names",
        label="kliknięcie",
        more_labels=(Label(name="zakup.2"),),
        target="number",
        dense=(
            DenseFeature(name="cena/dni", column="cena"),
            DenseFeature(name="brak ceny", column="cena", part="missing"),
        ),
        sparse=(SparseFeature(name="../x", **towns), SparseFeature(name="user.city", column="miasto", **towns)),
    )
    words = dict.fromkeys(("../x", "user.city"), str(tmp_path / "towns.parquet"))
    write_package(tmp_path / "p", scripted(spec), spec, vocabularies=words, model_facts={}, metrics={})
    assert [path.name for path in (tmp_path / "p/vocab").iterdir()] == ["%2E%2E%2Ftowns.parquet"]
    predictor = Predictor.load(tmp_path / "p")
    assert predictor.columns == ("cena", "../x", "miasto")
    columns = {"cena": ["2.5", None], "../x": [7, "São Paulo "], "miasto": ["7.0", "Łódź"], "zakup.2": [1, 0]}
    found = predictor(columns)
    cosines = [np.cos(3) + np.cos(2 * 3), np.cos(4) + np.cos(2 * 1)]
    sums = np.array([2.5 + 0 + cosines[0], 0 + 1 + cosines[1]])
    np.testing.assert_allclose(found.predictions, np.stack([sums, 2 * sums], axis=1), rtol=1e-6)
    assert found.unseen == {"user.city": 1}
    assert predictor.named(found) == {
        "predictions": {"kliknięcie": found.predictions[:, 0].tolist(), "zakup.2": found.predictions[:, 1].tolist()}
    }
    assert predictor({name: [] for name in columns}).predictions.shape == (0, 2)
    with pytest.raises(ValueError, match=r"column '\.\./x' must hold whole numbers or texts: got 0\.5;"):
        predictor(columns | {"../x": [0.5, None]})


def test_a_missing_library_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", None)
    with pytest.raises(ValueError, match=f"must load: got .*fbgemm_gpu.*; install .* {torch.__version__[:6]}"):
        Predictor.load(package)

"""Batch scoring: files in, files out, interrupted or not."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec import raw_values
from dlrm_torchrec.cli.main import BAD_ARGUMENTS, main
from dlrm_torchrec.inference.batch import score
from dlrm_torchrec.inference.batch.rows import CsvForm, open_rows
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.tables import Form, text_layout
from dlrm_torchrec.preparation.readers.text.reader import TextReader
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Label, SparseFeature
from tests.inference.packages import scripted
from tests.inference.serving.served import CITIES, Server, as_json, columns, write


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("batch") / "package", "first", CITIES)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "BATCH_ROWS", 8)
    monkeypatch.setattr(score, "PART_ROWS", 40)


ROWS = 333
VALUES = columns(3, ROWS)


def as_csv(path: Path, values: dict[str, list[Any]]) -> Path:
    """A CSV file with values as a person writes them, and a column that no feature has."""
    texts = {
        name: ["" if v is None else "|".join(v) if isinstance(v, list) else str(v) for v in column]
        for name, column in values.items()
    }
    pacsv.write_csv(pa.table({"note": ['a "b",\nc'] * len(next(iter(values.values()))), **texts}), path)
    return path


def test_lists_in_text_are_those_of_preparation(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('y,tags\n0,a|b\n1,\n0,""\n1,NA\n0, \\N \n1,a||b\n0,a|NA\n1,| \n')
    spec = DatasetSpec(
        name="rows", label="y", dense=(), sparse=(SparseFeature(name="tags", rows=0, encoding="vocab", multi_hot=True),)
    )
    (prepared,) = TextReader(columns=Columns(spec=spec), layout=text_layout(str(path), Form()))(str(path))
    (scored,) = open_rows(path, ["tags"], ["tags"], CsvForm(missing=spec.missing)).batches(0)
    found, bad = raw_values.categories(scored["tags"].flatten(), Columns(spec=spec).form)
    assert not bad.any()
    assert prepared.sparse[0].to_pylist() == [["a", "b"], [], [], [], [], ["a", None, "b"], ["a", None], [None, None]]
    assert found.to_pylist() == prepared.sparse[0].flatten().to_pylist()
    assert (np.diff(scored["tags"].offsets) == prepared.sparse[0].value_lengths()).all()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("form", ["parquet", "csv"])
@pytest.mark.parametrize("output", ["parquet", "csv"])
def test_scores_are_those_of_the_predictor(
    package: Path, tmp_path: Path, form: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / f"rows.{form}", tmp_path / "out" / f"scores.{output}"
    table = pa.table({"note": [1] * ROWS, **VALUES})
    pq.write_table(table, source, row_group_size=70) if form == "parquet" else as_csv(source, VALUES)
    assert main(["predict", str(package), str(source), "--output", str(target)]) == 0
    said = capsys.readouterr()
    expected = Predictor.load(package)(VALUES)  # an empty text is an empty list
    found = pq.read_table(target) if output == "parquet" else pacsv.read_csv(target)
    assert found.column_names == ["probability"]
    np.testing.assert_allclose(found["probability"].to_numpy(), expected.probabilities, rtol=1e-6)
    summary = json.loads(said.out)
    assert {name: summary[name] for name in ("rows", "unseen")} == {"rows": ROWS, "unseen": expected.unseen}
    assert f"{ROWS}" in said.err
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_after_any_interruption_the_same_command_gives_the_same_bytes(
    package: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / f"rows.{form}"
    table = pa.table(VALUES)
    pq.write_table(table, source, row_group_size=70) if form == "parquet" else as_csv(source, VALUES)
    monkeypatch.setattr("dlrm_torchrec.inference.batch.rows.BLOCK_BYTES", 2000)
    command = ["predict", str(package), str(source), "--output"]
    assert main([*command, str(tmp_path / "whole.parquet")]) == 0
    whole = (tmp_path / "whole.parquet").read_bytes()
    run, unseen = Predictor.run, json.loads(capsys.readouterr().out)["unseen"]
    for calls in (1, 8, 25, 52):
        left = calls + 9  # with those of the warm-up

        def fail(predictor: Predictor, inputs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("the machine was lost")
            return run(predictor, inputs)

        target = tmp_path / f"after {calls}.parquet"
        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "run", fail)
            assert main([*command, str(target)]) == (BAD_ARGUMENTS if calls < 42 else 0)
        capsys.readouterr()
        if calls < 42:
            assert main([*command, str(target)]) == 0
            said = capsys.readouterr()
            assert (f"resumed at row {calls // 5 * 40} from" in said.err) == (calls >= 5)
            assert json.loads(said.out)["unseen"] == unseen
        assert target.read_bytes() == whole


def test_a_killed_process_goes_on(package: Path, tmp_path: Path) -> None:
    many = {name: column * 3000 for name, column in VALUES.items()}
    pq.write_table(pa.table(many), tmp_path / "rows.parquet")
    command = [sys.executable, "-m", "dlrm_torchrec.cli.main", "predict", str(package), str(tmp_path / "rows.parquet")]
    target = tmp_path / "scores.parquet"
    process = subprocess.Popen([*command, "--output", str(target)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (tmp_path / "scores.parquet.parts/000000.parquet").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    finished = subprocess.run([*command, "--output", str(target)], capture_output=True, text=True, check=True)
    assert "resumed at row 262,144 from" in finished.stderr or "resumed at row 524,288 from" in finished.stderr
    expected = np.tile(Predictor.load(package)(VALUES).probabilities, 3000)
    np.testing.assert_allclose(pq.read_table(target)["probability"].to_numpy(), expected, rtol=1e-6)


@pytest.mark.usefixtures("small_parts")
def test_parts_of_another_input_are_removed_only_if_told(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "rows.parquet", tmp_path / "scores.parquet"
    command = ["predict", str(package), str(source), "--output", str(target)]
    pq.write_table(pa.table(VALUES), source)
    with monkeypatch.context() as patch:
        patch.setattr(score.Parts, "join", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(command)
    others = columns(4, 50)
    pq.write_table(pa.table(others), source)
    os.utime(source, ns=(1, 1))
    capsys.readouterr()
    assert main(command) == BAD_ARGUMENTS
    assert "must hold parts of this package and input: got parts of others; name another output" in (
        capsys.readouterr().err
    )
    assert main([*command, "--force"]) == 0
    assert "resumed" not in capsys.readouterr().err
    expected = Predictor.load(package)(others).probabilities
    np.testing.assert_allclose(pq.read_table(target)["probability"].to_numpy(), expected, rtol=1e-6)
    (tmp_path / "mine.parquet.parts").mkdir()
    (tmp_path / "mine.parquet.parts/thesis").touch()
    assert main([*command[:-1], str(tmp_path / "mine.parquet")]) == BAD_ARGUMENTS
    assert "must hold parts of scores: got no job.json; name another output" in capsys.readouterr().err
    assert (tmp_path / "mine.parquet.parts/thesis").exists()


def test_several_labels_give_a_column_each(tmp_path: Path) -> None:
    spec = DatasetSpec(
        name="log",
        label="price paid",
        target="number",
        more_labels=(Label(name="kupił"),),
        dense=(DenseFeature(name="home.x"),),
        sparse=(SparseFeature(name="tags", rows=9, multi_hot=True, weights="w/t"),),
    )
    write_package(tmp_path / "p", scripted(spec), spec, vocabularies={}, model_facts={}, metrics={})
    values: dict[str, list[Any]] = {
        "home.x": [0.5, None, -1e6],
        "tags": [["1", "2"], ["3", "3", "1"], ["20"]],
        "w/t": [["0.5", "-2"], ["1", "1.5", "2e-1"], ["1"]],
    }
    pq.write_table(pa.table(values), tmp_path / "rows.parquet")
    as_csv(tmp_path / "rows.csv", values)
    expected = Predictor.load(tmp_path / "p")(values).predictions
    for source in ("rows.parquet", "rows.csv"):
        target = tmp_path / f"{source}.scores.parquet"
        assert main(["predict", str(tmp_path / "p"), str(tmp_path / source), "--output", str(target)]) == 0
        found = pq.read_table(target)
        assert found.column_names == ["price paid", "kupił"]
        np.testing.assert_allclose(np.transpose(found.columns), expected, rtol=1e-6)


def test_no_rows_give_no_scores(package: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table(VALUES)[:0], tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("price,age,city,place,tags\n")
    for source in ("rows.parquet", "rows.csv"):
        target = tmp_path / f"{source}.parquet"
        assert main(["predict", str(package), str(tmp_path / source), "--output", str(target)]) == 0
        assert pq.read_table(target).num_rows == 0


HEADER = "price,age,city,place,tags\n"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("price,age,city\n1,2,a\n", (), "must have each column of the package once: got 0 of 'place'; columns were"),
        (f"age,{HEADER}1,1,2,a,3,\n", (), "must have each column of the package once: got 2 of 'age'; columns were"),
        (HEADER.replace(",", ";"), (), "got 0 of 'price'; columns were cut at ',': name another with --separator, or "),
        ("price;age\n1,5;2\n", (), "Expected 1 columns, got 2: 1,5;2; columns were cut at ',': name another with --"),
        ("", (), "must be a Parquet file, or a CSV file with a header: got Empty CSV file; columns were cut at ','"),
        ("PAR1 no", (), "must be a Parquet file, or a CSV file with a header: got Parquet "),
        (f"{HEADER}1,2,a,3\n", (), "CSV parse error: Row #2: Expected 5 columns, got 4"),
        (
            f"{HEADER}1,2,a,3,\n1,old,a,3,\n",
            (),
            "row 1 of the input, counted from 0: column 'age' must hold numbers: got 'old'",
        ),
        (
            f"{HEADER}1,2,a,3,\n3e38,3e38,a,3,\n",
            (),
            "row 1 of the input, counted from 0, must give a finite prediction: got values that overflow the model",
        ),
        (
            f'{HEADER}1,2,"a,3,\n1,2,a,3,\n',
            (),
            'CSV parse error: Row #2: Expected 5 columns, got 3: 1,2,"a,3, 1,2,a,3,',
        ),
        (HEADER, ("--threads", "0"), "threads must be at least 1, separator one byte, and list-separator not empty"),
        (HEADER, ("--output", "scores.txt"), "output must end in .parquet or .csv: got scores.txt; rename it"),
        (HEADER, ("--split", "test"), "--split must be that of a prepared folder: got the file "),
    ],
)
def test_what_cannot_be_scored_is_said(
    package: Path,
    tmp_path: Path,
    text: str,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "rows").write_text(text)
    command = ["predict", str(package), str(tmp_path / "rows"), "--output", str(tmp_path / "s.csv"), *options]
    assert main(command) == BAD_ARGUMENTS
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.usefixtures("small_parts")
def test_the_row_at_fault_is_named_wherever_it_is(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ages = [str(age) for age in VALUES["age"]]
    for row in (0, 7, 8, 41, 250, ROWS - 1):
        wrong = VALUES | {"age": [*ages[:row], "old", *ages[row + 1 :]]}
        pq.write_table(pa.table(wrong), tmp_path / "rows.parquet")
        target = tmp_path / f"{row}.csv"
        assert main(["predict", str(package), str(tmp_path / "rows.parquet"), "--output", str(target)]) == BAD_ARGUMENTS
        assert f"row {row} of the input, counted from 0: column 'age' must hold numbers: got 'old'" in (
            capsys.readouterr().err
        )


def test_scores_are_those_of_the_server(package: Path, tmp_path: Path) -> None:
    """Bit by bit for the same rows in a batch, and within the bound that docs/serving.md states in other company."""
    pq.write_table(pa.table(VALUES), tmp_path / "rows.parquet")
    target = tmp_path / "scores.parquet"
    assert main(["predict", str(package), str(tmp_path / "rows.parquet"), "--output", str(target)]) == 0
    scores = pq.read_table(target)["probability"].to_numpy()
    server = Server(package).wait()
    try:
        assert server.predict(as_json(VALUES))[1]["probabilities"] == scores.tolist()
        for first, last in ((0, 1), (5, 70), (300, ROWS)):
            part = {name: column[first:last] for name, column in VALUES.items()}
            found = server.predict(as_json(part))[1]["probabilities"]
            np.testing.assert_allclose(found, scores[first:last], rtol=0, atol=1e-6)
    finally:
        assert server.stop()[0] == 0


def test_two_commands_do_not_fill_one_output(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "rows.parquet", tmp_path / "scores.parquet"
    pq.write_table(pa.table(VALUES), source)
    command = ["predict", str(package), str(source), "--output", str(target)]
    for description in (score.job(package, source, {"separator": ",", "list_separator": "|"}), {}):
        with closing(score.Parts(target, description, replace=True)):
            assert main([*command, "--force"]) == BAD_ARGUMENTS
            assert "must be filled by one command at a time: got another at work" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_the_number_of_rows_of_text_is_estimated(
    package: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlrm_torchrec.inference.batch.rows.BLOCK_BYTES", 1000)
    path = as_csv(tmp_path / f"rows.{ending}", {name: column * 20 for name, column in VALUES.items()})
    if ending == "csv.gz":
        path.write_bytes(gzip.compress(path.read_bytes()) + gzip.compress(b"") * 10_000)  # of members, read once
    predictor = Predictor.load(package)
    rows = open_rows(path, predictor.columns, ["tags"], CsvForm())
    told = [rows.num_rows or 0 for _ in rows.batches(0) if rows.is_estimated]
    assert len(told) > 100
    if ending == "csv":  # the compressed file is one block, so that nothing tells how far the reading is
        assert abs(told[len(told) // 2] / (20 * ROWS) - 1) < 0.3
    assert (rows.num_rows, rows.is_estimated) == (20 * ROWS, False)


def test_an_output_is_overwritten_only_if_told(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text(f"{HEADER}1,2,a,3,\n")
    (tmp_path / "s.csv").write_text("precious")
    command = ["predict", str(package), str(tmp_path / "rows.csv"), "--output", str(tmp_path / "s.csv")]
    assert main(command) == BAD_ARGUMENTS
    assert "output must be a new file" in capsys.readouterr().err
    assert (tmp_path / "s.csv").read_text() == "precious"
    assert main([*command, "--force"]) == 0
    assert (tmp_path / "s.csv").read_text().startswith('"probability"\n')
    (tmp_path / "folder.csv").mkdir()
    assert main([*command[:-1], str(tmp_path / "folder.csv"), "--force"]) == BAD_ARGUMENTS
    assert "output must be a file: got the folder" in capsys.readouterr().err
    (tmp_path / "link.csv").symlink_to("rows.csv")
    for name in ("rows.csv", "link.csv"):
        assert main([*command[:-1], str(tmp_path / name), "--force"]) == BAD_ARGUMENTS
        assert "output must be another file than the input" in capsys.readouterr().err
    assert (tmp_path / "rows.csv").read_text() == f"{HEADER}1,2,a,3,\n"

"""The page of runs, parsed again: its charts, tables and differences, and that foreign text is only text."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from dlrm_torchrec.cli.runs.page import page
from dlrm_torchrec.cli.runs.read import read_runs
from tests.cli.runs.folders import CONFIG, MODEL, write_run
from tests.pages.elements import Element, Tree


def read(*folders: Path) -> Element:
    return Tree(page(read_runs([str(folder) for folder in folders]))).root


def table(root: Element, caption: str) -> list[list[str]]:
    """The texts of a table's rows, its head first."""
    (found,) = [each for each in root.all("table") if each.all("caption")[0].text == caption]
    rows = [[cell.text.strip() for cell in row.walk() if cell.tag in ("th", "td")] for row in found.all("tr")]
    return [[re.sub(r"\s+", " ", text) for text in row] for row in rows]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    write_run(tmp_path / "runs/a/demo")
    other = {**CONFIG, "run_dir": "runs/y", "sparse": {"kind": "sgd", "lr": 0.3}, "top": [64, 32, 1], "new": True}
    write_run(tmp_path / "runs/b/demo", seed=1, config=other)
    return tmp_path / "runs/a/demo", tmp_path / "runs/b/demo"


def test_every_recorded_number_stands_in_the_table_of_its_chart(folders: tuple[Path, Path]) -> None:
    root = read(*folders)
    titles = [figure.all("h3")[0].text.split(" mean")[0].split(" valid")[0] for figure in root.all("figure")]
    titles = [title.split(" samples")[0].strip() for title in titles]
    assert titles == ["Training loss", "AUC", "Normalised entropy", "Calibration", "Speed"]
    records = [[json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in folders]
    for title, metric in (("Training loss", "train/loss"), ("AUC", "val/auc")):
        head, *rows = table(root, f"{title}, the numbers that are drawn")
        assert head == ["Step", "a/demo", "b/demo"]
        for column, own in enumerate(records, start=1):
            wanted = {record["step"]: record[metric] for record in own if metric in record}
            assert [float(row[column]) for row in rows] == pytest.approx(list(wanted.values()), rel=1e-3)
            assert [int(row[0]) for row in rows] == list(wanted)


def test_only_options_that_differ_are_listed(folders: tuple[Path, Path]) -> None:
    assert table(read(*folders), "Options that are not the same in all runs")[1:] == [
        ["sparse.lr", "0.1", "0.3"],
        ["top", "[64, 1]", "[64, 32, 1]"],
        ["new", "\N{EN DASH}", "true"],
    ]
    alone = read(folders[0])
    assert not [each for each in alone.all("h2") if each.text == "Options that differ"]
    assert ["sparse.lr", "0.1"] in table(alone, "All options of the run")


def test_windows_have_their_own_table_and_best_possible_line(folders: tuple[Path, Path]) -> None:
    marker = folders[0] / "checkpoints/step-00000100/checkpoint.json"
    metrics = [{"val/unseen": 1.0, "teacher/auc": 0.84}, {"val/auc": 0.75, "val/gauc": 0.7, "val/age": 2.0}]
    metrics[1] |= {"teacher/auc": 0.83, "published": 0.0}
    windows = [{"name": f"day-{day}", "steps": 50, "metrics": own} for day, own in enumerate(metrics)]
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"windows": windows}))
    lines = [json.dumps({"step": 50 * day + 50, **own}) + "\n" for day, own in enumerate(metrics)]
    with (folders[0] / "metrics.jsonl").open("a") as file:
        file.writelines(lines)
    (folders[0] / "final.json").write_text(json.dumps({"steps": 100, "windows/day-1/val/auc": 0.75}))
    root = read(*folders)
    head, *rows = table(root, "Windows of a/demo")
    assert head[:5] == ["Window", "Steps", "AUC before training", "Best possible", "GAUC"]
    assert rows[0] == ["day-0", "50", "", "0.8400", "", "", "", "1", ""]
    assert rows[1] == ["day-1, not published", "50", "0.7500", "0.8300", "0.7000", "", "", "", "2"]
    assert not [row for row in table(root, "The newest value of every metric") if row[0].startswith("windows/")]
    head, *rows = table(root, "AUC, the numbers that are drawn")
    assert head == ["Step", "a/demo", "b/demo", "best possible"]
    assert {row[0]: row[3] for row in rows if row[3]} == {"50": "0.8400", "100": "0.8300"}


def test_checkpoints_say_which_one_is_best(folders: tuple[Path, Path]) -> None:
    rows = table(read(folders[0]), "Whole checkpoints, oldest first")
    assert rows == [
        ["Run", "Step", "AUC", "Size"],
        ["a/demo best", "50", "0.8125", "2.00 MB"],
        ["a/demo", "100", "0.7500", "2.00 MB"],
    ]


def test_bytes_of_tables_on_every_rank_count_replicas_in_full(folders: tuple[Path, Path]) -> None:
    (folders[0] / "model.json").write_text(json.dumps(MODEL))
    rows = table(read(*folders), "Bytes of tables on every rank of a/demo")
    assert [(row[0], row[2]) for row in rows[1:]] == [
        ("0", f"{(50 + 10) * 8 * 4 / 1000:.2f} kB"),
        ("1", f"{(50 + 10 + 30) * 8 * 4 / 1000:.2f} kB"),
    ]


def test_the_model_shows_where_parameters_and_multiply_adds_are(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        (folder / "model.json").write_text(json.dumps(MODEL))
    rows = table(read(*folders), "Parts of the model of a/demo")
    assert rows[1][2:4] == ["1,120", "93.3 %"]
    assert rows[2][6:8] == ["640", "100.0 %"]


def test_the_final_metrics_of_an_older_end_do_not_count(folders: tuple[Path, Path]) -> None:
    final = {"val/auc": 0.5, "teacher/auc": 0.9, "steps": 100}
    (folders[0] / "final.json").write_text(json.dumps(final))
    assert ["teacher/auc", "0.9000"] in table(read(folders[0]), "The newest value of every metric")
    assert "best possible 0.9" in re.sub(r"\s+", " ", read(folders[0]).text)
    (folders[0] / "final.json").write_text(json.dumps({**final, "steps": 60}))
    assert "teacher/auc" not in read(folders[0]).text


def test_torn_and_foreign_files_break_nothing(folders: tuple[Path, Path]) -> None:
    whole = page(read_runs([str(folders[0])]))
    metrics = folders[0] / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    foreign = [
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'{"step": "7"}\n',
        b"\n",
        b'{"step": true, "train/loss": 9}\n',
        b"[" * 10_000,
    ]
    metrics.write_bytes(b"".join([*lines[:3], *foreign, b"\n", *lines[3:], lines[-1][:-4]]))
    (folders[0] / "checkpoints/step-00000070").mkdir()
    (folders[0] / "checkpoints/notes.txt").touch()
    (folders[0] / "final.json").write_text('{"val/auc": 0.')
    assert page(read_runs([str(folders[0])])) == whole


def test_a_run_without_records_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.json").write_text("{}")
    text = read(tmp_path / "new").text
    assert "No run has a record yet." in text
    assert "No run has a whole checkpoint yet." in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing"], r"run must be a folder with config.json or metrics.jsonl: got .*nothing; name the folder"),
        (["a", "a/"], "runs must be distinct folders: got .*a twice"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    write_run(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        read_runs([f"{tmp_path}/{name}" for name in names])


def test_more_runs_than_can_be_told_apart_are_refused(tmp_path: Path) -> None:
    for number in range(25):
        write_run(tmp_path / str(number))
    folders = [str(tmp_path / str(number)) for number in range(25)]
    assert (
        len({each.attributes["class"] for each in Tree(page(read_runs(folders[:24]))).root.all("path", "line")}) == 24
    )
    with pytest.raises(ValueError, match="a page must show at most 24 runs: got 25"):
        page(read_runs(folders))


def test_foreign_text_is_text_and_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    nasty = tmp_path / 'runs/<script>alert(1)</script> "&'
    config = {"<i>": "</table><b>", "data": "'\"><svg onload=alert(1)>"}
    write_run(nasty, config=config)
    write_run(tmp_path / "runs/b")
    with (nasty / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 100, "val/<u>x</u>": 0.5}) + "\n")
    document = page(read_runs([str(nasty), str(tmp_path / "runs/b")]))
    root = Tree(document).root
    used = {each.tag for each in root.walk()}
    assert not used & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "b", "i", "u"}
    names = {name for each in root.walk() for name in each.attributes}
    assert not names & {"src", "srcset", "href", "action", "xlink:href"}
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import|javascript:", document)
    assert '<script>alert(1)</script> "&' in root.text
    assert ["<i>", "</table><b>", "\N{EN DASH}"] in table(root, "Options that are not the same in all runs")
    assert "val/<u>x</u>" in [each.all("h3")[0].text.strip() for each in root.all("figure")]


def test_it_can_be_read_without_seeing_it(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        (folder / "model.json").write_text(json.dumps(MODEL))
    root = read(*folders)
    headings = [int(each.tag[1]) for each in root.walk() if re.fullmatch(r"h\d", each.tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    ids = [each.attributes["id"] for each in root.walk() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    for each in root.all("table"):
        assert each.all("caption")[0].text
        assert all(cell.attributes["scope"] in ("col", "row") for cell in each.all("th"))
    for figure in root.all("figure"):
        (drawing,) = figure.all("svg")
        assert drawing.attributes["role"] == "img"
        assert "a/demo ends at" in drawing.attributes["aria-label"]
        assert figure.all("table")
    style = root.all("style")[0].text
    kinds = {kind for each in root.walk() for kind in each.classes if each.tag in ("path", "rect", "span")}
    assert not [kind for kind in kinds - {"dash-0"} if not re.search(rf"\.{kind}[ ,{{:.]", style)]


def test_a_long_run_makes_no_large_page(tmp_path: Path) -> None:
    write_run(tmp_path / "long", steps=500_000, every=50)
    document = page(read_runs([str(tmp_path / "long")]))
    assert len(document) < 700_000

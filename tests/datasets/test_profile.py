"""Access statistics against loops over rows in plain Python, and the command that writes them."""

from __future__ import annotations

import json
import random
import re
import runpy
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from dlrm_torchrec.datasets import profile
from dlrm_torchrec.datasets.numpy_columns import IdLists
from dlrm_torchrec.datasets.open import load_statistics
from dlrm_torchrec.datasets.prepared.id_counts import ManagedCounts
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.profile import access_statistics, lookups_of_ids, main
from dlrm_torchrec.schema import WINDOW_ROWS, AccessStatistics
from tests.datasets.prepared_files import SPEC, make_table, write_file, write_folder, write_manifest
from tests.datasets.sequences.logs import random_log
from tests.datasets.sequences.test_stored import write_log
from tests.recipe import ROOT


def reference(bags: list[list[int]], window_rows: int = WINDOW_ROWS) -> AccessStatistics:
    """The same statistics, one row and one id after another."""
    counts, repeated = Counter[int](), 0
    for start in range(0, len(bags), window_rows):
        window = set[int]()
        for ids in bags[start : start + window_rows]:
            for id_ in ids:
                repeated += id_ in window
                window.add(id_)
                counts[id_] += 1
    lookups = counts.total()
    tops = [10**power for power in range(10) if 10**power <= len(counts)]
    powers = [count.bit_length() - 1 for count in counts.values()]
    entries = []
    for power in range(max(powers, default=-1) + 1):
        members = [count for count in counts.values() if 2**power <= count < 2 ** (power + 1)]
        entries.append((len(members), sum(members)))
    return AccessStatistics(
        samples=len(bags),
        lookups=lookups,
        distinct=len(counts),
        top_mass=tuple((k, sum(count for _, count in counts.most_common(k)) / lookups) for k in tops),
        reuse=repeated / lookups if lookups else 0.0,
        histogram=tuple(entries),
    )


def pieces(bags: list[list[int]], cuts: list[int], kind: Any, multi_hot: bool) -> list[IdLists]:
    """The bags in arrays of type ``kind``, cut before the rows ``cuts``."""
    found = []
    for first, last in zip([0, *cuts], [*cuts, len(bags)], strict=True):
        values = np.array([id_ for ids in bags[first:last] for id_ in ids], dtype=kind)
        offsets = np.cumsum([0, *map(len, bags[first:last])])
        found.append(IdLists(values, offsets if multi_hot else None))
    return found


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_statistics_equal_a_loop_over_rows(seed: int, multi_hot: bool, kind: Any) -> None:
    draw = random.Random(seed)
    rows = draw.choice([1, 7, 120])

    def id_() -> int:
        return int(rows * draw.random() ** 3)

    bags = [[id_() for _ in range(draw.randrange(4) if multi_hot else 1)] for _ in range(draw.randrange(1, 900))]
    expected = reference(bags, window_rows=100)
    for number in (0, 1, 30):
        cuts = sorted(draw.randrange(len(bags) + 1) for _ in range(number))  # equal cuts are empty pieces
        assert access_statistics(pieces(bags, cuts, kind, multi_hot), rows, window_rows=100) == expected


@pytest.mark.parametrize("held_bytes", [10**9, 2_000])
def test_managed_ids_are_counted_as_a_loop_counts_them(monkeypatch: pytest.MonkeyPatch, held_bytes: int) -> None:
    monkeypatch.setattr("dlrm_torchrec.datasets.prepared.id_counts._HELD_BYTES", held_bytes)
    draw = np.random.default_rng(held_bytes)
    known = np.concatenate([[0, 1, 2**63 - 2], draw.integers(0, 2**63 - 1, 900)])
    bags = [known[(draw.random(draw.integers(0, 4)) ** 2 * len(known)).astype(int)].tolist() for _ in range(3000)]
    cuts = sorted(draw.integers(0, len(bags), 20).tolist())
    found = profile._counted(pieces(bags, cuts, np.int64, multi_hot=True), ManagedCounts(), window_rows=100)
    assert found == reference(bags, window_rows=100)
    assert profile._counted(pieces([[]], [], np.int64, multi_hot=True), ManagedCounts()).lookups == 0


def test_command_counts_managed_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path, [[400, 100]])
    manifest = Manifest.load(str(tmp_path))
    sparse = tuple(replace(f, rows=50, encoding="managed") if f.name == "user" else f for f in SPEC.sparse)
    replace(manifest, spec=replace(SPEC, sparse=sparse)).save(str(tmp_path))
    main(str(tmp_path))
    users = [
        id_
        for file in manifest.splits["train"].files
        for id_ in pq.read_table(tmp_path / file.path)["user"].to_pylist()
    ]
    assert load_statistics(str(tmp_path))["user"] == reference([[id_] for id_ in users])
    assert re.search(r"^user +50 +500  1000.0% ", capsys.readouterr().out, re.MULTILINE)
    assert "t_user" not in load_file(tmp_path / "frequent.safetensors")
    (table,) = (table for table in Manifest.load(str(tmp_path)).spec.tables(dim=4) if table.managed)
    with pytest.raises(ValueError, match=r"ids of table 't_user' must be its rows to be counted: got a table that"):
        lookups_of_ids(manifest, str(tmp_path), table)


def test_bags_without_any_id() -> None:
    found = access_statistics(pieces([[], [], []], [1], np.int64, True), rows=5)
    assert found == AccessStatistics(samples=3, lookups=0, distinct=0, top_mass=(), reuse=0.0, histogram=())
    assert found.pooling_factor == 0.0


def columns_of(table: pa.Table) -> dict[str, list[list[int]]]:
    lists = {name: table[name].to_pylist() for name in ("user", "history", "shop")}
    return {name: values if name == "history" else [[id_] for id_ in values] for name, values in lists.items()}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table, str]:
    """A folder of more than one window in odd files and row groups, its rows, and what the command printed."""
    folder = tmp_path_factory.mktemp("prepared")
    table = write_folder(folder, [[40_001, 7, 999], [], [30_000, 1], [13]])
    data = json.loads((folder / "dataset.json").read_text())
    data["spec"]["sparse"][1]["pooling_factor"] = 77.0
    data["report"] = {"rows_in": 5}
    (folder / "dataset.json").write_text(json.dumps(data))
    command = [sys.executable, "-X", "importtime", "-m", "dlrm_torchrec.datasets.profile", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "pyarrow.parquet" in done.stderr
    assert "torchrec.sparse" not in done.stderr  # counting must not wait for it
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    return folder, table, done.stdout


def test_command_writes_what_a_loop_over_all_rows_counts(profiled: tuple[Path, pa.Table, str]) -> None:
    folder, table, _ = profiled
    assert table.num_rows == 71_021 > WINDOW_ROWS
    expected = {name: reference(bags) for name, bags in columns_of(table).items()}
    assert load_statistics(str(folder)) == expected
    assert expected["history"].pooling_factor not in (0, 1, 77)


def test_command_lists_frequent_ids_where_there_is_no_vocabulary(profiled: tuple[Path, pa.Table, str]) -> None:
    folder, table, printed = profiled
    spec = Manifest.load(str(folder)).spec
    listed = load_file(folder / "frequent.safetensors")
    tables = {f"t_{feature.name}": feature.name for feature in spec.sparse if feature.encoding != "vocab"}
    assert listed.keys() == tables.keys()
    for name, feature in tables.items():
        counts = Counter(id_ for bag in columns_of(table)[feature] for id_ in bag)
        assert listed[name].tolist() == sorted(counts, key=lambda id_: (-counts[id_], id_))
    assert f"the most frequent ids of {len(tables)} tables" in printed


def test_command_leaves_everything_else_as_it_was(profiled: tuple[Path, pa.Table, str]) -> None:
    folder, table, _ = profiled
    data = json.loads((folder / "dataset.json").read_text())
    factors = [feature.pop("pooling_factor") for feature in data["spec"]["sparse"]]
    assert factors == [1.0, sum(map(len, table["history"].to_pylist())) / table.num_rows, 1.0]
    spec = SPEC.to_json()
    assert [feature.pop("pooling_factor") for feature in spec["sparse"]] == [1.0, 1.0, 1.0]
    assert data["spec"] == json.loads(json.dumps(spec))
    assert data["report"] == {"rows_in": 5}
    rows = {f"part-{number}.parquet": rows for number, rows in enumerate([41_007, 0, 30_001, 13])}
    assert {file["path"]: file["rows"] for file in data["splits"]["train"]["files"]} == rows
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "frequent.safetensors", *rows]


def test_command_prints_a_table(profiled: tuple[Path, pa.Table, str]) -> None:
    folder, _, output = profiled
    head, *lines, last, _ = output.splitlines()
    found = load_statistics(str(folder))
    assert head.split()[:3] == ["feature", "table", "rows"]
    shown = [line.split() for line in lines]
    assert [cells[:5] for cells in shown] == [
        ["user", "1,000,000", "71,021", "7.1%", "1.00"],
        ["history", "50", "50", "100.0%", f"{found['history'].pooling_factor:.2f}"],
        ["shop", "30", "30", "100.0%", "1.00"],
    ]
    assert shown[0][5:] == ["0.0%", "0.1%", "14.1%", "0.0%"]  # every user once
    assert shown[1][5:] == [f"{found['history'].top_mass[0][1]:.1%}", "100.0%", "100.0%", "99.9%"]
    assert last == f"71,021 rows of split 'train'; statistics are in {folder}/dataset.json"


def test_profiling_twice_gives_the_same_file(profiled: tuple[Path, pa.Table, str]) -> None:
    folder, _, _ = profiled
    before = (folder / "dataset.json").read_bytes()
    main(str(folder))
    assert (folder / "dataset.json").read_bytes() == before


def test_another_split(tmp_path: Path) -> None:
    write_folder(tmp_path, [[30]])
    manifest = Manifest.load(str(tmp_path))
    other = write_file(tmp_path / "other.parquet", [11], first=100)
    file = replace(manifest.splits["train"].files[0], path="other.parquet", rows=11)
    splits = {**manifest.splits, "val": replace(manifest.splits["train"], files=(file,))}
    replace(manifest, splits=splits).save(str(tmp_path))
    main(str(tmp_path), split="val")
    assert load_statistics(str(tmp_path)) == {name: reference(bags) for name, bags in columns_of(other).items()}


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("user", -1, "must hold ids in [0, 1000000), those of its table: got -1; prepare"),
        ("history", [3, 50], "must hold ids in [0, 50), those of its table: got 50; prepare"),
        ("shop", None, "must have no nulls: got 1; fill them"),
        ("history", None, "must have no nulls: got 1; fill them"),
        ("history", [3, None], "must have no nulls: got 1; fill them"),
    ],
)
def test_a_bad_value_is_named_and_nothing_written(tmp_path: Path, name: str, value: object, rule: str) -> None:
    table = make_table(20)
    values = table[name].to_pylist()
    values[13] = value
    table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, table[name].type))
    pq.write_table(table, tmp_path / "part.parquet", row_group_size=10)
    write_manifest(tmp_path, {"part.parquet": 20})
    before = (tmp_path / "dataset.json").read_bytes()
    with pytest.raises(ValueError, match=re.escape(f"column {name!r} of {tmp_path}/part.parquet, row group 1 {rule}")):
        main(str(tmp_path))
    assert (tmp_path / "dataset.json").read_bytes() == before


def test_a_file_of_other_rows_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[10]])
    write_manifest(tmp_path, {"part-0.parquet": 11})
    with pytest.raises(ValueError, match=r"part-0\.parquet must have the 11 rows of its manifest: got 10; prepare it"):
        main(str(tmp_path))


@pytest.mark.parametrize("split", ["val", "test"])
def test_command_refuses_a_split_without_rows(
    tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path, {}, split="val")
    monkeypatch.setattr(sys, "argv", ["profile", str(tmp_path), "--split", split])
    monkeypatch.delitem(sys.modules, "dlrm_torchrec.datasets.profile")  # or runpy warns that it runs it again
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("dlrm_torchrec.datasets.profile", run_name="__main__")
    wanted = f"error: split must be one of {tmp_path} that has rows: got {split!r} of {{'val': 0}}; name another"
    assert stop.value.code == wanted
    assert capsys.readouterr().out == ""


def test_events_of_histories_are_counted_for_tables_but_not_profiled(tmp_path: Path) -> None:
    log = random_log(6)
    manifest = write_log(tmp_path / "data", log)
    tables = {table.features[0]: table for table in manifest.spec.tables(dim=1)}
    for name in ("song", "country"):
        found = lookups_of_ids(manifest, str(tmp_path / "data"), tables[name])
        ids = log.events[name] if name in log.events else log.users[name]
        assert found.tolist() == np.bincount(ids, minlength=tables[name].rows).tolist()
    with pytest.raises(ValueError, match=r"ids of table .* must lie in files .*got those of cross 'song"):
        lookups_of_ids(manifest, str(tmp_path / "data"), tables["song x hour"])
    with pytest.raises(ValueError, match=r"profiled data must have rows: got the histories of users in .*data; leave"):
        main(str(tmp_path / "data"))


def test_data_without_a_profile_has_no_statistics(tmp_path: Path) -> None:
    write_folder(tmp_path, [[10]])
    assert load_statistics("synthetic") == {}
    assert load_statistics(str(tmp_path)) == {}
    Manifest.load(str(tmp_path)).save(str(tmp_path))
    assert "statistics" not in json.loads((tmp_path / "dataset.json").read_text())


GOOD = AccessStatistics(
    samples=4, lookups=9, distinct=3, top_mass=((1, 6 / 9),), reuse=0.5, histogram=((1, 1), (1, 2), (1, 6))
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": None}, "'NoneType' object cannot be interpreted as an integer"),
        ({"samples": 2.5}, "'float' object cannot be interpreted as an integer"),
        ({"samples": 0}, "must cover at least 1 row and have shares in [0, 1]: got 0 rows"),
        ({"reuse": 1.5}, "must cover at least 1 row and have shares in [0, 1]: got 4 rows and [0.6"),
        ({"reuse": "all"}, "not supported between instances of 'int' and 'str'"),
        ({"top_mass": [[1, -0.1]]}, "shares in [0, 1]: got 4 rows and [-0.1, 0.5]"),
        ({"top_mass": [[1]]}, "not enough values to unpack"),
        ({"top_mass": 3}, "'int' object is not iterable"),
        ({"lookups": 8}, "histogram must hold all 3 distinct ids and 8 lookups: got 3 and 9; profile"),
        ({"distinct": 4}, "histogram must hold all 4 distinct ids and 9 lookups: got 3 and 9; profile"),
        ({"histogram": [[3, 9]]}, "ids of histogram entry 0 must have 1 to 1 lookups each: got 3 ids with 9; profile"),
        ({"histogram": [[2, 2], [1, 7]]}, "entry 1 must have 2 to 3 lookups each: got 1 ids with 7; profile"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
    ],
)
def test_malformed_statistics_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_folder(tmp_path, [[10]])
    replace(Manifest.load(str(tmp_path)), statistics={"user": GOOD}).save(str(tmp_path))
    assert load_statistics(str(tmp_path)) == {"user": GOOD}
    data = json.loads((tmp_path / "dataset.json").read_text())
    data["statistics"]["user"] |= change
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_statistics(str(tmp_path))
    assert "access statistics must be as this version writes them" in str(error.value)


@pytest.mark.parametrize("statistics", [[], 3, {"user": 3}, {"user": {}}])
def test_statistics_of_another_form_are_refused(tmp_path: Path, statistics: object) -> None:
    write_folder(tmp_path, [[10]])
    data = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(data | {"statistics": statistics}))
    with pytest.raises(ValueError, match=r"dataset\.json must be a manifest that this version reads: got "):
        Manifest.load(str(tmp_path))

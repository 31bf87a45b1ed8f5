"""Deltas on disk: exactly what changed, and a chain of them is the full package bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dlrm_torchrec.inference.deltas.changes import changed_rows, changed_values, with_rows, with_values
from dlrm_torchrec.inference.deltas.delta import Delta, DeltaError
from dlrm_torchrec.inference.deltas.offline import apply_deltas, make_delta
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.program import program_bytes
from tests.inference.deltas.evolving import Evolving

DAYS = 7


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages 0 to DAYS of a model, and the delta that makes each one of its predecessor."""
    folder, model = tmp_path_factory.mktemp("days"), Evolving(5)
    model.write(folder / "0")
    for day in range(1, DAYS + 1):
        model.next_day()
        model.write(folder / str(day))
        make_delta(folder / str(day - 1), folder / str(day), folder / f"delta-{day}")
    return folder


@pytest.mark.parametrize(("first", "last"), [(0, DAYS), (0, 1), (3, 6)])
def test_a_chain_of_deltas_is_the_full_package_bit_for_bit(days: Path, tmp_path: Path, first: int, last: int) -> None:
    deltas = [days / f"delta-{day}" for day in range(first + 1, last + 1)]
    apply_deltas(days / str(first), deltas, tmp_path / "package")
    assert files(tmp_path / "package") == files(days / str(last))
    assert Predictor.load(tmp_path / "package").manifest["window"] == f"day {last}"


def test_a_delta_holds_what_changed_and_nothing_else(days: Path) -> None:
    for day in range(1, DAYS + 1):
        old, new = Predictor.load(days / str(day - 1)), Predictor.load(days / str(day))
        delta = Delta.read(days / f"delta-{day}")
        for name in new.manifest["tables"]:
            before, after = (np.load(days / str(d) / new.manifest["tables"][name]["file"]) for d in (day - 1, day))
            expected = [
                row for row in range(len(after)) if row >= len(before) or before[row].tobytes() != after[row].tobytes()
            ]
            found = delta.rows(name)[0].tolist() if name in delta.facts["tables"] else []
            assert found == expected
        assert delta.facts["whole"] == ["model.pt"]
        assert (delta.predecessor, delta.result) == (old.manifest["fingerprint"], new.manifest["fingerprint"])


def test_a_program_has_the_same_bytes_each_time() -> None:
    """TorchScript numbers classes by what it compiled before, and simplifies frozen programs more or less."""
    model = Evolving(3)
    assert len({program_bytes(model.program()) for _ in range(12)}) == 1


def test_a_package_has_the_same_bytes_each_time_and_its_fingerprint_tells_its_contents(tmp_path: Path) -> None:
    once = files(Evolving(1).write(tmp_path / "once"))
    again = Evolving(1)
    assert files(again.write(tmp_path / "again")) == once
    again.rows["shop"][3, 2] += 1
    again.write(tmp_path / "other")
    told = [json.loads((tmp_path / name / "package.json").read_text()) for name in ("once", "other")]
    assert told[0]["fingerprint"] != told[1]["fingerprint"]
    assert told[0] | {"fingerprint": "", "files": {}} == told[1] | {"fingerprint": "", "files": {}}


@pytest.mark.parametrize("seed", range(30))
def test_changes_of_rows_and_values_are_those_of_a_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    kind = random.choice(["u1", "i2", "i8"])
    shape = tuple(random.integers(1, 70, random.integers(2)).tolist())
    lengths = random.integers(0, 60, 2)
    old, fresh = (random.integers(0, 2, (length, *shape)).astype(kind) for length in lengths)
    new, some = fresh.copy(), random.random(min(lengths)) < random.random()
    new[: len(some)][some] = old[: len(some)][some]
    expected = [i for i in range(len(new)) if i >= len(old) or old[i].tobytes() != new[i].tobytes()]
    numbers = changed_rows(old, new)
    assert numbers.tolist() == expected
    assert np.array_equal(with_rows(old, numbers, new[numbers], len(new)), new)

    texts = random.random() < 0.5, random.random() < 0.5
    values = [
        pa.array([None if i > 34 else f"{i}" if i < 9 else f"t{i}" for i in random.permutation(40)[:20]], pa.string())
        if is_text
        else pa.array([None if i > 25 else i for i in random.permutation(30)[:25]], pa.int64())
        for is_text in texts
    ]
    before, after = (each.cast(pa.string()).to_pylist() for each in values)
    places = changed_values(*values)
    assert places.tolist() == [i for i in range(len(after)) if i >= len(before) or before[i] != after[i]]
    assert with_values(values[0], places, values[1].take(places), len(after)).equals(values[1])


@pytest.mark.parametrize(
    ("package", "deltas", "message"),
    [
        (0, [2], "delta must follow version 0: got version 2; apply every version once and in order"),
        (0, [1, 1], "delta must be new: got version 1, which this package has already; leave it out"),
        (0, [1, 2, 1], "delta must follow version 2: got version 1; apply every version once and in order"),
        (
            "other",
            [1],
            "delta must be made from package [0-9a-f]{32}: got one from [0-9a-f]{32}, whose base is [0-9a-f]{32}; take",
        ),
    ],
)
def test_a_delta_that_does_not_follow_is_refused(
    days: Path, tmp_path: Path, package: int | str, deltas: list[int], message: str
) -> None:
    Evolving(6).write(days / "other")
    with pytest.raises(DeltaError, match=message):
        apply_deltas(days / str(package), [days / f"delta-{day}" for day in deltas], tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda delta: damage(delta / "tables/word.rows.npy"), "word.rows.npy must have sha256 .*: got .*; copy"),
        (lambda delta: damage(delta / "whole/model.pt"), "model.pt must have sha256"),
        (lambda delta: (delta / "vocab/word.parquet").unlink(), "word.parquet must have sha256 .*: got no file"),
        (lambda delta: (delta / "delta.json").write_text("{"), "must hold a delta.json: got JSONDecodeError"),
        (lambda delta: (delta / "delta.json").write_text('{"format": 2}'), "format of delta .* must be 1: got 2; make"),
        (
            lambda delta: (delta / "delta.json").write_text('{"format": 1}'),
            "version in .* must be of type int: got Non",
        ),
        (lambda delta: shutil.rmtree(delta), "must hold a delta.json: got FileNotFoundError.*; name a delta's folder"),
    ],
)
def test_a_damaged_delta_is_refused(days: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    shutil.copytree(days / "delta-1", tmp_path / "delta")
    spoil(tmp_path / "delta")
    with pytest.raises(DeltaError, match=message):
        apply_deltas(days / "0", [tmp_path / "delta"], tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_packages_of_another_layout_have_no_delta(days: Path, tmp_path: Path) -> None:
    for name, change in (("layout", {"tables": {}}), ("old", {"format": 2, "fingerprint": ""})):
        shutil.copytree(days / "0", tmp_path / name)
        manifest = json.loads((tmp_path / name / "package.json").read_text())
        (tmp_path / name / "package.json").write_text(json.dumps(manifest | change))
    with pytest.raises(ValueError, match=r"packages of a delta must have the same tables .*: got \['coded', .*; publi"):
        make_delta(days / "0", tmp_path / "layout", tmp_path / "delta")
    with pytest.raises(ValueError, match=r"format of package .* must be 3 to have deltas: got 2; write the package ag"):
        make_delta(days / "0", tmp_path / "old", tmp_path / "delta")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"must be a delta or not exist: got .*; name another folder"):
        make_delta(days / "0", days / "1", tmp_path / "file")
    with pytest.raises(ValueError, match=r"must be a package or not exist: got .*; name another folder"):
        apply_deltas(days / "0", [], tmp_path / "file")
    with pytest.raises(ValueError, match=r"rows of a table must keep their type: got uint8 \(4,\) after uint8 \(3,\)"):
        changed_rows(np.zeros((2, 3), np.uint8), np.zeros((2, 4), np.uint8))

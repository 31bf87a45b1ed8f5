"""Multi-hot synthesis: MLPerf's numbers, the same bags on the fly and materialised, on any ranks, after any resume."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray

from dlrm_torchrec.datasets.criteo import MULTI_HOT_SIZES, criteo_1tb_spec
from dlrm_torchrec.datasets.multi_hot import main
from dlrm_torchrec.datasets.numpy_columns import IdLists
from dlrm_torchrec.datasets.open import load_spec, open_streams
from dlrm_torchrec.datasets.prepared import expand
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from dlrm_torchrec.datasets.prepared.synthesis import Distribution, Generator, MultiHot
from dlrm_torchrec.datasets.profile import main as profile
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.traces.stack_distances import measure
from dlrm_torchrec.traces.trace import generate
from dlrm_torchrec.traces.trace_profile import FeatureProfile, save
from tests.datasets.batches import concatenate, rows_of
from tests.datasets.prepared_files import SPEC, make_table, write_folder, write_manifest
from tests.elsewhere import Elsewhere
from tests.recipe import ROOT, run_recipe

GENERATORS: tuple[Generator, ...] = ("counter", "mt19937")
DISTRIBUTIONS: tuple[Distribution, ...] = ("uniform", "pareto")
SIZES = (3, 1, 5)  # of user, history (lists of their own), shop
GROUPS = [[40, 0, 7], [], [30, 1]]


def one_hot_spec(*rows: int) -> DatasetSpec:
    sparse = tuple(SparseFeature(name=f"f{index}", rows=count) for index, count in enumerate(rows))
    return DatasetSpec(name="ids", label="click", dense=(), sparse=sparse)


def bags_of(multi_hot: MultiHot, spec: DatasetSpec, folder: Path) -> list[NDArray[Any]]:
    """The bags of all ids 0, 1, 2, ... of every feature: (rows, size) each."""
    if multi_hot.generator == "mt19937":
        expand.write_tables(multi_hot, spec.sparse, str(folder))
    expander = expand.Expander(Manifest(spec=multi_hot.applied(spec), splits={}, multi_hot=multi_hot), str(folder))
    found = []
    for feature in spec.sparse:
        bags = expander.bags(feature.name, IdLists(np.arange(feature.rows)))
        size = multi_hot.sizes.get(feature.name, 1)
        assert bags.lengths.tolist() == [size] * feature.rows
        found.append(bags.values.reshape(-1, size))
    return found


def reference(rows: list[int], sizes: list[int], distribution: str) -> list[NDArray[Any]]:
    """MLPerf's tables restated: one generator from seed 0, feature after feature, the id itself first."""
    np.random.seed(0)
    tables = []
    for count, size in zip(rows, sizes, strict=True):
        if distribution == "uniform":
            added = np.random.randint(0, count, size=(count, size - 1))
        else:
            drawn = np.random.pareto(a=0.25, size=(count, size - 1))
            added = np.array([[to_int32(x) % count for x in row] for row in drawn.tolist()]).reshape(count, size - 1)
        tables.append(np.concatenate([np.arange(count)[:, None], added], axis=1).astype(np.int64))
    return tables


def to_int32(x: float) -> int:
    """What x86 makes of a float that is cast to int32."""
    return int(x) if x < 2**31 else -(2**31)


def test_mt19937_gives_the_numbers_of_the_reference_by_hand(tmp_path: Path) -> None:
    multi_hot = MultiHot(sizes={"f0": 3, "f2": 2}, generator="mt19937")
    f0, f1, f2 = bags_of(multi_hot, one_hot_spec(5, 9, 3), tmp_path)
    # numpy.random.seed(0); randint(0, 5, (5, 2)), then randint(0, 3, (3, 1)): the words of MT19937, cut to as many
    # bits as the largest id has, and drawn again when they exceed it
    assert f0.tolist() == [[0, 4, 0], [1, 3, 3], [2, 3, 1], [3, 3, 2], [4, 4, 0]]
    assert f1.tolist() == [[id_] for id_ in range(9)]  # of size 1: draws nothing
    assert f2.tolist() == [[0, 0], [1, 0], [2, 2]]
    words = iter(np.random.RandomState(0).randint(0, 1 << 32, 100, dtype=np.uint64).tolist())
    drawn = [word & 7 for word in itertools.islice(words, 12 + 5)]
    assert f0[:, 1:].ravel().tolist() == [id_ for id_ in drawn if id_ < 5][:10]


@pytest.mark.parametrize("block", [1 << 20, 50, 1])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mt19937_is_numpy_seeded_once_and_drawn_feature_by_feature(
    tmp_path: Path, distribution: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expand, "_BLOCK_IDS", block)
    rows, sizes = [1000, 39_060, 3, 7, 1, 63], [4, 2, 1, 12, 3, 1]
    wanted = reference(rows, sizes, distribution)
    named = {f"f{index}": size for index, size in enumerate(sizes) if size > 1}
    multi_hot = MultiHot(sizes=named, distribution=distribution, generator="mt19937")
    for found, table in zip(bags_of(multi_hot, one_hot_spec(*rows), tmp_path), wanted, strict=True):
        np.testing.assert_array_equal(found, table)
    if distribution == "pareto":
        overflown = wanted[1][:, 1:] == -(2**31) % 39_060
        assert 0.003 < overflown.mean() < 0.007


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_counter_is_a_function_of_seed_feature_and_id(tmp_path: Path, distribution: Any, seed: int) -> None:
    rows, sizes = [40, 3000], {"f0": 7, "f1": 3}
    multi_hot = MultiHot(sizes=sizes, distribution=distribution, seed=seed)
    for index, found in enumerate(bags_of(multi_hot, one_hot_spec(*rows), tmp_path)):
        key = counter.words(counter.words(0, seed), index)
        size = sizes[f"f{index}"]
        for id_, position in itertools.product(range(0, rows[index], 7), range(1, size)):
            u = counter.uniforms(counter.words(key, id_ * size + position)).item()
            drawn = int(u * rows[index])
            if distribution == "pareto":
                drawn = to_int32(1 / ((1 - u) * (1 - u)) ** 2 - 1) % rows[index]
            assert found[id_, position] == drawn
        assert (found[:, 0] == np.arange(rows[index])).all()


def test_distributions_of_the_two_generators_agree(tmp_path: Path) -> None:
    rows, draws = 1000, 1000 * 199
    for distribution in DISTRIBUTIONS:
        shares = []
        for generator in GENERATORS:
            multi_hot = MultiHot(sizes={"f0": 200}, distribution=distribution, generator=generator)
            (found,) = bags_of(multi_hot, one_hot_spec(rows), tmp_path)
            shares.append(np.bincount(found[:, 1:].ravel(), minlength=rows) / draws)
        if distribution == "uniform":
            expected = np.full(rows, 1 / rows)
        else:  # the mass of floor(x) = id + k * rows: exact for k < 100, then nearly even up to the overflow
            survival = (1.0 + np.arange(100 * rows + 1)) ** -0.25
            overflow = (1 + 2.0**31) ** -0.25
            expected = -np.diff(survival).reshape(100, rows).sum(axis=0) + (survival[-1] - overflow) / rows
            expected[-(2**31) % rows] += overflow
        assert expected.sum() == pytest.approx(1)
        for share in shares:
            # Pearson's statistic has mean rows - 1 and variance 2 (rows - 1)
            chi2 = (draws * (share - expected) ** 2 / expected).sum()
            assert abs(chi2 - rows) < 6 * (2 * rows) ** 0.5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One prepared folder in odd row groups, and every way to make it multi-hot."""
    root = tmp_path_factory.mktemp("multi-hot")
    made = {"one-hot": root / "one-hot"}
    made["one-hot"].mkdir()
    write_folder(made["one-hot"], GROUPS)
    for generator, distribution, materialize in itertools.product(GENERATORS, DISTRIBUTIONS, (False, True)):
        name = f"{generator}-{distribution}-{'materialized' if materialize else 'read'}"
        made[name] = root / name
        main(
            str(made["one-hot"]),
            str(made[name]),
            sizes=SIZES,
            generator=generator,
            distribution=distribution,
            materialize=materialize,
        )
    return made


def steps(folder: Path | str, world_size: int, *, shuffle: bool, start: int = 0, lanes: int = 1) -> list[list[Any]]:
    """Per global batch the rows of all ranks, in rank order."""
    shares = [
        ParquetStream(
            str(folder),
            "train",
            global_batch_size=12,
            rank=rank,
            world_size=world_size,
            seed=3,
            shuffle=shuffle,
            epochs=2,
            lanes=lanes,
        ).batches(start)
        for rank in range(world_size)
    ]
    return [rows_of(batches) for batches in zip(*shares, strict=True)]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_the_same_batches_on_the_fly_and_materialized(
    folders: dict[str, Path], generator: str, distribution: str
) -> None:
    read, materialized = (folders[f"{generator}-{distribution}-{way}"] for way in ("read", "materialized"))
    assert load_spec(str(read), SPEC) == load_spec(str(materialized), SPEC)
    for shuffle, lanes in ((False, 1), (True, 3)):
        expected = steps(read, 1, shuffle=shuffle, lanes=lanes)
        plain = steps(folders["one-hot"], 1, shuffle=shuffle, lanes=lanes)
        assert len(expected) == 2 * 7
        for wanted, rows in zip(expected, plain, strict=True):  # the same rows, with longer bags
            for (label, dense, (user, history, shop)), row in zip(wanted, rows, strict=True):
                assert (label, dense, (user[:1], history, shop[:1])) == row
                assert (len(user), len(shop)) == (3, 5)
        for world_size in (1, 2, 3):
            assert steps(materialized, world_size, shuffle=shuffle, lanes=lanes) == expected
            assert steps(read, world_size, shuffle=shuffle, lanes=lanes) == expected
        for start in (1, 6, 7, 10):  # in either epoch, and between them
            assert steps(read, 3, shuffle=shuffle, lanes=lanes, start=start) == expected[start:]
            assert steps(materialized, 2, shuffle=shuffle, lanes=lanes, start=start) == expected[start:]


def test_bags_are_those_of_the_reference(folders: dict[str, Path]) -> None:
    user, shop = reference([1_000_000, 30], [3, 5], "uniform")
    stream = ParquetStream(str(folders["mt19937-uniform-read"]), "train", global_batch_size=78, shuffle=False)
    columns = concatenate(stream.batches())
    raw = pa.concat_tables(pq.read_table(path) for path in sorted(folders["one-hot"].glob("*.parquet")))
    assert columns.sparse[0] == user[raw["user"].to_numpy()].tolist()
    assert columns.sparse[1] == raw["history"].to_pylist()
    assert columns.sparse[2] == shop[raw["shop"].to_numpy()].tolist()


def test_materialized_files_mirror_those_they_are_made_of(folders: dict[str, Path]) -> None:
    folder = folders["mt19937-uniform-materialized"]
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "train"]  # no tables
    manifest = Manifest.load(str(folder))
    assert manifest.multi_hot is None
    for number, file in enumerate(manifest.splits["train"].files):
        made, source = folder / file.path, folders["one-hot"] / f"part-{number}.parquet"
        assert file.sha256 == hashlib.sha256(made.read_bytes()).hexdigest()
        found, wanted = pq.ParquetFile(made), pq.ParquetFile(source)
        groups = [wanted.metadata.row_group(group).num_rows for group in range(wanted.num_row_groups)]
        assert [found.metadata.row_group(group).num_rows for group in range(found.num_row_groups)] == groups
        kept = ["click", "price", "history", "age"]
        assert found.read(kept).equals(wanted.read(kept))
        assert found.schema_arrow.field("user").type == pa.list_(pa.field("element", pa.int32(), nullable=False))


def test_statistics_are_those_of_the_bags(tmp_path: Path) -> None:
    source = tmp_path / "one"
    source.mkdir()
    write_folder(source, GROUPS)
    profile(str(source))
    for name, materialize in (("read", False), ("materialized", True)):
        main(str(source), str(tmp_path / name), sizes=SIZES, materialize=materialize)
        assert Manifest.load(str(tmp_path / name)).statistics == {}  # the source's are of one-hot ids
        profile(str(tmp_path / name))
    read, materialized = (Manifest.load(str(tmp_path / name)) for name in ("read", "materialized"))
    assert read.statistics == materialized.statistics
    assert read.statistics["shop"].pooling_factor == 5
    assert read.multi_hot == MultiHot(sizes={"user": 3, "shop": 5})


def test_a_folder_may_move_with_what_it_reads(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a" / "source").mkdir(parents=True)
    write_folder(tmp_path / "a" / "source", GROUPS)
    main(str(tmp_path / "a" / "source"), str(tmp_path / "a" / "b" / "made"), sizes=SIZES)
    expected = steps(tmp_path / "a" / "b" / "made", 1, shuffle=True)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert steps(tmp_path / "elsewhere" / "b" / "made", 1, shuffle=True) == expected
    assert steps(folders["counter-uniform-read"], 1, shuffle=True) == expected


class Store(Elsewhere):
    """A store whose handler can also bring a file to the local disk, as those of iopath can."""

    def _get_local_path(self, path: str, force: bool = False, **_: object) -> str:  # noqa: ARG002  # iopath's
        return str(self._path(path))


@pytest.mark.parametrize("generator", GENERATORS)
def test_folders_of_a_store(folders: dict[str, Path], tmp_path: Path, generator: Any) -> None:
    g_pathmgr.register_handler(Store(tmp_path), allow_override=True)
    (tmp_path / "one").mkdir()
    write_folder(tmp_path / "one", GROUPS)
    expected = steps(folders[f"{generator}-uniform-read"], 1, shuffle=True)
    outputs = [(f"elsewhere://{way}", way == "lists") for way in ("read", "lists")]
    for output, materialize in [*outputs, (str(tmp_path / "local"), False)]:
        main("elsewhere://one", output, sizes=SIZES, generator=generator, materialize=materialize)
        assert steps(output, 1, shuffle=True) == expected
    files = Manifest.load(str(tmp_path / "local")).splits["train"].files
    assert [file.path for file in files] == [f"elsewhere://one/part-{number}.parquet" for number in range(3)]


def test_recipes_take_the_folder_by_data(folders: dict[str, Path], tmp_path: Path) -> None:
    manifest = Manifest.load(str(folders["one-hot"]))
    whole = manifest.splits["train"]
    placed = replace(whole, files=tuple(replace(f, path=f"{folders['one-hot']}/{f.path}") for f in whole.files))
    replace(manifest, splits={"train": placed, "val": placed}).save(str(tmp_path / "one"))
    main(str(tmp_path / "one"), str(tmp_path / "made"), sizes=SIZES)
    spec = load_spec(str(tmp_path / "made"), SPEC)
    assert [(f.multi_hot, f.pooling_factor) for f in spec.sparse] == [(True, 3), (True, 1), (True, 5)]
    streams = open_streams(str(tmp_path / "made"), spec, Ranks(12, 0, 1), rows=0, epochs=1, seed=0, lanes=1)
    for split in ("train", "val"):
        batch = next(streams[split].batches())
        assert set(batch.sparse_features["shop"].lengths().tolist()) == {5}


def test_mlperf_sizes_are_the_default_for_criteo(tmp_path: Path) -> None:
    spec = criteo_1tb_spec()
    columns = {f.name: pa.array([f.rows - 1, 0], pa.int32()) for f in spec.sparse}
    columns |= {name: pa.array([0.0, 1.0], pa.float32()) for name in ("label", *(f.name for f in spec.dense))}
    (tmp_path / "one").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "one" / "part.parquet")
    write_manifest(tmp_path / "one", {"part.parquet": 2}, spec)
    main(str(tmp_path / "one"), str(tmp_path / "made"))
    made = load_spec(str(tmp_path / "made"), spec)
    assert [f.pooling_factor for f in made.sparse] == list(MULTI_HOT_SIZES)
    assert [f.multi_hot for f in made.sparse] == [size > 1 for size in MULTI_HOT_SIZES]
    stream = ParquetStream(str(tmp_path / "made"), "train", global_batch_size=2, shuffle=False)
    (batch,) = stream.batches()
    assert len(batch.sparse_features.values()) == 2 * 214
    for feature in spec.sparse:
        ids = batch.sparse_features[feature.name].values()
        assert int(ids.min()) >= 0
        assert int(ids.max()) < feature.rows


def test_command_says_what_it_made_and_does_not_wait_for_torch(folders: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "dlrm_torchrec.datasets.multi_hot", str(folders["one-hot"])]
    command += ["--output", str(tmp_path / "made"), "--sizes", "3", "1", "5", "--materialize"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/made: 78 rows, 9 ids in each\n"
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"error: output must be a folder without a dataset.json: got {tmp_path}/made; remove it" in done.stderr


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((), "--sizes must be one number of ids, at least 1, per sparse feature user, history, shop: got []; give 1"),
        ((3, 2), "got [3, 2]; give 1 to features that stay one-hot"),
        ((3, 0, 2), "got [3, 0, 2]; give 1 to features that stay one-hot"),
        ((1, 1, 1), "multi-hot sizes must be at least 2: got none; leave out the features that stay one-hot"),
        ((1, 2, 1), "must be one-hot in spec 'small': got ['history']; correct the sizes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    folders: dict[str, Path], tmp_path: Path, sizes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        main(str(folders["one-hot"]), str(tmp_path / "made"), sizes=sizes)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": {"user": 3, "shop": 1}}, "multi-hot sizes must be at least 2: got {'shop': 1}; leave out"),
        ({"sizes": {"user": 3, "other": 2}}, "must be multi-hot in spec 'small-multi-hot': got ['other']; correct"),
        ({"distribution": "zipf"}, "multi-hot distribution must be one of ('uniform', 'pareto'): got 'zipf'; choose"),
        ({"generator": "x"}, "multi-hot generator must be one of ('counter', 'mt19937'): got 'x'; choose"),
        ({"seed": -1}, "multi-hot seed must be in [0, 2^32): got -1; MLPerf's is 0"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
    ],
)
def test_a_malformed_entry_is_refused(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    data = json.loads((folders["counter-uniform-read"] / "dataset.json").read_text())
    data["multi_hot"] |= change
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=re.escape(message)):
        ParquetStream(str(tmp_path), "train", global_batch_size=12, shuffle=False)


def test_a_table_of_too_many_rows_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"multi-hot data must have at most 2147483648 rows: got \{'f0': 2147483649\}; hash them"
    ):
        MultiHot(sizes={"f1": 2}).applied(one_hot_spec(2**31 + 1, 5))


def test_a_table_of_another_shape_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    main(str(folders["one-hot"]), str(tmp_path / "made"), sizes=SIZES, generator="mt19937")
    np.save(tmp_path / "made" / "multi-hot-shop.npy", np.zeros((30, 3), np.int32))
    with pytest.raises(ValueError, match=r"multi-hot-shop\.npy must be 30 x 4: got \(30, 3\); make the folder again"):
        ParquetStream(str(tmp_path / "made"), "train", global_batch_size=12, shuffle=False)


def made_and_read(one_hot: str, made: str, materialize: bool) -> None:
    main(one_hot, made, sizes=SIZES, materialize=materialize)
    list(ParquetStream(made, "train", global_batch_size=10, shuffle=False).batches())


@pytest.mark.parametrize("materialize", [False, True])
def test_ids_outside_the_table_are_named(tmp_path: Path, materialize: bool) -> None:
    table = make_table(20)
    values = table["shop"].to_pylist()
    values[13] = 30
    table = table.set_column(table.schema.get_field_index("shop"), "shop", pa.array(values, pa.int8()))
    (tmp_path / "one").mkdir()
    pq.write_table(table, tmp_path / "one" / "part.parquet", row_group_size=10)
    write_manifest(tmp_path / "one", {"part.parquet": 20})
    made = str(tmp_path / "made")
    with pytest.raises(ValueError, match=r"row group 1 must hold ids in \[0, 30\), those of its table: got 30"):
        made_and_read(str(tmp_path / "one"), made, materialize)
    assert not list(tmp_path.glob("made/train/*"))  # no half file


@pytest.mark.slow
def test_dcnv2_trains_alike_on_the_fly_and_materialized_and_on_two_ranks(tmp_path: Path) -> None:
    ids = [measure([Zipf(rows, 1.2).ids(np.random.default_rng(0).random(20_000))], rows) for rows in (100, 20_000)]
    features = [
        FeatureProfile(name=f"f{profile.distinct}", rows=30_000, pooling_factor=1.0, profile=profile) for profile in ids
    ]
    save(features, str(tmp_path / "profile.json"))
    generate(str(tmp_path / "profile.json"), str(tmp_path / "one"), rows=60_000)
    found = []
    for materialize, world_size in ((False, 1), (True, 1), (False, 2)):
        made = str(tmp_path / f"made-{materialize}-{world_size}")
        main(str(tmp_path / "one"), made, sizes=(3, 8), materialize=materialize)
        arguments = ["demo", "--data", made, "--batch-size", "1024", "--run-dir", f"{made}-run"]
        found.append(run_recipe("train_dcnv2", arguments, world_size=world_size))
    assert found[0]["val/auc"] > 0.80  # of 5 / 6
    assert found[0]["val/auc"] == found[1]["val/auc"]
    assert found[0]["val/auc"] == pytest.approx(found[2]["val/auc"], abs=0.003)

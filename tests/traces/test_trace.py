"""Traces: stack distances against a plain stack, ids that have the given profile exactly, published histograms met."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from dlrm_torchrec.datasets.open import load_spec, open_streams
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from dlrm_torchrec.datasets.random.counter import derived_key
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.traces import trace_profile
from dlrm_torchrec.traces.lru import LruStack
from dlrm_torchrec.traces.reuse_profile import ReuseProfile, ReuseTrace, read_locality_stats
from dlrm_torchrec.traces.stack_distances import StackProfile, StackTrace, bin_of, measure
from dlrm_torchrec.traces.trace import fit, generate, histogram
from dlrm_torchrec.traces.trace_profile import FeatureProfile
from tests.datasets.batches import concatenate
from tests.datasets.prepared_files import SPEC, write_folder
from tests.recipe import ROOT

PUBLISHED = ROOT.parent / "shared" / "data" / "embedding_traces"
KEY = derived_key(5)


def plain_distances(ids: Sequence[int]) -> list[int]:
    """Stack distances from a list that is searched from its end."""
    stack: list[int] = []
    found = []
    for id_ in ids:
        if id_ in stack:
            place = stack.index(id_)
            found.append(len(stack) - place)
            del stack[place]
        else:
            found.append(0)
        stack.append(id_)
    return found


def zipf_ids(rows: int, count: int, seed: int = 0) -> NDArray[np.int64]:
    return Zipf(rows, 1.2).ids(np.random.default_rng(seed).random(count))


def pieces(ids: NDArray[Any], number: int) -> list[NDArray[Any]]:
    """Cut at random places, so that some pieces are empty."""
    return np.split(ids, np.sort(np.random.default_rng(number).integers(0, len(ids) + 1, number - 1)))


@pytest.mark.parametrize(("rows", "count"), [(1, 50), (40, 9_000), (700, 12_000), (100_000, 6_000)])
def test_stack_distances_equal_those_of_a_plain_stack(rows: int, count: int) -> None:
    ids = zipf_ids(rows, count)
    expected = plain_distances(ids.tolist())
    for number in (1, 7):
        stack = LruStack(rows)
        found = [stack.distances(piece.astype(np.int32)) for piece in pieces(ids, number)]
        assert np.concatenate(found).tolist() == expected


@pytest.mark.parametrize(("rows", "count"), [(1, 50), (40, 9_000), (700, 12_000), (100_000, 200_000)])
def test_ids_of_stack_distances_are_the_inverse(rows: int, count: int) -> None:
    ids = zipf_ids(rows, count).astype(np.int32)
    distances = LruStack(rows).distances(ids)
    numbers: dict[int, int] = {}
    expected = [numbers.setdefault(id_, len(numbers)) for id_ in ids.tolist()]  # in the order of their first lookups
    for number in (1, 7):
        stack = LruStack(len(numbers))
        found = [stack.ids(piece) for piece in pieces(distances, number)]
        assert np.concatenate(found).tolist() == expected


def test_bins_hold_a_sixteenth_of_their_distances() -> None:
    distances = np.concatenate([np.arange(1 << 16), 2 ** np.arange(16, 31), 2 ** np.arange(17, 32) - 1])
    bins = bin_of(distances)
    assert bins[:33].tolist() == [*range(32), 32]
    assert (np.diff(bins[np.argsort(distances)]) >= 0).all()
    for bin_ in np.unique(bins[: 1 << 16]):
        members = distances[: 1 << 16][bins[: 1 << 16] == bin_]
        assert members[-1] - members[0] + 1 == len(members)  # without a gap
        assert len(members) == 1 or len(members) <= members[0] / 16
    assert bins.max() < (32 - 4) << 4


def test_the_profile_counts_distances_by_bin() -> None:
    ids = zipf_ids(3_000, 8_000)
    distances = np.array(plain_distances(ids.tolist()))
    expected = np.bincount(bin_of(distances))
    found = measure(pieces(ids, 5), 3_000)
    assert found == StackProfile(tuple(expected.tolist()))
    assert (found.lookups, found.distinct) == (8_000, len(np.unique(ids)))
    for rows, error in ((1, 0), (31, 0), (1_023, 0), (1_050, 0.001), (2_999, 0)):  # 1,050 lies within a bin
        hits = ((distances > 0) & (distances <= rows)).mean()
        assert found.hit_rate(rows) == pytest.approx(hits, abs=error)


def traces() -> dict[str, NDArray[np.int64]]:
    random = np.random.default_rng(1)
    return {
        "zipf": zipf_ids(20_000, 60_000),
        "uniform": random.integers(0, 5_000, 60_000),
        "all new": np.arange(5_000),
        "one id": np.zeros(5_000, np.int64),
        "round and round": np.arange(60_000) % 4_000,
        "bursts": np.repeat(random.integers(0, 9_000, 6_000), random.integers(1, 20, 6_000)),
    }


@pytest.mark.parametrize("name", traces())
def test_a_generated_trace_has_exactly_the_profile(name: str) -> None:
    ids = traces()[name]
    profile = measure([ids], 20_000)
    assert profile.scaled(lookups=len(ids), rows=20_000) == profile
    trace = profile.trace(KEY, lookups=len(ids), rows=20_000)
    cuts = pieces(np.arange(len(ids)), 4)
    found = np.concatenate([trace.take(len(cut)) for cut in cuts])
    assert measure([found], profile.distinct) == profile
    np.testing.assert_array_equal(StackTrace(profile, KEY).take(len(ids)), found)  # however it is taken
    if name not in ("all new", "one id", "round and round"):  # there is only one
        assert (StackTrace(profile, derived_key(6)).take(len(ids)) != found).mean() > 0.5


@pytest.mark.parametrize("drift", [0, 20_000])
def test_a_generated_trace_is_like_the_data_from_its_beginning_to_its_end(drift: int) -> None:
    ids = zipf_ids(200_000, 400_000) + np.arange(400_000) * drift // 400_000
    found = measure([ids], 220_000).trace(KEY, lookups=len(ids), rows=220_000).take(len(ids))
    for first in range(0, 400_000, 100_000):
        part = slice(first, first + 100_000)
        original, generated = measure([ids[part]], 220_000), measure([found[part]], 220_000)
        assert generated.distinct == pytest.approx(original.distinct, rel=0.04)
        for rows in (31, 1_023, 16_383):
            assert generated.hit_rate(rows) == pytest.approx(original.hit_rate(rows), abs=0.01)
        new = (len(set(numbers[: part.stop].tolist()) - set(numbers[:first].tolist())) for numbers in (ids, found))
        assert next(new) == pytest.approx(next(new), rel=0.06)


def test_distances_within_a_bin_are_equally_likely() -> None:
    ids = np.arange(100_000) % 1_000  # distance 1,000, of the bin from 992 to 1,023
    distances = LruStack(1_000).distances(measure([ids], 1_000).trace(KEY, lookups=100_000, rows=2_000).take(100_000))
    assert set(distances.tolist()) <= {0, *range(992, 1_001)}  # no deeper than the ids that there are
    profile = StackProfile((2_000, *[0] * 110, 90_000))
    assert bin_of(np.array([992, 1_023])).tolist() == [111, 111]
    distances = LruStack(2_000).distances(StackTrace(profile, KEY).take(92_000))
    counts = np.bincount(distances[2_000:])[992:1_024]  # once all bounds are seen
    assert abs(counts - counts.mean()).max() < 5 * counts.mean() ** 0.5


def test_a_shorter_trace_is_like_the_beginning_of_the_data() -> None:
    ids = zipf_ids(200_000, 400_000)
    found = measure([StackTrace(measure([ids], 200_000), KEY).take(40_000)], 200_000)
    beginning = measure([ids[:40_000]], 200_000)
    assert found.distinct == pytest.approx(beginning.distinct, rel=0.03)
    for rows in (31, 1_023, 8_191):
        assert found.hit_rate(rows) == pytest.approx(beginning.hit_rate(rows), abs=0.01)


def test_a_longer_trace_has_the_same_shares_until_the_table_is_full() -> None:
    profile = measure([zipf_ids(20_000, 40_000)], 20_000)
    longer = profile.scaled(lookups=120_000, rows=1_000_000)
    assert max(abs(np.array(longer.counts) - 3 * np.array(profile.counts))) <= 1
    full = profile.scaled(lookups=4_000_000, rows=20_000)
    assert (full.lookups, full.distinct) == (4_000_000, 20_000)
    shares, expected = (np.array(p.counts[1:]) / sum(p.counts[1:]) for p in (full, profile))
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    small = profile.scaled(lookups=40_000, rows=100)  # no distance beyond the table either
    found = profile.trace(KEY, lookups=40_000, rows=100).take(40_000)
    assert measure([found], 100) == small
    assert found.max() == 99


def test_profiles_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows must be at least the 500 lookups of a trace that never repeats an id"):
        StackProfile((100,)).scaled(lookups=500, rows=400)
    # the last one has a distance of 5 among 4 ids
    for counts in ((), (0,), (0, 5), (3, -1), (10**10,) * 449, (4, 0, 0, 0, 0, 8)):
        with pytest.raises(
            ValueError, match="stack distances must be 1 to 448 counts, none negative, of distances up to"
        ):
            StackProfile(counts)
    assert StackProfile((5, 0, 0, 0, 0, 8)).lookups == 13


STATS = """fbgemm_t2_bs100.pt
Locality stats after processing 1 batches of size 100
Avg # of indices: 300000
Avg # of unique cols: 60000
Avg col size: 5.0
Histogram of col sizes:
(0, 1]: 0.400
(1, 2]: 0.200
(2, 4]: 0.200
(4, 8]: 0.100
(8+: 0.100
[0, 1, 2, 4, 8]
['0.000', '0.400', '0.600', '0.800', '0.900', '1.000']
Ratio of index distribution at different column sizes:
(0, 1]: 0.080
(1, 2]: 0.080
(2, 4]: 0.140
(4, 8]: 0.120
(8+: 0.580
[0, 1, 2, 4, 8]
['0.000', '0.080', '0.160', '0.300', '0.420', '1.000']
"""


def check_histograms(profile: ReuseProfile, lookups: int) -> None:
    """Both shares of every bin as printed, to 0.0007: 0.0005 of rounding, the rest for the sums that are not 1."""
    trace = ReuseTrace(profile, lookups, KEY)
    counts = np.bincount(np.concatenate([trace.take(part) for part in (7, lookups - 7)]))
    assert (len(counts), counts.sum(), counts.min()) == (trace.distinct, lookups, 1)
    assert (np.diff(counts) <= 1).all()  # by falling frequency
    edges = [0, *(2**power for power in range(len(profile.ids) - 1)), lookups]
    bins = np.searchsorted(edges, counts, side="left") - 1  # (low, high]
    ids = np.bincount(bins, minlength=len(profile.ids)) / len(counts)
    shares = np.bincount(bins, weights=counts, minlength=len(profile.ids)) / lookups
    np.testing.assert_allclose(ids, profile.ids, atol=7e-4)
    np.testing.assert_allclose(shares, profile.lookups, atol=7e-4)
    assert lookups / len(counts) == pytest.approx(profile.mean, rel=3e-3)


def test_ids_follow_the_histograms(tmp_path: Path) -> None:
    (tmp_path / "stats.txt").write_text(STATS + "\n" + STATS.replace("_t2_", "_t4_"))
    sections = read_locality_stats(str(tmp_path / "stats.txt"))
    assert list(sections) == ["fbgemm_t2_bs100.pt", "fbgemm_t4_bs100.pt"]
    profile, pooling_factor = sections["fbgemm_t2_bs100.pt"]
    expected = ReuseProfile(5.0, (0.4, 0.2, 0.2, 0.1, 0.1), (0.08, 0.08, 0.14, 0.12, 0.58))
    assert (profile, pooling_factor) == (expected, 300_000 / 200)
    check_histograms(profile, 100_000)


@pytest.mark.parametrize("year", [2021, 2022])
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_ids_follow_the_published_histograms(year: int, every: int) -> None:
    path = PUBLISHED / f"locality_stats_{year}.txt"
    if not path.exists():
        pytest.skip(f"{path} is not here: facebookresearch/dlrm_datasets has it")
    sections = read_locality_stats(str(path))
    assert len(sections) == {2021: 17, 2022: 16}[year]
    for profile, _ in list(sections.values())[::every]:
        check_histograms(profile, 2_000_000)


def test_the_order_is_random() -> None:
    profile = ReuseProfile(5.0, (0.4, 0.2, 0.2, 0.1, 0.1), (0.08, 0.08, 0.14, 0.12, 0.58))
    first, second = (ReuseTrace(profile, 100_000, derived_key(seed)).take(100_000) for seed in (1, 2))
    assert (np.sort(first) == np.sort(second)).all()
    assert (first != second).mean() > 0.99
    for ids in (first, second):
        # of the same id, the mean place of the lookups, and how often one follows another at once
        places = np.argsort(ids, kind="stable")
        counts = np.bincount(ids)
        means = np.add.reduceat(places, np.concatenate([[0], np.cumsum(counts)[:-1]])) / counts
        deviations = (means / 100_000 - 0.5) * (12 * counts) ** 0.5
        assert abs(deviations.std() - 1) < 0.02
        assert abs(deviations.mean()) < 0.02
        expected = (counts * (counts - 1)).sum() / 100_000
        assert abs((np.diff(ids) == 0).sum() - expected) < 6 * expected**0.5


def test_reuse_profiles_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    profile = ReuseProfile(5.0, (0.4, 0.2, 0.2, 0.1, 0.1), (0.08, 0.08, 0.14, 0.12, 0.58))
    with pytest.raises(ValueError, match=r"at least 42 lookups per feature .*: got 41; ask for more rows or a larger"):
        ReuseTrace(profile, 41, KEY)
    assert ReuseTrace(profile, 42, KEY).take(42).max() > 0
    with pytest.raises(ValueError, match=r"at least the 20,000 ids that 100,000 lookups .* got 19,000 rows; ask for"):
        profile.trace(KEY, lookups=100_000, rows=19_000)
    for text in ("", "hello", STATS.replace("_bs100", ""), STATS.replace("(2, 4]", "(3, 4]"), STATS[:400]):
        (tmp_path / "stats.txt").write_text("x\n" + text)
        with pytest.raises(ValueError, match=r"stats\.txt must be a locality_stats file of facebookresearch"):
            read_locality_stats(str(tmp_path / "stats.txt"))
    with pytest.raises(ValueError, match="as many shares of ids as of lookups, which sum to 1, and a mean of at least"):
        ReuseProfile(5.0, (0.5, 0.4), (0.5, 0.5))


@pytest.fixture(scope="module")
def kaggle_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder, and in it: what was fitted, and a folder generated of that."""
    folder = tmp_path_factory.mktemp("prepared")
    write_folder(folder, [[700, 300], [], [1_000]])
    fit(str(folder), str(folder / "profile.json"))
    generate(str(folder / "profile.json"), str(folder / "made"), rows=2_000, row_group_rows=300)
    return folder


def test_fitting_and_generating_gives_the_profile_of_the_data(kaggle_like: Path) -> None:
    made = kaggle_like / "made"
    fitted = trace_profile.load(str(kaggle_like / "profile.json"))
    spec = load_spec(str(made), SPEC)
    assert [(f.name, f.rows, f.multi_hot) for f in spec.sparse] == [
        ("user", 1_000_000, False),
        ("history", 50, True),
        ("shop", 30, False),
    ]
    assert [f.pooling_factor for f in spec.sparse] == [f.pooling_factor for f in fitted]
    stored = [pq.read_table(path) for path in sorted((kaggle_like).glob("part-*.parquet"))]
    rows = {split: pq.read_table(made / split / "part-00000-000.parquet") for split in ("train", "val")}
    assert {split: len(table) for split, table in rows.items()} == {"train": 1_800, "val": 200}
    for feature in fitted:
        original = [ids for table in stored for ids in flat(table[feature.name])]
        generated = [ids for table in rows.values() for ids in flat(table[feature.name])]
        counts = tuple(np.bincount(bin_of(np.array(plain_distances(original)))).tolist())
        assert feature.profile == StackProfile(counts)
        found = np.array(measure([np.array(generated)], feature.rows).counts)
        missing = np.array(counts) - np.pad(found, (0, len(counts) - len(found)))
        assert missing.min() == 0
        # of an odd mean number of ids per row, the last one may be missing
        assert missing.sum() == len(original) - len(generated) <= (feature.name == "history")
    lengths = np.array([len(ids) for ids in rows["train"]["history"].to_pylist()])
    assert abs(np.cumsum(lengths) - spec.sparse[1].pooling_factor * np.arange(1, 1_801)).max() <= 1
    groups = pq.ParquetFile(made / "train" / "part-00000-000.parquet").metadata
    assert [groups.row_group(group).num_rows for group in range(groups.num_row_groups)] == [300] * 6


def flat(column: Any) -> list[int]:
    return [id_ for ids in column.to_pylist() for id_ in (ids if isinstance(ids, list) else [ids])]


def test_labels_follow_the_first_dense_column(tmp_path: Path) -> None:
    profile = StackProfile((100, 0, 900))
    trace_profile.save(
        [FeatureProfile(name="a", rows=1_000, pooling_factor=1.0, profile=profile)], str(tmp_path / "p.json")
    )
    generate(str(tmp_path / "p.json"), str(tmp_path / "made"), rows=20_000, dense=3, val_share=0)
    assert list(Manifest.load(str(tmp_path / "made")).splits) == ["train"]
    stream = ParquetStream(str(tmp_path / "made"), "train", global_batch_size=1_000, shuffle=True)
    columns = concatenate(stream.batches())
    for decile in range(10):
        chosen = (columns.dense[:, 0] * 10).long() == decile
        assert columns.labels[chosen].mean().item() == pytest.approx((decile + 0.5) / 10, abs=0.06)
    correlation = np.corrcoef(np.concatenate([columns.dense.numpy(), columns.labels[:, None].numpy()], axis=1).T)
    assert abs(correlation[1:, 1:] - np.eye(3)).max() < 0.04


def test_recipes_take_the_folder_on_any_number_of_ranks(kaggle_like: Path) -> None:
    made = str(kaggle_like / "made")
    spec = load_spec(made, SPEC)
    sizes = []
    for world_size in (1, 2):
        for rank in range(world_size):
            streams = open_streams(made, spec, Ranks(12, rank, world_size), rows=0, epochs=1, seed=0, lanes=1)
            sizes.append(sum(batch.num_rows for batch in streams["train"].batches()))
    assert sizes[0] == sizes[1] + sizes[2] == 1_800


def test_seeds_decide_everything(kaggle_like: Path, tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        profile = str(kaggle_like / "profile.json")
        generate(profile, str(tmp_path / name), rows=2_000, row_group_rows=300, seed=seed)
        files = Manifest.load(str(tmp_path / name)).splits["train"].files
        assert files[0].sha256 == hashlib.sha256((tmp_path / name / files[0].path).read_bytes()).hexdigest()
        digests.append([file.sha256 for file in files])
    assert (
        digests[0] == digests[1] == [f.sha256 for f in Manifest.load(str(kaggle_like / "made")).splits["train"].files]
    )
    assert digests[0] != digests[2]


def test_fitting_some_features_and_rows(kaggle_like: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(str(kaggle_like), str(tmp_path / "some.json"), features=("shop",), rows=1_300)
    (shop,) = trace_profile.load(str(tmp_path / "some.json"))
    ids = [id_ for path in sorted(kaggle_like.glob("part-*.parquet")) for id_ in flat(pq.read_table(path)["shop"])]
    assert shop == FeatureProfile(
        name="shop", rows=30, pooling_factor=1.0, profile=measure([np.array(ids[:1_300])], 30)
    )
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["shop", "30", "1,300", "30", "97.7%", "97.7%"]


def test_commands_do_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "stats.txt").write_text(STATS)
    command = [sys.executable, "-X", "importtime", "-m", "dlrm_torchrec.traces.trace"]
    for arguments, last in (
        (["histogram", "stats.txt", "--output", "p.json", "--features", "2"], "the profile is p.json: fbgemm_t2_bs100"),
        (["generate", "p.json", "--output", "made", "--rows", "300"], "made: 270 rows in split 'train', 30 in 'val'"),
    ):
        environment = {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(last)
        assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    spec = load_spec(str(tmp_path / "made"), SPEC)
    assert [(f.name, f.rows, f.pooling_factor) for f in spec.sparse] == [
        ("trace_0", 1_000_000, 1_500.0),
        ("trace_1", 1_000_000, 1_500.0),
    ]


def test_arguments_that_do_not_fit_are_refused(kaggle_like: Path, tmp_path: Path) -> None:
    folder, profile, out = str(kaggle_like), str(kaggle_like / "profile.json"), str(tmp_path / "out")
    (tmp_path / "stats.txt").write_text(STATS)
    manifest = Manifest.load(folder)
    sparse = tuple(replace(f, encoding="managed") if f.name == "shop" else f for f in manifest.spec.sparse)
    replace(manifest, spec=replace(manifest.spec, sparse=sparse)).save(str(tmp_path))
    for call, message in (
        (lambda: fit(str(tmp_path), out), "ids of a trace must be rows of their table: got feature 'shop', whose"),
        (lambda: fit(folder, out, split="val"), f"split must be one of {folder} that has rows: got 'val' of"),
        (
            lambda: fit(folder, out, features=("user", "x")),
            "features must be among ['history', 'shop', 'user']: got ['use",
        ),
        (
            lambda: histogram(str(tmp_path / "stats.txt"), out, section="x"),
            "section must be one of fbgemm_t2_bs100.pt:",
        ),
        (
            lambda: generate(profile, out, rows=1),
            "2 rows and 1 dense column, val_share in [0, 1) and a seed from 0: got",
        ),
        (lambda: generate(profile, out, rows=9, val_share=1.0), "got 9, 13, 1.0 and 0; change them"),
        (lambda: generate(profile, out, rows=9, dense=0), "got 9, 0, 0.1 and 0; change them"),
        (lambda: generate(profile, out, rows=9, seed=-1), "got 9, 13, 0.1 and -1; change them"),
        (lambda: generate(profile, folder, rows=9), f"must be a folder without a dataset.json: got {folder}; remove"),
        (
            lambda: FeatureProfile(name="a", rows=0, pooling_factor=1.0, profile=StackProfile((1,))),
            "table of 1 to 2147",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format must be 1: got 2"),
        ({"features": [{"name": "a"}]}, "KeyError('stack_distances')"),
        ({"features": [{"stack_distances": [1.5]}]}, "'float' object cannot be interpreted as an integer"),
        ({"features": [{"reuse": {}}]}, "KeyError('mean')"),
        ({"features": [{"stack_distances": [1], "more": 1}]}, "unexpected keyword argument 'more'"),
        ({"features": 3}, "'int' object is not iterable"),
    ],
)
def test_malformed_profiles_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"format": 1, "features": []} | change))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        trace_profile.load(str(path))
    assert "must be a profile that this version of trace wrote" in str(error.value)


def test_profiles_are_read_as_they_were_written(tmp_path: Path) -> None:
    reuse = ReuseProfile(5.0, (0.4, 0.2, 0.2, 0.1, 0.1), (0.08, 0.08, 0.14, 0.12, 0.58))
    features = (
        FeatureProfile(name="a", rows=7, pooling_factor=1.0, profile=StackProfile((3, 0, 5))),
        FeatureProfile(name="b", rows=9, pooling_factor=2.5, profile=reuse),
    )
    trace_profile.save(features, str(tmp_path / "profile.json"))
    assert trace_profile.load(str(tmp_path / "profile.json")) == features

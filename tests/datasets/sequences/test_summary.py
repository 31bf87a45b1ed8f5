"""What a run knows of prepared histories before it builds a model, against a plain loop over their events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog
from dlrm_torchrec.datasets.sequences.open import summarise_next_items, summarise_samples
from dlrm_torchrec.datasets.sequences.samples import LAST, Window
from dlrm_torchrec.datasets.summary import Summary, summarise
from dlrm_torchrec.datasets.synthetic.specs import browsing_spec, demo_spec
from tests.datasets.sequences.logs import SPEC, Sample, naive_samples, random_log
from tests.datasets.sequences.test_stored import WINDOWS, write_log

LIKES, SKIPS = 3, 1


def users_of(log: EventLog, naive: Mapping[str, list[Sample]]) -> dict[str, int]:
    return {
        split: len({log.user_of[place] for each in samples for place in each.candidates})
        for split, samples in naive.items()
    }


def told(log: EventLog, samples: list[Sample]) -> list[Sample]:
    """Those whose item is new to the user."""
    songs = log.events["song"]
    return [each for each in samples if songs[each.candidates[0]] not in songs[[*each.history]]]


def test_rows_are_candidates_with_their_labels(tmp_path: Path) -> None:
    log, config = random_log(3), SamplesConfig(history=5, candidates=3, least=2, anchors=("skip", "like"))
    write_log(tmp_path / "data", log)
    found = summarise_samples(str(tmp_path / "data"), SPEC, config)
    naive = {split: naive_samples(log, config, split, Window(*times)) for split, times in WINDOWS.items()}
    candidates = {split: [place for each in samples for place in each.candidates] for split, samples in naive.items()}
    assert found.rows == {split: len(places) for split, places in candidates.items()}
    assert found.positives == {
        split: sum(log.actions[place] == LIKES for place in places) for split, places in candidates.items()
    }
    assert found.samples == len(naive["train"]) < found.rows["train"]
    assert found.users == users_of(log, naive)
    assert found.spec == config.of(SPEC)
    assert summarise_samples("synthetic", SPEC, config) == Summary(spec=config.of(SPEC))


def test_rows_of_next_items_are_what_is_told(tmp_path: Path) -> None:
    log, config = random_log(4), SamplesConfig(history=9, held_out="last")
    write_log(tmp_path / "data", log)
    found = summarise_next_items(str(tmp_path / "data"), SPEC, config)
    every = {split: naive_samples(log, config, split, None) for split in LAST}
    naive = {split: told(log, samples) if split != "train" else samples for split, samples in every.items()}
    assert found.again == {split: len(every[split]) - len(naive[split]) for split in LAST}
    assert found.again["val"] > 0 < found.again["test"]
    assert found.rows == {
        split: sum(len(each.history) for each in samples) if split == "train" else len(samples)
        for split, samples in naive.items()
    }
    assert (found.positives, found.samples) == ({}, len(naive["train"]))
    assert found.users == users_of(log, naive)
    with pytest.raises(ValueError, match="samples of next items must have one candidate: got 2; set it to 1"):
        summarise_next_items("nowhere", SPEC, SamplesConfig(candidates=2))


def test_the_last_events_need_vocabularies_of_all_events(tmp_path: Path) -> None:
    log, last = random_log(4), SamplesConfig(history=9, held_out="last")
    manifest = write_log(tmp_path / "data", log)
    sparse = tuple(replace(each, encoding="vocab" if each.name == "song" else "id") for each in SPEC.sparse)
    replace(manifest, spec=replace(SPEC, sparse=sparse)).save(str(tmp_path / "data"))
    for summarise_cut in (summarise_samples, summarise_next_items):
        with pytest.raises(ValueError, match=r"vocabularies must be those of all events .*data; prepare it with --val"):
            summarise_cut(str(tmp_path / "data"), SPEC, last)
        summarise_cut(str(tmp_path / "data"), SPEC, replace(last, held_out="time"))
    replace(manifest, spec=replace(SPEC, sparse=sparse), windows={}).save(str(tmp_path / "data"))
    summarise_next_items(str(tmp_path / "data"), SPEC, last)


def test_recipes_of_rows_refuse_histories(tmp_path: Path) -> None:
    write_log(tmp_path / "data", random_log(4))
    with pytest.raises(ValueError, match=r"data must have rows with labels: got the histories of users in .*data; tr"):
        summarise(str(tmp_path / "data"), demo_spec())


def only(log: EventLog, action: int) -> EventLog:
    return replace(log, actions=log.actions * 0 + action)


@pytest.mark.parametrize(
    ("log", "config", "message"),
    [
        (random_log(0), SamplesConfig(anchors=("buy",)), "pools and anchors must be actions of the data: got 'buy'; n"),
        (random_log(0), SamplesConfig(least=99), "split 'train' must have candidates: got none with at least 99 ear"),
        (only(random_log(0), SKIPS), SamplesConfig(), r"labels of split 'train' must have both classes: got 0 positiv"),
        (random_log(0), SamplesConfig(anchors=("like",)), "must have both classes: .*; name other samples.anchors, or"),
    ],
)
def test_samples_that_cannot_be_learned_are_refused(
    tmp_path: Path, log: EventLog, config: SamplesConfig, message: str
) -> None:
    write_log(tmp_path / "data", log)
    with pytest.raises(ValueError, match=message):
        summarise_samples(str(tmp_path / "data"), SPEC, config)


def test_histories_that_cannot_be_learned_are_refused() -> None:
    unknown = SamplesConfig(pools=("buy",))
    for summarise_cut in (summarise_samples, summarise_next_items):
        with pytest.raises(ValueError, match="pools and anchors must be actions of the data: got 'buy'"):
            summarise_cut("synthetic", SPEC, unknown)
    with pytest.raises(ValueError, match="histories must have a positive action to be told: got none in synthetic; "):
        summarise_samples("synthetic", browsing_spec(), SamplesConfig())

"""Settings by the number of rows: sensible at every size, and never against what a person set."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.train.fit import AUTOMATIC, EVENTS, automatic, fit_to_rows, marks, refuse_marks

RECIPES = ["train_dlrm", "train_fm", "train_logistic", "train_dcnv2"]
SIZES = [100, 1_000, 1_499, 1_500, 5_000, 30_000, 250_000, 5_000_000, 1_000_000_000]


@dataclass(frozen=True)
class Counts:
    rows: dict[str, int] = field(default_factory=dict)
    positives: dict[str, int] = field(default_factory=dict)
    samples: int = 0


def value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("rows", SIZES)
def test_no_mark_is_left_and_every_number_has_its_reason(recipe: str, rows: int) -> None:
    preset = load_training_recipe(recipe).PRESETS["demo"]
    marked = [name for name, mark in AUTOMATIC.items() if value(preset, name) == mark]
    assert {"batch_size", "epochs", "schedule.warmup_steps"} <= set(marked)
    fitted, reasons = fit_to_rows(preset, Counts({"train": rows}))
    assert [name for name, mark in AUTOMATIC.items() if value(fitted, name) == mark] == []
    lines = reasons.splitlines()
    assert [line.split()[0] for line in lines] == marked
    assert all(re.fullmatch(r"[\w.]+ (\S+|\(.*\)): .+", line) for line in lines)


@pytest.mark.parametrize("rows", SIZES)
def test_runs_have_steps_enough_and_are_warm_before_a_fifth_of_them(rows: int) -> None:
    fitted, _ = fit_to_rows(load_training_recipe("train_dlrm").PRESETS["demo"], Counts({"train": rows}))
    batch = fitted.batch_size
    assert math.log2(batch).is_integer()
    assert 32 <= batch <= 2048
    steps = fitted.epochs * math.ceil(rows / batch)
    assert steps >= min(200, rows / 8)
    assert 0 < fitted.schedule.warmup_steps <= steps / 5
    assert fitted.schedule.decay_start == fitted.schedule.warmup_steps
    assert fitted.schedule.factor(steps - 1, steps) > 0


def test_more_rows_never_mean_more_epochs_or_smaller_batches() -> None:
    preset = load_training_recipe("train_dlrm").PRESETS["demo"]
    fitted = [fit_to_rows(preset, Counts({"train": rows}))[0] for rows in SIZES]
    assert [each.epochs for each in fitted] == sorted((each.epochs for each in fitted), reverse=True)
    assert [each.batch_size for each in fitted] == sorted(each.batch_size for each in fitted)
    assert fitted[0].epochs > fitted[-1].epochs == 1


def test_what_a_person_sets_stays() -> None:
    preset = load_training_recipe("train_dlrm").PRESETS["demo"]
    mine = replace(
        preset, epochs=1, batch_size=500, top=(8, 1), sparse=replace(preset.sparse, lr=0.25, eps=1e-8),
        dense=replace(preset.dense, lr=0.5, weight_decay=0.0),
        schedule=replace(preset.schedule, warmup_steps=0, decay_start=3),
    )  # fmt: skip
    assert fit_to_rows(mine, Counts({"train": 1_000})) == (mine, "")
    fitted, reasons = fit_to_rows(replace(mine, schedule=preset.schedule), Counts({"train": 10_000}))
    assert fitted.schedule.warmup_steps == fitted.schedule.decay_start == 2  # of 20 steps: one epoch, batches of 500
    assert len(reasons.splitlines()) == 2


def test_synthetic_rows_get_the_defaults_without_a_word() -> None:
    for recipe in RECIPES:
        module = load_training_recipe(recipe)
        assert fit_to_rows(module.PRESETS["demo"], Counts()) == (module.Config(), "")
    rmc = load_training_recipe("train_rmc")
    assert fit_to_rows(rmc.PRESETS["demo"], Counts()) == (rmc.Config(rows=2_048_000), "")


def test_presets_with_numbers_keep_them() -> None:
    for recipe in RECIPES:
        for name, preset in load_training_recipe(recipe).PRESETS.items():
            if name != "demo":
                assert fit_to_rows(preset, Counts({"train": 1_000})) == (preset, "")


def test_a_rare_label_counts_as_fewer_rows() -> None:
    preset = load_training_recipe("train_dlrm").PRESETS["demo"]
    rare, reasons = fit_to_rows(preset, Counts({"train": 50_000}, {"train": 400}))
    few, _ = fit_to_rows(preset, Counts({"train": 2_000}, {"train": 1_000}))
    common, _ = fit_to_rows(preset, Counts({"train": 50_000}, {"train": 25_000}))
    assert rare.epochs == few.epochs > common.epochs
    assert rare.batch_size == common.batch_size > few.batch_size
    assert rare.dense.weight_decay == few.dense.weight_decay
    assert "50,000 rows with a rare label, worth 2,000" in reasons


HISTORIES = ["train_hstu", "train_hstu_next_item"]


@pytest.mark.parametrize("recipe", HISTORIES)
@pytest.mark.parametrize("rows", [300, 5_000, 20_000, 100_000, 10_000_000])
@pytest.mark.parametrize("together", [1, 7])
def test_fewer_candidates_are_seen_more_often_in_smaller_steps(recipe: str, rows: int, together: int) -> None:
    module, samples = load_training_recipe(recipe), rows // together
    usual = module.Config()
    positives = {"train": rows // 3} if recipe == "train_hstu" else {}
    fitted, reasons = fit_to_rows(module.PRESETS["demo"], Counts({"train": rows}, positives, samples))
    assert marks(fitted) == []
    assert all(re.fullmatch(r"[\w.]+ \S+: .+", line) for line in reasons.splitlines())
    assert math.log2(fitted.batch_size).is_integer()
    assert 8 <= fitted.batch_size <= usual.batch_size
    steps = fitted.epochs * math.ceil(samples / fitted.batch_size)
    assert steps > 200
    assert 0 < fitted.schedule.warmup_steps <= steps / 10
    assert fitted.schedule.decay_start == fitted.schedule.warmup_steps
    share = min(1, rows / (EVENTS * usual.rows)) ** (1 if positives else 1 / 3)
    assert fitted.sparse.lr == pytest.approx(usual.sparse.lr * share)
    assert usual.dense.lr / 5 < fitted.dense.lr <= usual.dense.lr
    assert fitted.sparse.eps == usual.sparse.eps
    if rows >= EVENTS * usual.rows:
        assert replace(fitted, schedule=usual.schedule) == replace(usual, batch_size=fitted.batch_size)
    else:
        assert fitted.epochs > usual.epochs
        assert fitted.dense.weight_decay == pytest.approx(min(0.003, 5e4 / rows**2) if positives else 0)


@pytest.mark.parametrize("recipe", HISTORIES)
def test_what_a_person_sets_of_histories_stays(recipe: str) -> None:
    module = load_training_recipe(recipe)
    assert fit_to_rows(module.PRESETS["demo"], Counts()) == (module.Config(), "")
    preset, counts = module.PRESETS["demo"], Counts({"train": 8_000}, samples=1_000)
    mine = replace(preset, epochs=2, batch_size=10, sparse=replace(preset.sparse, lr=0.25))
    fitted, reasons = fit_to_rows(mine, counts)
    assert (fitted.epochs, fitted.batch_size, fitted.sparse.lr, fitted.schedule.warmup_steps) == (2, 10, 0.25, 20)
    assert "schedule.warmup_steps 20: a tenth of 200 steps" in reasons
    assert fit_to_rows(module.Config(), counts) == (module.Config(), "")


def test_marks_that_nothing_follows_from_are_refused() -> None:
    config = load_training_recipe("train_hstu").Config(epochs=0)
    with pytest.raises(
        ValueError, match=r"rows in a split 'train' for epochs to follow from: got \{'users': 9\}; set it"
    ):
        fit_to_rows(config, Counts({"users": 9}))
    daily = load_training_recipe("train_hstu_daily").Config()
    refuse_marks(daily)
    with pytest.raises(
        ValueError, match=r"schedule.warmup_steps must be set for a run over windows: got -1, .*; set it"
    ):
        refuse_marks(replace(daily, schedule=replace(daily.schedule, warmup_steps=-1)))


def test_marking_touches_nothing_else() -> None:
    config = load_training_recipe("train_dlrm").Config(seed=3, clip_norm=0.5)
    marked = automatic(config)
    for name in AUTOMATIC:
        assert value(marked, name) == AUTOMATIC[name]
    assert fit_to_rows(marked, Counts())[0] == config


@pytest.mark.parametrize("part", ["sparse", "dense"])
def test_rates_of_another_optimizer_must_be_set(part: str) -> None:
    preset = load_training_recipe("train_dlrm").PRESETS["demo"]
    other = replace(preset, **{part: replace(getattr(preset, part), kind="sgd")})
    with pytest.raises(ValueError, match=rf"^{part}\.lr must be set with {part}\.kind 'sgd': got none, .*; set it$"):
        fit_to_rows(other, Counts({"train": 1_000}))
    assert getattr(fit_to_rows(other, Counts())[0], part).kind == "sgd"


def test_an_early_stop_needs_validations() -> None:
    preset = load_training_recipe("train_dlrm").PRESETS["demo"]
    stops = replace(preset, checkpoint=replace(preset.checkpoint, early_stop=2))
    assert fit_to_rows(stops, Counts())[0].checkpoint.early_stop == 2
    with pytest.raises(ValueError, match=r"--early-stop must have validations to count: got 2 with eval_every 0"):
        fit_to_rows(replace(stops, eval_every=0), Counts())
    assert fit_to_rows(replace(preset, eval_every=0), Counts())[0].eval_every == 0

"""The closing block: what was reached, where, how long, and commands that work when they are pasted."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from dlrm_torchrec.terminal import commands
from dlrm_torchrec.terminal.closing import block
from dlrm_torchrec.train.output.closing import Ended, describe, main_metric
from tests.recipe import ROOT, load_recipe

CLICKS = {"val/auc": 0.8, "val/rmse": 0.3, "teacher/auc": 0.85, "best/val/auc": 0.81, "test/auc": 0.79}


def ended(folder: Path, **changes: Any) -> Ended:
    facts = {"folder": str(folder), "step": 1200, "num_steps": 1200, "begun_at": 0, "is_over": True, "total_s": 72.4}
    return Ended(**{**facts, "train_s": 40.0, "tensorboard": False, **changes})


def test_windows_that_were_not_published_are_named(tmp_path: Path) -> None:
    metrics = {"val/auc": 0.8, "published": 0.0} | {f"windows/day-{day}/published": 0.0 for day in range(6)}
    said = describe(ended(tmp_path), metrics)
    assert "too much quality: day-0, day-1, day-2, day-3 and 2 more; took" in said
    assert "not published" not in describe(ended(tmp_path), {"val/auc": 0.8, "windows/day-0/val/auc": 0.8})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose folder has a blank in its name, with two checkpoints."""
    folder = tmp_path / "my runs"
    for step in (600, 1200):
        (folder / f"checkpoints/step-{step:08d}").mkdir(parents=True)
        (folder / f"checkpoints/step-{step:08d}/checkpoint.json").write_text(f'{{"step": {step}}}')
    return folder


def groups(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        name = line.split()[0] if line[0] != " " else name
        found.setdefault(name, []).append(line.removeprefix(name).strip())
    return found


def test_a_finished_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/train_dlrm.py", "demo"])
    monkeypatch.chdir(ROOT)
    said = groups(describe(ended(run), CLICKS))
    assert said["reached"] == [
        "val/auc 0.8000; the best possible AUC is 0.8500",
        "best val/auc 0.8100, at an earlier step",
        "test/auc 0.7900",
    ]
    assert said["took"] == ["1 min 12 s, of which 40 s trained 1,200 steps"]
    assert said["run"] == [f"{run} with config.json, metrics.jsonl"]
    assert said["saved"] == [f"{run}/checkpoints/step-00001200"]
    words = [shlex.split(line, comments=True) for line in said["next"]]
    assert [each[:2] for each in words] == [
        ["python", "recipes/evaluate.py"],
        ["python", "recipes/quantize_dlrm.py"],
        ["dlrm-recipes", "show"],
    ]
    for (_, script, *arguments), name in zip(words[:2], ("evaluate", "quantize_dlrm"), strict=True):
        assert (ROOT / script).exists()
        config = tyro.cli(load_recipe(name).Config, args=arguments)
        assert (config.recipe, config.run) == ("train_dlrm", str(run))
    assert words[2][2:] == [str(run)]


def test_a_run_of_items_is_judged_by_its_hits_and_not_sent_to_evaluate(run: Path) -> None:
    metrics = {"val/auc": 0.9, "val/hr@10": 0.5, "popularity/hr@10": 0.25}
    said = describe(ended(run), metrics)
    assert "reached  val/hr@10 0.5000; popularity alone reaches 0.2500" in said
    assert "evaluate" not in said
    assert f"export_tables -- '{run}' --output '{run}/tables'" in said
    assert main_metric(metrics) == "hr@10"
    assert main_metric({"val/rmse": 1.0}) == "rmse"
    assert main_metric({}) == ""


def test_a_run_of_windows_is_sent_to_evaluate_alone(run: Path) -> None:
    said = groups(describe(ended(run), {"val/auc": 0.8, "windows/day-0001/val/auc": 0.8}))
    assert said["reached"] == ["val/auc 0.8000"]
    evaluate, show = (shlex.split(line, comments=True) for line in said["next"])
    assert evaluate[:4] == ["dlrm-recipes", "run", "evaluate", "--"]
    assert evaluate[5:] == [str(run)]
    assert show == ["dlrm-recipes", "show", str(run)]


def test_an_interrupted_run_says_where_it_stopped_and_how_to_go_on(run: Path) -> None:
    said = groups(describe(ended(run, step=600, is_over=False), CLICKS))
    place = f"at step 600 of 1,200, saved at {run}/checkpoints/step-00001200"  # the newest checkpoint
    assert said["stopped"] == [f"{place}; run the same command again to resume"]
    assert "next" not in said


def test_a_run_that_was_stopped_at_once_has_steps_left(run: Path) -> None:
    took = [
        groups(describe(ended(run, step=600, begun_at=600, is_over=over), CLICKS))["took"] for over in (False, True)
    ]
    assert took == [["1 min 12 s; no step was trained"], ["1 min 12 s; no step was left to train"]]


def test_a_run_that_was_ended_early_is_over(run: Path) -> None:
    said = groups(describe(ended(run, step=600), CLICKS))
    assert said["reached"][:2] == [
        "ended early at step 600 of 1,200; without --early-stop, the same command trains on",
        "val/auc 0.8000; the best possible AUC is 0.8500",
    ]
    assert "next" in said


def test_a_run_without_checkpoints_takes_one_line(tmp_path: Path) -> None:
    said = describe(ended(tmp_path), {"val/auc": 0.8})
    assert said == f"val/auc 0.8000; took 1 min 12 s; see {tmp_path}"
    stopped = describe(ended(tmp_path, step=6, is_over=False), {})
    assert stopped.startswith("stopped at step 6 of 1,200, nothing is saved; the same command begins anew; took")


def test_a_resumed_run_counts_its_own_steps(run: Path) -> None:
    assert "trained 200 steps" in describe(ended(run, begun_at=1000), CLICKS)
    assert "no step was left to train" in describe(ended(run, begun_at=1200), CLICKS)


def test_the_recipe_is_named_as_other_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "train_dlrm.py"  # a copy with the name of ours is a copy
    copy.write_text("")
    for typed, name in (("train_dlrm.py", "train_dlrm.py"), (str(ROOT / "recipes/train_fm.py"), "train_fm")):
        monkeypatch.setattr(sys, "argv", [typed])
        assert commands.this_recipe() == name
        assert commands.start("evaluate", "a b") == "dlrm-recipes run evaluate -- 'a b'"


def test_a_block_leaves_empty_groups_out() -> None:
    assert block([("a", [""]), ("b", [])]) == ""

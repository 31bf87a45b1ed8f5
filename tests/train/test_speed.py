"""The speed of a run: chosen once, the same on all ranks, kept when it is resumed, and refused where it contradicts."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.summary import summarise
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.sharding.modules import fastest_update
from dlrm_torchrec.sharding.modules.fastest_update import sorting_pays
from dlrm_torchrec.train import speed as module
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.config import Speed
from dlrm_torchrec.train.fit import fit_to_rows
from dlrm_torchrec.train.speed import dense_ms, set_speed, use_speed
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.world import World
from tests.distributed import here, run_ranks
from tests.recipe import load_recipe, run_recipe


@dataclass(frozen=True)
class Settings:
    speed: Speed = ("auto",)
    batch_size: int = 64
    epochs: int = 2
    rows: int = 64


TABLES = (
    TablesConfig(),
    TablesConfig(kind="quotient_remainder", threshold=200),
    TablesConfig(kind="quotient_remainder", operation="feature_generation", threshold=200),
    TablesConfig(kind="mixed_dimension"),
)
DATA = summarise("synthetic", demo_spec())


class Log(SimpleNamespace):
    """What was said and noted."""

    def __init__(self, world: World) -> None:
        super().__init__(world=world, said=[], noted={})

    def say(self, text: str) -> None:
        self.said.append(text)

    def note(self, name: str, value: object) -> None:
        self.noted[name] = value


def task() -> BinaryRankingTask:
    return BinaryRankingTask(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)), 1)


def chosen(given: dict[str, Any]) -> Any:
    """What this rank got: the speed, what was noted and said, and whether the model computes in bfloat16."""
    return _chosen(**given)


def _chosen(*, sorting: bool, full: float, half: float, tf32: float = 0, kept: Any = None, **settings: Any) -> Any:
    log, model = Log(here()), task()
    first = None if kept is None else Progress(identity={}, lanes=1, speed=kept)
    measured = {"float32": full, **({"tf32": tf32} if tf32 else {}), "bf16": half}
    answers = measured if log.world.is_main else dict.fromkeys(measured, full)  # only rank 0 may decide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "dense_ms", lambda *_, **__: answers)
        patch.setattr(module, "_has_compiler", lambda: True)
        patch.setattr(module, "compile_dense", lambda _: None)
        speed = set_speed(Settings(**settings), model, cast(Any, log), DATA, kept=first, sorting_pays=lambda: sorting)
    return speed, log.noted["speed"], "".join(log.said), model.autocast is torch.bfloat16


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_was_measured_faster_is_chosen_by_rank_0(ranks: int) -> None:
    def choose(wanted: tuple[str, ...], **given: Any) -> str:
        told = run_ranks(ranks, chosen, given)
        for speed, noted, _, half in told:
            assert speed == noted == wanted
            assert half is ("bf16" in wanted)
        assert all(each[2] == told[0][2] for each in told)
        return cast(str, told[0][2])

    assert choose(("bf16", "sorted"), sorting=True, full=10.0, half=5.0, rows=64 * 2000) == (
        "speed bf16: dense parts take 5.0 ms a step, in float32 10.0\n"
        "speed sorted: updates of tables are faster over sorted ids on this processor"
    )
    if ranks == 1:
        nothing = "speed exact: nothing else saves time that is worth it here"
        assert choose(("exact",), sorting=False, full=10.0, half=5.0, rows=64 * 900) == nothing  # it would save 9 s
        assert choose(("exact",), sorting=False, full=10.0, half=9.0, rows=64 * 4000) == nothing
        assert choose(("tf32",), sorting=False, full=10.0, tf32=3.0, half=2.8, rows=64 * 4000) == (
            "speed tf32: dense parts take 3.0 ms a step, in float32 10.0"
        )
        assert choose(("bf16",), sorting=False, full=10.0, tf32=6.0, half=2.0, rows=64 * 4000) == (
            "speed bf16: dense parts take 2.0 ms a step, in float32 10.0"
        )
        assert "dense parts take 10 minutes of the run" in choose(
            ("compile",), sorting=False, full=10.0, half=10.0, rows=64 * 30_000
        )
        assert choose(("exact",), sorting=False, full=10.0, half=10.0, rows=64 * 7000) == nothing  # it would save 42 s
        assert choose(("sorted",), sorting=False, full=9.0, half=1.0, kept=("sorted",)) == (
            "speed sorted: the choice of the first start"
        )
        assert choose(("bf16",), sorting=True, full=1.0, half=9.0, kept=("exact",), speed=("bf16",)) == ""


@pytest.mark.parametrize("parts", [(), ("auto", "bf16"), ("exact", "sorted")])
def test_parts_that_contradict_each_other_are_refused(parts: Speed) -> None:
    with pytest.raises(
        ValueError, match=r"speed must be auto, exact, or any of tf32, bf16, compile and sorted: got .*; leave"
    ):
        set_speed(
            Settings(speed=parts), task(), cast(Any, Log(cast(Any, None))), DATA, kept=None, sorting_pays=lambda: True
        )


def refuse() -> int:
    raise AssertionError("the random numbers of all GPUs are kept, and so all GPUs are started")


@pytest.mark.parametrize("recipe", ["train_dlrm", "train_dcnv2", "train_fm", "train_logistic", "train_neumf"])
@pytest.mark.parametrize("tables", TABLES, ids=["plain", "product", "generated features", "mixed dims"])
def test_dense_parts_are_timed_and_left_as_they_were(
    recipe: str, tables: TablesConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if recipe == "train_neumf" and tables in TABLES[2:]:
        return  # its user and item have one vector each, of one dim
    loaded = load_recipe(recipe)
    cfg = replace(parse(loaded.PRESETS, ["demo"])[1], tables=tables)
    cfg = fit_to_rows(cfg, DATA)[0]
    model, built = loaded.build(cfg, cfg.shape, 1, torch.device("cpu"))
    monkeypatch.setattr(fastest_update, "measure", lambda *_: {"fbgemm": 1.0, "sorted": 0.5})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sorting_pays(built, cfg.shape, cfg.batch_size)
    names, state = [name for name, _ in model.named_modules()], torch.random.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    num_dense = len(cfg.shape.dense)
    torch.backends.cuda.matmul.allow_tf32 = True
    monkeypatch.setattr(torch.cuda, "device_count", refuse)
    times = dense_ms(model, batch_size=16, num_dense=num_dense, device=torch.device("cpu"))
    assert list(times) == ["float32", "bf16"]
    assert min(times.values()) > 0
    left = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    assert left
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_other_work_on_the_machine_does_not_lengthen_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [9.0, 9.0, *[5.0, 4.0] * 3, 2.0, 1.5, *[7.0, 6.0] * 3]  # seconds, in turns; the first ones warm up
    clock = iter([0.0] + [now for end in itertools.accumulate(taken) for now in (end, end)])
    monkeypatch.setattr(module, "_now", lambda _: next(clock))
    recipe = load_recipe("train_dlrm")
    cfg = fit_to_rows(parse(recipe.PRESETS, ["demo"])[1], DATA)[0]
    model, _ = recipe.build(cfg, cfg.shape, 1, torch.device("cpu"))
    times = dense_ms(model, batch_size=4, num_dense=len(cfg.shape.dense), device=torch.device("cpu"))
    assert times == pytest.approx({"float32": 2000, "bf16": 1500})


def test_a_model_that_is_not_compiled_still_computes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(module, "compile_dense", compiled.append)
    model = task()
    use_speed(model, ("bf16", "compile"), compiled=False)
    assert model.autocast is torch.bfloat16
    assert compiled == []
    use_speed(model, ("compile",))
    assert model.autocast is None
    assert compiled == [model.model]


def test_tf32_is_on_only_where_it_is_asked_for() -> None:
    def products() -> tuple[bool, torch.Tensor]:
        return torch.backends.cuda.matmul.allow_tf32, factors @ factors

    factors, model = torch.randn(64, 64), task()
    off, exact = products()
    assert not off  # torch's default
    use_speed(model, ("tf32", "sorted"))
    try:
        on, same = products()
    finally:
        use_speed(model, ("exact",))
    assert on
    assert same.equal(exact)  # a CPU computes as before
    assert not products()[0]


def test_a_resumed_run_keeps_the_choice_of_its_first_start(tmp_path: Path) -> None:
    options = ["demo", "--batch-size=256", "--eval-every=0", "--schedule.decay-steps=0", f"--run-dir={tmp_path}"]

    def choice() -> list[str]:
        return cast(list[str], json.loads((tmp_path / "demo" / "config.json").read_text())["speed"])

    run_recipe("train_dlrm", [*options, "--rows=2560", "--speed", "bf16", "sorted"], 1)
    assert choice() == ["bf16", "sorted"]
    run_recipe("train_dlrm", [*options, "--rows=5120", "--speed=auto"], 2)  # whatever this machine would choose
    assert choice() == ["bf16", "sorted"]
    run_recipe("train_dlrm", [*options, "--rows=7680", "--speed=exact"], 1)
    assert choice() == ["exact"]

"""The launch components: every script of the package as one types it, on every scheduler, and only where it fits."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torchx.components.component_test_base import ComponentTestCase
from torchx.runner import get_runner
from torchx.schedulers.local_scheduler import LocalScheduler
from torchx.specs import AppDef
from torchx.specs.builders import materialize_appdef
from torchx.specs.file_linter import get_fn_docstring

from torchx_components import dlrm

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPONENTS = ("train", "plan", "prepare", "evaluate")
SCHEDULERS = {
    "local_cwd": {},
    "slurm": {"partition": "gpu", "time": "60"},
    "aws_batch": {"queue": "q"},
    "kubernetes": {"queue": "q"},
}


def app_of(line: str) -> AppDef:
    component, *arguments = shlex.split(line)
    return materialize_appdef(getattr(dlrm, component), arguments)


def command_of(line: str) -> str:
    """What each node runs, from torchrun's ``--role ''`` to the end."""
    return app_of(line).roles[0].args[-1].partition("--role '' ")[2]


@pytest.mark.parametrize("component", COMPONENTS)
def test_torchx_accepts_the_component_and_each_option_has_its_help(component: str) -> None:
    ComponentTestCase().validate(dlrm, component)
    _, options = get_fn_docstring(getattr(dlrm, component))
    assert [name for name, described in options.items() if len(described) < 10] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train train_dlrm", "-m dlrm_torchrec.recipes.train_dlrm"),
        ("train -j 2x8 train_dlrm demo --seed 1", "-m dlrm_torchrec.recipes.train_dlrm demo --seed 1"),
        ("train -j 2x8 train_dlrm -- demo --seed 1", "-m dlrm_torchrec.recipes.train_dlrm demo --seed 1"),
        ("train mine/my_copy.py demo --run-dir 'two words'", "mine/my_copy.py demo --run-dir 'two words'"),
        ("evaluate train_dlrm runs/a --ablation", "-m dlrm_torchrec.recipes.evaluate train_dlrm runs/a --ablation"),
        ("evaluate my_copy.py runs/a", "-m dlrm_torchrec.recipes.evaluate my_copy.py runs/a"),
        ("prepare -j 4x8 criteo kaggle --input a", "-m dlrm_torchrec.data.criteo.prepare kaggle --input a"),
        ("prepare my_prepare.py --input a", "my_prepare.py --input a"),
    ],
)
def test_script_and_its_options_reach_torchrun(line: str, expected: str) -> None:
    assert command_of(line) == expected


def test_planning_is_one_process_whose_options_are_passed_as_they_are() -> None:
    line = "plan --memMB 9000 train_dlrm --topology 2x8:h100 --fit -- --tables.kind hash"
    (role,) = app_of(line).roles
    options = "train_dlrm --topology 2x8:h100 --fit -- --tables.kind hash"
    assert role.args == ["-c", f'PATH={BIN}:"$$PATH" python -m dlrm_torchrec.recipes.plan_sharding {options}']
    assert (role.num_replicas, role.resource.memMB) == (1, 9000)


@pytest.mark.parametrize("script", ["recipes/*.py", "data/*/prepare.py"])
def test_every_script_of_the_tree_goes_by_its_name(script: str) -> None:
    for path in ROOT.glob(script):
        name = path.parent.name if path.stem == "prepare" else path.stem
        module = command_of(f"{'prepare' if path.stem == 'prepare' else 'train'} {name}").removeprefix("-m ")
        found = importlib.util.find_spec(module)
        assert found is not None
        assert Path(str(found.origin)).samefile(path)


@pytest.mark.parametrize(
    ("line", "nodes", "processes", "threads"),
    [
        ("train train_dlrm", 1, 2, 1),
        ("train --cpu 16 -j 3x4 train_dlrm", 3, 4, 4),
        ("train -h h100x8 train_dlrm", 1, 8, 13),
        ("train -h p5.48xlarge -j 2x4 train_dlrm", 2, 4, 46),
        ("evaluate --gpu 4 train_dlrm runs/a", 1, 4, 1),
        ("prepare -h cpux80 -j 2x38 census", 2, 38, 2),
    ],
)
def test_processes_and_their_threads_follow_from_the_resource(
    line: str, nodes: int, processes: int, threads: int
) -> None:
    (role,) = app_of(line).roles
    assert role.num_replicas == nodes
    assert f"--nnodes {nodes} --nproc_per_node {processes} " in role.args[-1]
    assert role.env["OMP_NUM_THREADS"] == str(threads)


def test_a_named_resource_and_ones_own_environment_take_precedence() -> None:
    line = "train -h p5.48xlarge --cpu 1 --env OMP_NUM_THREADS=3,A=1 --image img --name trial/one train_dlrm"
    app = app_of(line)
    (role,) = app.roles
    assert (role.resource.cpu, role.resource.gpu, role.image, app.name) == (184, 8, "img", "one")
    assert (role.env["OMP_NUM_THREADS"], role.env["A"]) == ("3", "1")


def test_an_elastic_range_and_retries_reach_torchrun_and_the_scheduler() -> None:
    (role,) = app_of("train -j 1:2x8 --max_retries 3 train_dlrm").roles
    assert (role.min_replicas, role.num_replicas, role.max_retries) == (1, 2, 3)
    assert "--nnodes 1:2 --nproc_per_node 8 " in role.args[-1]
    assert role.env["PET_MAX_RESTARTS"] == "3"
    assert role.env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in app_of("train -j 2x8 train_dlrm").roles[0].env


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train", r"dlrm.train must be told what to run: got \[\]; name it before"),
        ("train -- --lr 1", r"dlrm.train must be told what to run: got \['--lr', '1'\]; name it before"),
        (
            "train train_dlmr demo",
            r"script must be the path of a .py file or one of .*: got 'train_dlmr'; try train_dl",
        ),
        ("train -h h100x8 -j 1x9 train_dlrm", r"processes per node must be at most its 8 GPUs: got -j 1x9; ask for"),
        *(
            (f"{component} -j {j} train_dlrm runs/a", f"-j must be at least 1, and the nodes a range: got '{j}'; write")
            for component in ("train", "evaluate")
            for j in ("0x0", "1x0", "0x2", "3:1x2")
        ),
        (
            "train --gpu 8 --check_fit True train_dlrm",
            r"check_fit must know the machine: got 8 GPUs of unknown kind; name",
        ),
        ("evaluate train_dlrm", r"dlrm.evaluate must be told a recipe and a run: got \['train_dlrm'\]; name both"),
        ("prepare kaggle", r"script must be the path of a .py file or one of \['census', .*: got 'kaggle'; try census"),
        ("plan -- --topology 1x8:h100", r"dlrm.plan must be told what to run: got \['--topology', .*; name it before"),
    ],
)
def test_what_cannot_run_is_refused_at_submission(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        app_of(line)


LAUNCHES = {  # component and options, the module that they run, and on how many nodes
    "train -h p5.48xlarge -j 2x8 train_dcnv2 mlperf": ("recipes.train_dcnv2", 2),
    "plan train_dcnv2 --preset mlperf --topology 2x8:h100": ("recipes.plan_sharding", 1),
    "prepare -j 4x8 --max_retries 2 criteo kaggle --input train.txt --output prepared": ("data.criteo.prepare", 4),
    "evaluate -h p5.48xlarge train_dcnv2 runs/train_dcnv2/mlperf": ("recipes.evaluate", 1),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_takes_every_component(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if scheduler == "kubernetes":
        absent = "install the Kubernetes client: pip install 'dlrm-torchrec[launch]'"
        assert importlib.util.find_spec("kubernetes"), absent
    monkeypatch.chdir(tmp_path)
    with get_runner() as runner:
        for line, (module, nodes) in LAUNCHES.items():
            component, *options = shlex.split(line)
            request = runner.dryrun_component(f"dlrm.{component}", options, scheduler, SCHEDULERS[scheduler])
            commands = 1 if scheduler == "aws_batch" else nodes  # Batch has one definition for all nodes
            assert str(request).count(f"dlrm_torchrec.{module}") == commands


def test_kubernetes_finds_rank_0_by_a_variable_that_a_shell_can_name() -> None:
    with get_runner() as runner:
        request = runner.dryrun_component(
            "dlrm.train", ["-j", "2x1", "my-copy.py"], "kubernetes", {"queue": "q"}
        ).request
    second = request.resource["spec"]["tasks"][1]
    assert "${VC_MYCOPY_0_HOSTS:=localhost}:29500" in second["template"].spec.containers[0].command[-1]
    assert request.resource["spec"]["tasks"][0]["name"] == "mycopy-0"  # Volcano names the variable by it


class Planner:
    """What is asked of the planner, in place of the seconds that it takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = 0, says: str = "", refuses: str = "") -> None:
        self.command: list[str] = []
        self.clusters: list[dict[str, Any]] = []
        self.answer = (code, says, refuses)
        monkeypatch.setattr(subprocess, "run", self)

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.command = command
        self.clusters = [tomllib.loads(Path(word).read_text()) for word in command if word.endswith(".toml")]
        return subprocess.CompletedProcess(command, *self.answer)

    @property
    def topologies(self) -> list[str]:
        start = self.command.index("--topology") + 1
        return self.command[start : self.command.index("--output")]


def test_what_is_planned_is_what_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(monkeypatch)
    app_of("train -h aws_p4d.24xlarge -j 2:4x8 --check_fit True train_dcnv2 mlperf --tables.kind hash")
    assert planner.command[1:4] == ["-m", "dlrm_torchrec.recipes.plan_sharding", "train_dcnv2"]
    assert planner.topologies == ["2x8:p4d.24xlarge", "4x8:p4d.24xlarge"]
    assert planner.command[-5:] == ["--preset", "mlperf", "--", "--tables.kind", "hash"]
    app_of("train -h h100x1 --check_fit True mine.py --seed 1")
    assert planner.command[3] == "mine.py"
    assert planner.topologies == ["1x1:h100"]
    assert planner.command[-3:] == ["--", "--seed", "1"]
    assert "--preset" not in planner.command


def test_nodes_without_gpus_are_planned_with_the_memory_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(monkeypatch)
    app_of("train --memMB 1000 -j 3x4 --check_fit True train_dlrm")
    assert planner.clusters == [{"machine": "cpu", "hosts": 3, "devices_per_host": 4, "ddr_bytes": 1000 * 2**20}]


def test_what_does_not_fit_is_not_submitted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Planner(monkeypatch, code=3, refuses="1x2:h100: tables must fit\n")
    monkeypatch.setattr(LocalScheduler, "schedule", lambda *_: pytest.fail("submitted"))
    with get_runner() as runner, pytest.raises(SystemExit) as stopped:
        runner.run_component("dlrm.train", shlex.split("-h h100x8 -j 1x2 --check_fit True train_dlrm"), "local_cwd")
    assert stopped.value.code == 3
    assert capsys.readouterr().err == "1x2:h100: tables must fit\n"


# -- real runs


def typed(command: str, folder: Path, timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
    """The finished ``command``, run in ``folder`` without an activated environment."""
    program, *arguments = shlex.split(command)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(
        [BIN / program, *arguments], cwd=folder, env=environment, text=True, capture_output=True, timeout=timeout_s
    )


def launched(command: str, folder: Path) -> str:
    finished = typed(f"torchx run -s local_cwd {command}", folder)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def metrics_of(output: str) -> dict[str, float]:
    line = [line for line in output.splitlines() if '"val/auc"' in line][-1]
    found: dict[str, float] = json.loads(line[line.index("{") :])
    return found


SHORT = "--rows 40960 --batch-size 1024"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_an_empty_folder_a_recipe_is_planned_trained_and_evaluated(tmp_path: Path) -> None:
    launched("dlrm.plan train_dlrm --topology 1x2:cpu --output cpu.json -- --tables.kind hash", tmp_path)
    assert json.loads((tmp_path / "cpu.json").read_text())
    output = launched(f"dlrm.train -j 1x2 --check_fit True train_dlrm demo {SHORT}", tmp_path)
    assert "1x2-cpu.toml" in output
    trained = metrics_of(output)
    assert trained["val/auc"] > 0.6
    launched("dlrm.evaluate -j 1x1 train_dlrm runs/train_dlrm/demo", tmp_path)
    evaluated = json.loads((tmp_path / "runs/train_dlrm/demo/evaluation.json").read_text())
    assert evaluated["metrics"]["auc"] == pytest.approx(trained["val/auc"], abs=1e-6)


@pytest.mark.slow
def test_prepared_by_two_processes(tmp_path: Path) -> None:
    fields = ["\t".join([str(row % 2), *["3"] * 13, *[f"{row % 7:08x}"] * 26]) for row in range(700)]
    (tmp_path / "train.txt").write_text("\n".join(fields) + "\n")
    launched("dlrm.prepare -j 1x2 criteo kaggle --input train.txt --output prepared", tmp_path)
    manifest = json.loads((tmp_path / "prepared/dataset.json").read_text())
    assert sum(split["rows"] for split in manifest["splits"].values()) == 700


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_the_planners_sentence(tmp_path: Path) -> None:
    finished = typed("torchx run -s local_cwd dlrm.train -h a100-40x1 --check_fit True train_dlrm criteo-1tb", tmp_path)
    assert finished.returncode == 3
    assert "1x1:a100-40: tables must fit the memory of 1 cuda ranks" in finished.stderr
    assert "Nearest changes that fit" in finished.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_takes_in_a_node_and_goes_on_when_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = "train_dlrm demo --batch-size 1024 --eval-every 0"
    undisturbed = metrics_of(launched(f"dlrm.train -j 1x2 {recipe} --run-dir undisturbed", tmp_path))

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    line = f"-j 1:2x1 --max_retries 1 --rdzv_port {port} {recipe} --run-dir elastic --checkpoint.every 100"
    with get_runner() as runner:
        (replicas,) = runner.dryrun_component("dlrm.train", shlex.split(line), "local_cwd").request.role_params.values()
    nodes: list[subprocess.Popen[bytes]] = []
    log, checkpoints = tmp_path / "log", tmp_path / "elastic/demo/checkpoints"

    def start(node: int) -> None:
        environment = {**os.environ, **replicas[node].env, "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        with log.open("a") as output:
            nodes.append(subprocess.Popen(replicas[node].args, env=environment, stdout=output, stderr=output))

    def steps() -> list[int]:
        return [int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")]

    try:
        start(0)
        _wait_for(lambda: bool(steps()), nodes)
        start(1)
        _wait_for(lambda: any(step % 100 for step in steps()), nodes)  # saved to make room for the second
        joined = max(steps())
        _wait_for(lambda: max(steps()) > joined, nodes)
        _kill(nodes[1].pid)
        assert '"val/auc"' not in log.read_text()  # the run was not over
        assert nodes[0].wait(timeout=400) == 0, log.read_text()
    finally:
        for node in nodes:
            _kill(node.pid)
    changed = metrics_of(log.read_text())
    assert changed["steps"] == undisturbed["steps"] == 2400
    assert changed["val/auc"] == pytest.approx(undisturbed["val/auc"], abs=1e-3)


def _wait_for(happened: Callable[[], bool], nodes: list[subprocess.Popen[bytes]], timeout_s: float = 200) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        assert all(node.poll() is None for node in nodes)
        time.sleep(0.05)


def _kill(pid: int) -> None:
    """A process and all that it started: torchrun's ranks are sessions of their own."""
    with contextlib.suppress(OSError):
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        os.kill(pid, signal.SIGKILL)
        for child in children:
            _kill(child)

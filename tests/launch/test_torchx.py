"""The launch component: what a user types runs, stock ways of naming the program still work, nothing is hidden."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torchx.components.dist
from torchx.components.component_test_base import ComponentTestCase
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import ComponentValidationException, ModuleComponentsFinder, get_components

import torchx_components.dist

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

JOB = """
import json, os, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank())])
dist.all_reduce(total)
if dist.get_rank() == 0:
    seen = {"sum": total.item(), "local": os.environ["LOCAL_WORLD_SIZE"], "arguments": sys.argv[1:]}
    print("JOB", json.dumps(seen), flush=True)
dist.destroy_process_group()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with this project's launcher defaults and one small recipe."""
    shutil.copy(ROOT / ".torchxconfig", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "job.py").write_text(JOB)
    (tmp_path / "recipes" / "broken.py").write_text("raise SystemExit(7)")
    return tmp_path


def typed(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The finished ``command``, run in ``folder`` without an activated environment."""
    program, *arguments = shlex.split(command)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(
        [BIN / program, *arguments], cwd=folder, env=environment, text=True, capture_output=True, timeout=120
    )


def job_report(command: str, folder: Path) -> dict[str, object]:
    finished = typed(command, folder)
    output = finished.stdout + finished.stderr
    assert finished.returncode == 0, output
    reports = [line.partition("JOB ")[2] for line in output.splitlines() if "JOB {" in line]
    assert len(reports) == 1, output
    report: dict[str, object] = json.loads(reports[0])
    return report


def command_of(line: str) -> str:
    """What each node runs for ``torchx run dist.ddp <line>``, from torchrun's ``--role ''`` to the end."""
    role = materialize_appdef(torchx_components.dist.ddp, shlex.split(line)).roles[0]
    return role.args[-1].partition("--role '' ")[2]


def test_script_as_first_positional_runs_on_two_processes(project: Path) -> None:
    report = job_report("torchx run dist.ddp -j 1x2 recipes/job.py demo --epochs 2", project)
    assert report == {"sum": 1.0, "local": "2", "arguments": ["demo", "--epochs", "2"]}


def test_two_nodes_meet_on_one_machine(project: Path) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    report = job_report(f"torchx run dist.ddp -j 2x1 --rdzv_port {port} recipes/job.py -- --epochs 2", project)
    assert report == {"sum": 1.0, "local": "1", "arguments": ["--epochs", "2"]}


def test_failure_of_the_script_is_failure_of_the_launch(project: Path) -> None:
    finished = typed("torchx run dist.ddp -j 1x1 recipes/broken.py", project)
    assert finished.returncode == 1
    assert "exitcode  : 7" in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("recipes/job.py", "recipes/job.py"),
        ("-j 2x8 recipes/job.py", "recipes/job.py"),
        ("-j 2x8 recipes/job.py demo --lr=0.1 -v", "recipes/job.py demo --lr=0.1 -v"),
        ("-j 2x8 recipes/job.py -- demo --lr 0.1", "recipes/job.py demo --lr 0.1"),
        ("-j 2x8 -- recipes/job.py demo --lr 0.1", "recipes/job.py demo --lr 0.1"),
        ("-j 2x8 recipes/job.py --name 'two words'", "recipes/job.py --name 'two words'"),
        ("-j 2x8 recipes/job.py demo -- last", "recipes/job.py demo -- last"),
        ("--script recipes/job.py", "recipes/job.py"),
        ("--script recipes/job.py demo --lr 0.1", "recipes/job.py demo --lr 0.1"),
        ("--script recipes/job.py -- --lr 0.1", "recipes/job.py --lr 0.1"),
        ("-m some.module", "-m some.module"),
        ("-m some.module -- --lr 0.1", "-m some.module --lr 0.1"),
    ],
)
def test_program_and_arguments_reach_torchrun(line: str, expected: str) -> None:
    assert command_of(line) == expected


@pytest.mark.parametrize("line", ["", "-j 2x8", "-- --lr 0.1"])
def test_missing_program_is_explained(line: str) -> None:
    with pytest.raises(ValueError, match=r"dist.ddp must be told what to run: got .*; name a script before"):
        command_of(line)


@pytest.mark.parametrize("j", ["0x0", "1x0", "2:1x2"])
def test_no_ranks_are_refused_as_torchx_refuses(j: str) -> None:
    with pytest.raises(ComponentValidationException, match=f"-j must be at least 1, .*: got '{j}'; write for example"):
        command_of(f"-j {j} recipes/job.py")


def test_stock_options_reach_the_stock_component() -> None:
    line = (
        "--name trial/one --image img --cpu 3 --gpu 4 --memMB 5 -j 1:2x4 --env A=1,B=2 --max_retries 6 "
        "--rdzv_port 7 --rdzv_backend etcd --mounts type=bind,src=/a,dst=/b --debug True --tee 1"
    )
    ours = materialize_appdef(torchx_components.dist.ddp, shlex.split(f"{line} job.py --x 1"))
    stock = materialize_appdef(torchx.components.dist.ddp, shlex.split(f"{line} --script job.py -- --x 1"))
    stock_command = stock.roles[0].args[-1]
    assert ours.roles[0].args[-1] == f'PATH={BIN}:"$$PATH" {stock_command}'
    ours.roles[0].args[-1] = stock_command
    assert ours.roles[0].env.pop("OMP_NUM_THREADS") == "1"  # 3 cores for 4 processes
    assert ours == stock


def test_options_are_those_of_the_stock_component() -> None:
    ours = inspect.signature(torchx_components.dist.ddp)
    assert ours == inspect.signature(torchx.components.dist.ddp)


def test_torchx_accepts_the_component_and_its_help() -> None:
    ComponentTestCase().validate(torchx_components.dist, "ddp")


def test_no_builtin_is_hidden() -> None:
    stock = {c.name for c in ModuleComponentsFinder("torchx.components", "").find() if not c.validation_errors}
    registered = get_components()
    assert {"dist.ddp", "dist.spmd", "utils.echo", "utils.sh", "utils.python", "metrics.tensorboard"} <= stock
    assert set(registered) == stock | {"dlrm.train", "dlrm.plan", "dlrm.prepare", "dlrm.evaluate"}
    assert registered["dist.ddp"].fn.__module__ == "torchx_components.dist"
    assert registered["dist.spmd"].fn.__module__ == "torchx.components.dist"


def test_slurm_request_names_nodes_and_script(project: Path) -> None:
    command = "torchx run --dryrun -s slurm -cfg partition=p,time=10 dist.ddp -j 2x8 --gpu 8 recipes/job.py demo"
    finished = typed(command, project)
    assert finished.returncode == 0, finished.stderr
    request = finished.stdout.partition("SCHEDULER REQUEST")[2]
    assert request.count("#SBATCH --job-name=job-") == 2
    assert request.count("--gpus-per-task=8") == 2
    assert request.count("--nnodes 2 --nproc_per_node 8") == 2
    assert request.count("recipes/job.py demo'") == 2

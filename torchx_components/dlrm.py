"""Runs this project's scripts on any scheduler: ``torchx run dlrm.train -h h100x8 -j 2x8 train_dcnv2 mlperf``.

You name a recipe as in ``dlrm-recipes ls``, or give the path of your own file. A name becomes a module of the installed
package, which every image finds. A path must lead to the file on the nodes.
"""

import difflib
import importlib.util
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torchx
from torchx import specs
from torchx.components.dist import parse_nnodes

from torchx_components import dist
from torchx_components.resources import machine_of

PACKAGE = "dlrm_torchrec"
RECIPES, PREPARATIONS = "recipes.*", "data.*.prepare"  # modules of the package
PLANNER, EVALUATION = f"{PACKAGE}.recipes.plan_sharding", f"{PACKAGE}.recipes.evaluate"


def train(
    *recipe: str,
    h: Optional[str] = None,
    j: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    check_fit: bool = False,
    max_retries: int = 0,
    image: str = torchx.IMAGE,
    name: str = "/",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train a recipe on one or several nodes; run the same command again to resume an interrupted run.

    Usage: torchx run dlrm.train -h h100x8 -j 2x8 --check_fit True train_dcnv2 mlperf

    Args:
        recipe: the name of a recipe or the path of your own, then its preset and options
        h: a registered named resource, such as h100x8 or p5.48xlarge (takes precedence over cpu, gpu, memMB)
        j: [{min_nodes}:]{nodes}x{processes_per_node}; by default one node with a process per GPU, or two without GPUs
        cpu: number of cpus per node
        gpu: number of gpus per node
        memMB: cpu memory in MB per node
        check_fit: whether to plan the tables first, and to submit nothing if they do not fit the nodes
        max_retries: how often torchrun, and then the scheduler, restart the ranks from the newest checkpoint
        image: image (e.g. docker) in which dlrm-torchrec is installed
        name: job name as ``{experimentname}/{runname}``; either part may be left out
        env: environment variables to be passed to the run (e.g. ENV1=v1,ENV2=v2)
        mounts: mounts into the worker's container (ex. type=<bind/volume>,src=/host,dst=/job[,readonly])
        rdzv_port: the port on the first node that hosts the rendezvous (several nodes only)
    """
    script, options = _split(recipe, "dlrm.train -j 1x2 train_dlrm demo")
    options = options[1:] if options[:1] == ["--"] else options
    program, resource = _program(script, RECIPES), specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    j = _checked(j, resource)
    if check_fit:
        _check_fit(script, options, resource, j)
    return _ranks(
        options,
        resource,
        j=j,
        max_retries=max_retries,
        env=env,
        **program,
        image=image,
        name=name,
        mounts=mounts,
        rdzv_port=rdzv_port,
    )


def evaluate(
    *recipe: str,
    h: Optional[str] = None,
    j: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    max_retries: int = 0,
    image: str = torchx.IMAGE,
    name: str = "/",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Evaluate a checkpoint on any number of nodes, and print its metrics.

    Usage: torchx run dlrm.evaluate -j 1x2 train_dlrm runs/train_dlrm/demo --ablation

    Args:
        recipe: the recipe that trained the run, the run's folder, then options of recipes/evaluate.py
        h: a registered named resource, such as h100x8 or p5.48xlarge (takes precedence over cpu, gpu, memMB)
        j: {nodes}x{processes_per_node}; by default one node with a process per GPU, or two without GPUs
        cpu: number of cpus per node
        gpu: number of gpus per node
        memMB: cpu memory in MB per node
        max_retries: how often to restart from the beginning
        image: image (e.g. docker) in which dlrm-torchrec is installed
        name: job name as ``{experimentname}/{runname}``; either part may be left out
        env: environment variables to be passed to the run (e.g. ENV1=v1,ENV2=v2)
        mounts: mounts into the worker's container (ex. type=<bind/volume>,src=/host,dst=/job[,readonly])
    """
    if len(recipe) < 2:
        raise dist.RefusedError(
            f"dlrm.evaluate must be told a recipe and a run: got {list(recipe)}; "
            "name both, as in 'dlrm.evaluate train_dlrm runs/train_dlrm/demo'"
        )
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    j = _checked(j, resource)
    return _ranks(
        recipe, resource, j=j, max_retries=max_retries, env=env, m=EVALUATION, image=image, name=name, mounts=mounts
    )


def prepare(
    *data_set: str,
    h: Optional[str] = None,
    j: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    max_retries: int = 0,
    image: str = torchx.IMAGE,
    name: str = "/",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Prepare a data set for training in several processes; run the same command again to resume.

    Usage: torchx run dlrm.prepare -j 4x8 criteo kaggle --input train.txt --output prepared/criteo-kaggle

    Args:
        data_set: criteo, census or movielens, or the path of your own script, then options of data/<name>/prepare.py
        h: a registered named resource, such as cpux80 (takes precedence over cpu, gpu, memMB)
        j: {nodes}x{processes_per_node}; by default one node with a process per GPU, or two without GPUs
        cpu: number of cpus per node
        gpu: number of gpus per node
        memMB: cpu memory in MB per node
        max_retries: how often torchrun, and then the scheduler, restart the processes where they stopped
        image: image (e.g. docker) in which dlrm-torchrec is installed
        name: job name as ``{experimentname}/{runname}``; either part may be left out
        env: environment variables to be passed to the run (e.g. ENV1=v1,ENV2=v2)
        mounts: mounts into the worker's container (ex. type=<bind/volume>,src=/host,dst=/job[,readonly])
    """
    script, options = _split(data_set, "dlrm.prepare -j 1x2 census --input FOLDER --output prepared/census")
    program, resource = _program(script, PREPARATIONS), specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    j = _checked(j, resource)
    return _ranks(
        options, resource, j=j, max_retries=max_retries, env=env, **program, image=image, name=name, mounts=mounts
    )


def plan(
    *recipe: str,
    cpu: int = 2,
    memMB: int = 8192,
    image: str = torchx.IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Plan a recipe's tables for machines that you do not have, in one process.

    Usage: torchx run dlrm.plan train_dcnv2 --preset mlperf --topology 2x8:h100 -- --batch-size 65536

    Args:
        recipe: the recipe, then options of recipes/plan_sharding.py
        cpu: number of cpus
        memMB: cpu memory in MB
        image: image (e.g. docker) in which dlrm-torchrec is installed
        env: environment variables to be passed to the process (e.g. ENV1=v1,ENV2=v2)
        mounts: mounts into the container (ex. type=<bind/volume>,src=/host,dst=/job[,readonly])
    """
    _split(recipe, "dlrm.plan train_dlrm --topology 1x8:h100")
    command = shlex.join(["python", "-m", PLANNER, *recipe])
    role = specs.Role(
        name="plan",
        image=image,
        entrypoint="bash",
        args=["-c", dist.beside_torchx(command)],
        env=env or {},
        resource=specs.resource(cpu=cpu, memMB=memMB),
        mounts=specs.parse_mounts(mounts or []),
    )
    return specs.AppDef(name="plan", roles=[role])


def _split(arguments: Sequence[str], example: str) -> Tuple[str, List[str]]:
    """The script to run, and its options."""
    if not arguments or arguments[0].startswith("-"):
        raise dist.RefusedError(
            f"{example.partition(' ')[0]} must be told what to run: got {list(arguments)}; "
            f"name it before its options, as in '{example}'"
        )
    return arguments[0], list(arguments[1:])


def _program(name: str, modules: str) -> Dict[str, str]:
    """dist.ddp's option for the module of that name among ``modules``, or for the path of a script."""
    if name.endswith(".py"):
        return {"script": name}
    package = importlib.util.find_spec(PACKAGE)
    assert package is not None, "these components are installed with it"
    folder = Path(*package.submodule_search_locations or ())
    paths = folder.glob(f"{modules.replace('.', '/')}.py")
    part = modules.split(".").index("*")
    known = sorted(path.relative_to(folder).with_suffix("").parts[part] for path in paths)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1) or known
        raise dist.RefusedError(f"script must be the path of a .py file or one of {known}: got {name!r}; try {near[0]}")
    return {"m": f"{PACKAGE}.{modules.replace('*', name)}"}


def _checked(j: Optional[str], resource: specs.Resource) -> str:
    """``j``, or by default one node with a process per GPU, or with two processes."""
    j = j or f"1x{resource.gpu or 2}"
    processes = dist.processes_of(j)
    if 0 < resource.gpu < processes:
        raise dist.RefusedError(
            f"processes per node must be at most its {resource.gpu} GPUs: got -j {j}; ask for more nodes"
        )
    return j


def _ranks(
    options: Sequence[str],
    resource: specs.Resource,
    *,
    j: str,
    max_retries: int,
    env: Optional[Dict[str, str]],
    **others: Any,
) -> specs.AppDef:
    """``dist.ddp`` with the settings that follow from the resource."""
    least, most, processes, _ = parse_nnodes(j)
    defaults = {
        "OMP_NUM_THREADS": str(max(1, resource.cpu // processes)),
        "PET_MAX_RESTARTS": str(max_retries),  # torchrun's --max_restarts
    }
    if least < most:  # torch 2.13 tells the address of its shared store only to nodes that are there at the start
        defaults["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    app = dist.ddp(*options, j=j, max_retries=max_retries, env=defaults | (env or {}), **others)
    app.roles[0].resource = resource
    return app


def _check_fit(recipe: str, options: Sequence[str], resource: specs.Resource, j: str) -> None:
    """Ends the launch with the planner's message and exit code, unless both ends of the range of nodes fit."""
    least, most, processes, _ = parse_nnodes(j)
    named = options[:1] if options and not options[0].startswith("-") else []
    with tempfile.TemporaryDirectory() as folder:
        clusters = [_cluster(nodes, processes, resource, folder) for nodes in sorted({least, most})]
        files = ["--output", f"{folder}/plan.json", "--page", f"{folder}/plan.html"]
        command = [sys.executable, "-m", PLANNER, recipe, "--topology", *clusters, *files]
        planned = subprocess.run(
            [*command, *(["--preset", *named] if named else []), "--", *options[len(named) :]],
            capture_output=True,
            text=True,
        )
    if planned.returncode:
        print(planned.stderr.replace(f"{folder}/", "").strip(), file=sys.stderr)
        raise SystemExit(planned.returncode)
    print(planned.stdout.rpartition("\n\n")[2].replace(f"{folder}/", "").strip(), file=sys.stderr)


def _cluster(nodes: int, processes: int, resource: specs.Resource, folder: str) -> str:
    """The planner's name of that many nodes; a file in ``folder`` describes nodes without GPUs."""
    if resource.gpu:
        machine = machine_of(resource)
        if not machine:
            raise dist.RefusedError(
                f"check_fit must know the machine: got {resource.gpu} GPUs of unknown kind; name it, as in -h h100x8"
            )
        return f"{nodes}x{processes}:{machine}"
    path = Path(folder, f"{nodes}x{processes}-cpu.toml")
    memory = resource.memMB * 2**20
    path.write_text(f'machine = "cpu"\nhosts = {nodes}\ndevices_per_host = {processes}\nddr_bytes = {memory}\n')
    return str(path)

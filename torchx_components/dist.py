"""A ``dist.ddp`` that takes the script as typed: ``torchx run dist.ddp -j 2x8 recipes/train_dlrm.py demo --seed 1``.

TorchX's own component needs ``--script`` or ``-m``, and a ``torchrun`` on PATH. This one also takes the script as the
first positional argument, and finds the ``torchrun`` that is installed next to the running ``torchx``.
"""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Dict, List, Optional

import torchx
from torchx import specs
from torchx.components import dist
from torchx.specs.finder import ComponentValidationException


class RefusedError(ValueError, ComponentValidationException):
    """A job that cannot be; torchx prints its sentence without a call stack."""


def ddp(
    *script_args: str,
    script: Optional[str] = None,
    m: Optional[str] = None,
    image: str = torchx.IMAGE,
    name: str = "/",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 1024,
    j: str = "1x2",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    rdzv_backend: str = "c10d",
    mounts: Optional[List[str]] = None,
    debug: bool = False,
    tee: int = 3,
) -> specs.AppDef:
    """Run a script or a module by ``torchrun`` on one or several nodes.

    Usage: torchx run dist.ddp -j 2x8 recipes/train_dlrm.py demo --seed 1

    Args:
        script_args: the script (unless --script or -m names it), then its own arguments
        script: script or binary to run within the image
        m: the python module path to run
        image: image (e.g. docker)
        name: job name as ``{experimentname}/{runname}``; either part may be left out
        h: a registered named resource (takes precedence over cpu, gpu, memMB)
        cpu: number of cpus per node
        gpu: number of gpus per node
        memMB: cpu memory in MB per node
        j: [{min_nodes}:]{nodes}x{processes_per_node}
        env: environment variables to be passed to the run (e.g. ENV1=v1,ENV2=v2)
        max_retries: the number of scheduler retries allowed
        rdzv_port: the port on the first node that hosts the rendezvous (several nodes only)
        rdzv_backend: the rendezvous backend to use (several nodes only)
        mounts: mounts into the worker's container (ex. type=<bind/volume>,src=/host,dst=/job[,readonly])
        debug: whether to run with preset debug flags enabled
        tee: std streams copied to the console: 0 none, 1 stdout, 2 stderr, 3 both
    """
    processes = processes_of(j)
    arguments = list(script_args)
    if script is None and m is None:
        if not arguments or arguments[0].startswith("-"):
            raise RefusedError(
                f"dist.ddp must be told what to run: got {arguments}; "
                "name a script before its arguments, as in 'dist.ddp -j 1x2 recipes/train_dlrm.py'"
            )
        script = arguments.pop(0)
        if arguments[:1] == ["--"]:
            arguments = arguments[1:]

    threads = str(max(1, cpu // processes))  # of a process; without it, torchrun takes 1 and says so at length
    app = dist.ddp(
        *arguments,
        script=script,
        m=m,
        image=image,
        name=name,
        h=h,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        j=j,
        env={"OMP_NUM_THREADS": threads} | (env or {}),
        max_retries=max_retries,
        rdzv_port=rdzv_port,
        rdzv_backend=rdzv_backend,
        mounts=mounts,
        debug=debug,
        tee=tee,
    )
    for role in app.roles:
        role.args = [*role.args[:-1], beside_torchx(role.args[-1])]
        role.name = role.name.replace("-", "_")  # on Kubernetes, a shell variable with this name finds rank 0
    return app


def processes_of(j: str) -> int:
    """The processes of each node in ``[{min_nodes}:]{nodes}x{processes_per_node}``, which must all be at least 1."""
    processes: int
    least, most, processes, _ = dist.parse_nnodes(j)
    if not 0 < least <= most or processes < 1:
        raise RefusedError(
            f"nodes and processes of -j must be at least 1, and the nodes a range: got {j!r}; write for example 1x2"
        )
    return processes


def beside_torchx(command: str) -> str:
    """The shell command, with the folder of the running interpreter first on its PATH if torchrun is there.

    A node without this folder (another image, another cluster) finds its own torchrun as before.
    """
    folder = str(Path(sys.executable).parent)
    if shutil.which("torchrun", path=folder) is None:
        return command
    return f'PATH={shlex.quote(folder)}:"$$PATH" {command}'  # torchx turns $$ into $

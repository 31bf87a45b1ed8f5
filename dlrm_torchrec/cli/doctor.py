"""``dlrm-recipes doctor``: what is broken in this installation, and the command that fixes it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from dlrm_torchrec.cli.environment import Environment, observe
from dlrm_torchrec.cli.installation import (
    Finding,
    check_cuda,
    check_programs,
    check_versions,
    check_wheels,
    pip,
    right_fbgemm,
    sound_cuda,
    sound_programs,
    sound_versions,
    sound_wheels,
)

TIMEOUT_S = 180
IMPORTED = ("torch", "fbgemm_gpu", "torchrec")  # in the order in which they build on each other
_RAISED = re.compile(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception)\b(?<!ChildFailedError).*)$", re.M)


def doctor(names: Sequence[str]) -> int:
    """The number of findings of these checks; each finding is printed with its fix.

    Raises ValueError for a name that no check has.
    """
    for name in names:
        if name not in CHECKS:
            raise ValueError(
                f"check must be one of {', '.join(CHECKS)}: got {name!r}; name some of them, or no check to run all"
            )
    num_findings, environment = 0, observe()
    for name, findings in _examine(names, environment):
        for finding in findings:
            print(f"{name}: {finding.problem}; fix: {finding.cure}", flush=True)
        if not findings:
            print(f"{name}: {SOUND[name](environment)}", flush=True)
        num_findings += len(findings)
        if findings and name == "imports":
            break  # the next checks need these imports
    return num_findings


def _examine(names: Sequence[str], environment: Environment) -> Iterator[tuple[str, list[Finding]]]:
    """Each check with its findings. Processes that work have imported everything, so imports are not tried again."""
    processes: list[Finding] | None = None
    for name in names:
        if name == "imports" and "processes" in names:
            processes = CHECKS["processes"](environment)
        known = processes if name == "processes" or (name == "imports" and not processes) else None
        yield name, CHECKS[name](environment) if known is None else known


def check_imports(environment: Environment) -> list[Finding]:
    """Imports the packages in another process, because an import may also kill the process that does it."""
    program = "; ".join(f"import {name}; print({name!r}, flush=True)" for name in IMPORTED)
    said, failure = attempt([sys.executable, "-c", program])
    if failure is None:
        return []
    name = next(name for name in IMPORTED if name not in said)
    return [Finding(f"`import {name}` must succeed: got {failure}", _cure(failure, name, environment))]


def _cure(failure: str, name: str, environment: Environment) -> str:
    missing = re.search(r"No module named '(\w+)", failure)
    if missing and missing[1] not in IMPORTED:
        return pip(missing[1])
    if "libcuda.so" in failure:
        return f"install the NVIDIA driver or, for CPUs, {pip('fbgemm-gpu-cpu')} after pip uninstall -y fbgemm-gpu"
    if "libnvidia-ml.so" in failure:  # of the driver, too, but containers get it only if they ask for utilities
        return "install the NVIDIA driver or, in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    if name == "torch" or "cannot open shared object file" in failure:
        return "pip install --force-reinstall torch"  # also what torch depends on, such as the CUDA libraries
    return pip(right_fbgemm(environment) if name == "fbgemm_gpu" else name, force=True)


def check_processes(environment: Environment) -> list[Finding]:
    """Starts two processes by torchrun, as for a recipe; they add a number and train a small sharded table."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    said, failure = attempt([*torchrun, "-m", "dlrm_torchrec.cli.trial"])
    if failure is None:
        return []
    if "collective" not in said:
        cure = "export GLOO_SOCKET_IFNAME=lo, or the name of the network that the machines share"
        return [Finding(f"two processes must be able to add a number: got {failure}", cure)]
    cure = pip(right_fbgemm(environment), "torchrec", force=True)
    return [Finding(f"two processes must be able to train a sharded table: got {failure}", cure)]


def attempt(command: Sequence[str]) -> tuple[list[str], str | None]:
    """The lines that the command printed, and how it failed; None if it succeeded."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # not kill: torchrun ends its processes first
        output, _ = process.communicate()
        return output.splitlines(), f"no end within {TIMEOUT_S} s"
    if process.returncode == 0:
        return output.splitlines(), None
    raised = _RAISED.search(errors)  # the first of a chain is the cause of the others
    return output.splitlines(), raised[1] if raised else f"exit code {process.returncode}"


CHECKS: dict[str, Callable[[Environment], list[Finding]]] = {
    "versions": check_versions,
    "wheels": check_wheels,
    "cuda": check_cuda,
    "programs": check_programs,
    "imports": check_imports,
    "processes": check_processes,
}

# What a check says that finds nothing: what it looked at.
SOUND: dict[str, Callable[[Environment], str]] = {
    "versions": sound_versions,
    "wheels": sound_wheels,
    "cuda": sound_cuda,
    "programs": sound_programs,
    "imports": lambda _: f"ok, {', '.join(IMPORTED)} can be imported",
    "processes": lambda _: "ok, two processes added a number and trained a sharded table",
}

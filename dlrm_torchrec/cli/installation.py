"""What is wrong with an installation, and the command that fixes it, judged by what `observe` found."""

from __future__ import annotations

from dataclasses import dataclass

from dlrm_torchrec.cli.environment import FBGEMM, Environment

# torch -> its FBGEMM and TorchRec: their versions must match, although no metadata says so
LOCKSTEP = {"2.11": "1.6", "2.12": "1.7", "2.13": "1.8", "2.14": "1.9"}
LEAST_DRIVER = {"12": 525, "13": 580}  # NVIDIA's least driver for any CUDA of that major version


@dataclass(frozen=True)
class Finding:
    """What is broken, in one sentence, and the command that fixes it, or a step if there is no command."""

    problem: str
    cure: str


def pip(*requirements: str, force: bool = False) -> str:
    """The command that installs these and nothing else, because TorchRec's metadata would add FBGEMM for CUDA."""
    return " ".join(["pip install --no-deps", *["--force-reinstall"] * force, *(f"'{each}'" for each in requirements)])


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def right_fbgemm(environment: Environment) -> str:
    """The requirement of FBGEMM that fits this machine and its torch."""
    name = FBGEMM[0] if environment.torch_cuda and environment.driver_cuda else FBGEMM[1]
    partner = LOCKSTEP.get(minor(environment.versions.get("torch", "")))
    return f"{name}=={partner}.*" if partner else name


def _swap(build: str, environment: Environment) -> str:
    return f"pip uninstall -y {build} && {pip(right_fbgemm(environment))}"


def check_versions(environment: Environment) -> list[Finding]:
    versions = environment.versions
    partner = LOCKSTEP.get(minor(versions.get("torch", "")))
    needed = {
        "torch": "pip install torch",
        "torchrec": pip(f"torchrec=={partner}.*" if partner else "torchrec"),
        "torchmetrics": pip("torchmetrics==1.0.3"),
        "iopath": pip("iopath"),
    }
    findings = [Finding(f"{name} must be installed: got none", needed[name]) for name in needed if name not in versions]
    if not environment.fbgemm:
        findings.append(Finding("FBGEMM must be installed: got none", pip(right_fbgemm(environment))))
    for name in ("torchrec", *FBGEMM):
        if "torch" not in versions or name not in versions:
            continue
        wanted = partner or minor(versions.get("torchrec", versions[name]))  # of an unknown torch: equal at least
        if minor(versions[name]) != wanted:
            problem = f"{name} must be {wanted} for torch {versions['torch']}: got {versions[name]}"
            findings.append(Finding(problem, pip(f"{name}=={wanted}.*")))
    return findings


def check_wheels(environment: Environment) -> list[Finding]:
    if len(environment.fbgemm) == 2:
        hidden, other = sorted(environment.fbgemm, key=lambda wheel: -len(wheel.lost))
        problem = (
            f"one build of FBGEMM must be installed: got two in one folder, where {other.name} replaces {hidden.name} "
            f"({len(hidden.lost)} of its {hidden.num_libraries} libraries are replaced or missing)"
        )
        cure = f"pip uninstall -y {' '.join(FBGEMM)} && {pip(right_fbgemm(environment))}"
        return [Finding(problem, cure)]
    torch = environment.versions.get("torch")
    if torch and not environment.torch_cuda and any(wheel.name == FBGEMM[0] for wheel in environment.fbgemm):
        cure = (
            f"pip install --force-reinstall 'torch=={torch.partition('+')[0]}' from an index whose build is for CUDA "
            f"or, for CPUs, {_swap(FBGEMM[0], environment)}"
        )
        return [Finding(f"{FBGEMM[0]} must have a torch built for CUDA: got torch {torch} for CPUs", cure)]
    return [
        Finding(
            f"{wheel.name} must be as installed: {len(wheel.lost)} of its {wheel.num_libraries} libraries are missing "
            f"or replaced, for example {wheel.lost[0]}",
            pip(f"{wheel.name}=={wheel.version}", force=True),
        )
        for wheel in environment.fbgemm
        if wheel.lost
    ]


def check_cuda(environment: Environment) -> list[Finding]:
    built, runs = environment.torch_cuda, environment.driver_cuda
    findings = []
    if built and runs and int(runs.split(".")[0]) < int(built.split(".")[0]):
        least = LEAST_DRIVER.get(built.split(".")[0])
        cure = f"install NVIDIA driver {least} or later" if least else "install a later NVIDIA driver"
        findings.append(Finding(f"the NVIDIA driver must run CUDA {built}, which torch is built for: got {runs}", cure))
    for wheel in environment.fbgemm if len(environment.fbgemm) == 1 else ():
        swap = _swap(wheel.name, environment)
        if wheel.name == FBGEMM[0] and built and not runs:
            findings.append(Finding(f"{wheel.name} must have an NVIDIA driver to be imported: got none", swap))
        elif wheel.name == FBGEMM[1] and built and runs:
            findings.append(Finding(f"FBGEMM must be built for CUDA where torch uses a GPU: got {wheel.name}", swap))
    return findings


def check_programs(environment: Environment) -> list[Finding]:
    findings = []
    cure = f"export PATH={environment.scripts[0]}:$PATH"
    for name in ("torchrun", "torchx"):
        path = environment.programs.get(name)
        if name == "torchx" and "torchx" not in environment.versions:
            continue  # an extra that recipes do not need
        if path is None:
            findings.append(Finding(f"{name} must be on PATH: got none", cure))
        elif path.parent.resolve() not in [folder.resolve() for folder in environment.scripts]:
            findings.append(Finding(f"{name} on PATH must be this Python's: got {path}", cure))
    return findings


def sound_versions(environment: Environment) -> str:
    found = [
        f"{name} {environment.versions[name]}"
        for name in ("torch", "torchrec", *FBGEMM)
        if name in environment.versions
    ]
    return f"ok, {', '.join(found)} belong together"


def sound_wheels(environment: Environment) -> str:
    (wheel,) = environment.fbgemm or (None,)
    return f"ok, all {wheel.num_libraries} libraries of {wheel.name} are as installed" if wheel else "none here"


def sound_cuda(environment: Environment) -> str:
    if environment.driver_cuda is None:
        return "none here, recipes run on CPUs"
    if environment.torch_cuda is None:
        return f"not used, as torch is built for CPUs; the driver runs CUDA {environment.driver_cuda}"
    return f"ok, torch is built for CUDA {environment.torch_cuda}, and the driver runs {environment.driver_cuda}"


def sound_programs(environment: Environment) -> str:
    return (
        f"ok, {' and '.join(environment.programs)} on PATH are this Python's" if environment.programs else "none here"
    )

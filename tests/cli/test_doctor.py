"""`dlrm-recipes doctor` on a good installation, and on broken ones that are made here."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dlrm_torchrec.cli import doctor as doctors
from dlrm_torchrec.cli.doctor import CHECKS, SOUND, attempt, doctor
from dlrm_torchrec.cli.environment import Environment, Wheel, observe
from dlrm_torchrec.cli.installation import Finding, check_cuda, check_programs, check_versions, check_wheels
from dlrm_torchrec.cli.trial import train_a_table
from tests.distributed import run_ranks
from tests.recipe import ROOT

SITE = Path(sysconfig.get_path("purelib"))
READING = ["versions", "wheels", "cuda", "programs"]  # the checks that start no process

GOOD = Environment(
    versions={
        "torch": "2.13.0+cpu",
        "torchrec": "1.8.0",
        "fbgemm-gpu-cpu": "1.8.0",
        "torchmetrics": "1",
        "iopath": "1",
    },
    fbgemm=(Wheel("fbgemm-gpu-cpu", "1.8.0", 18),),
    torch_cuda=None,
    driver_cuda=None,
    programs={"torchrun": Path("/env/bin/torchrun")},
    scripts=(Path("/env/bin"),),
)
CUDA = replace(
    GOOD,
    versions={**GOOD.versions, "torch": "2.13.0", "fbgemm-gpu": "1.8.0"},
    fbgemm=(Wheel("fbgemm-gpu", "1.8.0", 25),),
    torch_cuda="13.0",
    driver_cuda="13.1",
)


def without(environment: Environment, *names: str) -> Environment:
    return replace(environment, versions={k: v for k, v in environment.versions.items() if k not in names})


def problems(environment: Environment) -> list[Finding]:
    checks = (check_versions, check_wheels, check_cuda, check_programs)
    return [finding for check in checks for finding in check(environment)]


@pytest.mark.parametrize(
    "environment",
    [
        GOOD,
        CUDA,
        replace(GOOD, scripts=(Path("/usr/bin"), *GOOD.scripts)),  # of the user, beside the system's
        replace(GOOD, torch_cuda="13.0"),  # where no CPU build of torch is to be had
        replace(GOOD, driver_cuda="12.8"),  # a CPU stack on a machine with a GPU
        replace(GOOD, versions={**GOOD.versions, "torch": "2.15.0", "torchrec": "1.8.3"}),  # newer than the table
        replace(GOOD, versions={**GOOD.versions, "torch": "2.11.0", "torchrec": "1.6.1", "fbgemm-gpu-cpu": "1.6.0"}),
    ],
)
def test_nothing_is_found_where_nothing_is_wrong(environment: Environment) -> None:
    assert problems(environment) == []


@pytest.mark.parametrize(
    ("environment", "problem", "cure"),
    [
        (without(GOOD, "torch"), "torch must be installed: got none", "pip install torch"),
        (replace(without(CUDA, "torch"), torch_cuda=None), "torch must be installed", "pip install torch"),
        (without(GOOD, "torchrec"), "torchrec must be installed", "pip install --no-deps 'torchrec==1.8.*'"),
        (without(GOOD, "iopath"), "iopath must be installed", "pip install --no-deps 'iopath'"),
        (without(GOOD, "torchmetrics"), "torchmetrics must be installed", "'torchmetrics==1.0.3'"),
        (replace(GOOD, fbgemm=()), "FBGEMM must be installed", "'fbgemm-gpu-cpu==1.8.*'"),
        (replace(CUDA, fbgemm=()), "FBGEMM must be installed", "'fbgemm-gpu==1.8.*'"),
        (
            replace(GOOD, versions={**GOOD.versions, "torchrec": "1.6.1"}),
            "torchrec must be 1.8 for torch 2.13.0+cpu: got 1.6.1",
            "pip install --no-deps 'torchrec==1.8.*'",
        ),
        (
            replace(GOOD, versions={**GOOD.versions, "fbgemm-gpu-cpu": "1.6.0"}),
            "fbgemm-gpu-cpu must be 1.8 for torch 2.13.0+cpu: got 1.6.0",
            "pip install --no-deps 'fbgemm-gpu-cpu==1.8.*'",
        ),
        (
            replace(GOOD, versions={**GOOD.versions, "torch": "2.15.0", "torchrec": "1.9.2"}),
            "fbgemm-gpu-cpu must be 1.9 for torch 2.15.0: got 1.8.0",
            "'fbgemm-gpu-cpu==1.9.*'",
        ),
        (
            replace(GOOD, versions={**GOOD.versions, "torch": "2.14.1", "fbgemm-gpu-cpu": "1.9.0"}),
            "torchrec must be 1.9 for torch 2.14.1: got 1.8.0",
            "pip install --no-deps 'torchrec==1.9.*'",
        ),
        (
            replace(GOOD, fbgemm=(Wheel("fbgemm-gpu", "1.8.0", 25), Wheel("fbgemm-gpu-cpu", "1.8.0", 18, ("a.so",)))),
            "fbgemm-gpu replaces fbgemm-gpu-cpu (1 of its 18 libraries",
            "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && pip install --no-deps 'fbgemm-gpu-cpu==1.8.*'",
        ),
        (
            replace(CUDA, fbgemm=(Wheel("fbgemm-gpu", "1.8.0", 25, ("a.so",)), Wheel("fbgemm-gpu-cpu", "1.8.0", 18))),
            "fbgemm-gpu-cpu replaces fbgemm-gpu (1 of its 25 libraries",
            "&& pip install --no-deps 'fbgemm-gpu==1.8.*'",
        ),
        (
            replace(GOOD, fbgemm=(Wheel("fbgemm-gpu-cpu", "1.8.0", 18, ("fbgemm_gpu/a.so", "fbgemm_gpu/b.so")),)),
            "2 of its 18 libraries are missing or replaced, for example fbgemm_gpu/a.so",
            "pip install --no-deps --force-reinstall 'fbgemm-gpu-cpu==1.8.0'",
        ),
        (
            replace(CUDA, driver_cuda="12.8"),
            "driver must run CUDA 13.0, which torch is built for: got 12.8",
            "driver 580 or later",
        ),
        (replace(CUDA, driver_cuda=None), "fbgemm-gpu must have an NVIDIA driver", "'fbgemm-gpu-cpu==1.8.*'"),
        (
            replace(CUDA, torch_cuda=None, versions={**CUDA.versions, "torch": "2.13.0+cpu"}),
            "fbgemm-gpu must have a torch built for CUDA: got torch 2.13.0+cpu for CPUs",
            "pip install --force-reinstall 'torch==2.13.0' from an index whose build is for CUDA or, for CPUs, "
            "pip uninstall -y fbgemm-gpu && pip install --no-deps 'fbgemm-gpu-cpu==1.8.*'",
        ),
        (
            replace(GOOD, torch_cuda="13.0", driver_cuda="13.0"),
            "FBGEMM must be built for CUDA where torch uses a GPU: got fbgemm-gpu-cpu",
            "pip uninstall -y fbgemm-gpu-cpu && pip install --no-deps 'fbgemm-gpu==1.8.*'",
        ),
        (replace(GOOD, programs={}), "torchrun must be on PATH: got none", "export PATH=/env/bin:$PATH"),
        (
            replace(GOOD, programs={"torchrun": Path("/usr/bin/torchrun")}),
            "torchrun on PATH must be this Python's: got /usr/bin/torchrun",
            "export PATH=/env/bin:$PATH",
        ),
        (replace(GOOD, versions={**GOOD.versions, "torchx": "0.7.0"}), "torchx must be on PATH", "export PATH="),
    ],
)
def test_each_fault_is_found_with_its_cure(environment: Environment, problem: str, cure: str) -> None:
    (finding,) = problems(environment)
    for text, part in ((finding.problem, problem), (finding.cure, cure)):
        assert part in text, finding
        assert "\n" not in text


class Installation:
    """A virtual environment like the one of these tests, whose packages can be taken away, added and replaced."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True, with_pip=False)
        self.python = folder / "bin" / "python"
        self.site = folder / SITE.relative_to(sys.prefix)
        for entry in SITE.iterdir():
            if not (self.site / entry.name).exists():
                (self.site / entry.name).symlink_to(entry)

    def own(self, name: str) -> Path:
        """A folder of site-packages, of this environment alone from now on."""
        path = self.site / name
        if path.is_symlink():
            original = path.resolve()
            path.unlink()
            shutil.copytree(original, path)
        return path

    def add_wheel(self, name: str, version: str, files: dict[str, str]) -> None:
        """What pip leaves of a wheel that brought ``files``, each with a RECORD entry of its hash and size."""
        folder = self.site / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (folder / "RECORD").write_text("".join(f"{path},{record}\n" for path, record in files.items()))

    def doctor(self, *checks: str) -> list[str]:
        """The lines of findings; the exit code says whether there are any."""
        command = [str(self.python), "-m", "dlrm_torchrec.cli.main", "doctor", *checks]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.stderr == ""
        found = [line for line in done.stdout.splitlines() if not re.match(r"\w+: (ok, |none here)", line)]
        assert done.returncode == (1 if found else 0)
        return found


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "env")


def test_a_sound_copy_of_this_environment_has_no_findings(installation: Installation) -> None:
    (installation.site / "left-1.0.dist-info").mkdir()  # by a removal that broke off
    assert installation.doctor("versions", "wheels", "cuda") == []


def test_versions_that_do_not_belong_together(installation: Installation) -> None:
    (installation.site / f"torchrec-{importlib.metadata.version('torchrec')}.dist-info").unlink()
    installation.add_wheel("torchrec", "1.5.0", {})
    (line,) = installation.doctor("versions")
    assert line.startswith("versions: torchrec must be 1.")
    assert ": got 1.5.0; fix: pip install --no-deps 'torchrec==1." in line


def test_a_package_that_is_missing(installation: Installation) -> None:
    for entry in installation.site.glob("torchrec*"):
        entry.unlink()
    for entry in installation.site.glob("iopath*"):
        entry.unlink()
    lines = installation.doctor("versions")
    assert [line.partition(": got")[0] for line in lines] == [
        "versions: torchrec must be installed",
        "versions: iopath must be installed",
    ]


def test_a_cpu_build_hidden_by_the_cuda_build_and_the_other_way_round(installation: Installation) -> None:
    """pip lists both; in the folder lie the libraries of the one that was installed last."""
    (here,) = {"fbgemm-gpu", "fbgemm-gpu-cpu"} & set(observe().versions)
    (other,) = {"fbgemm-gpu", "fbgemm-gpu-cpu"} - {here}
    libraries = [f"fbgemm_gpu/{name}.so" for name in ("fbgemm_gpu_py", "fbgemm_gpu_config")]
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"the other").digest()).decode().rstrip("=")
    installation.add_wheel(other, "1.8.0", dict.fromkeys(libraries, f"sha256={digest},9"))
    (line,) = installation.doctor("wheels")
    assert f"where {here} replaces {other} (2 of its 2 libraries are replaced or missing)" in line
    for path in libraries:
        (installation.own("fbgemm_gpu").parent / path).write_bytes(b"the other")
    (line,) = installation.doctor("wheels")
    assert f"where {other} replaces {here} (2 of its " in line
    assert "fix: pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && pip install --no-deps 'fbgemm-gpu" in line


def test_libraries_that_left_with_another_wheel(installation: Installation) -> None:
    (installation.own("fbgemm_gpu") / "fbgemm_gpu_py.so").unlink()
    (line,) = installation.doctor("wheels")
    assert (
        "libraries are missing or replaced, for example fbgemm_gpu/fbgemm_gpu_py.so; fix: pip install --no-deps --force"
        in line
    )


def test_a_library_that_wants_a_symbol_of_another_torch(installation: Installation) -> None:
    """As FBGEMM 1.8 with torch 2.11: a name that torch does not have."""
    library = installation.own("fbgemm_gpu") / "fbgemm_gpu_config.so"
    code = library.read_bytes()
    assert b"parseSchemaOrName" in code
    library.write_bytes(code.replace(b"parseSchemaOrName", b"parseSchemaOrGone"))
    (line,) = installation.doctor("imports")
    assert line.startswith("imports: `import fbgemm_gpu` must succeed: got OSError: ")
    assert "fbgemm_gpu_config.so: undefined symbol: _ZN" in line
    assert "parseSchemaOrGone" in line
    assert "; fix: pip install --no-deps --force-reinstall 'fbgemm-gpu" in line
    recipe = [str(installation.python), str(ROOT / "recipes/train_dlrm.py")]
    ended = subprocess.run(recipe, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(
        r"error: the installed packages must be importable: got .*; run `dlrm-recipes doctor`.*\n", ended.stderr
    )


def test_a_torch_that_cannot_be_imported(installation: Installation) -> None:
    (installation.site / "torch").unlink()
    (installation.site / "torch").mkdir()
    (installation.site / "torch" / "__init__.py").write_text("import ctypes; ctypes.CDLL('libcudart.so.99')")
    (line,) = installation.doctor("cuda", "imports", "processes")
    expected = "imports: `import torch` must succeed: got OSError: libcudart.so.99: cannot open shared object file"
    assert line.startswith(expected)
    assert line.endswith("fix: pip install --force-reinstall torch")


@pytest.mark.parametrize(
    ("library", "cure"),
    [
        ("libcuda.so.1", "install the NVIDIA driver or, for CPUs, pip install --no-deps 'fbgemm-gpu-cpu'"),
        ("libnvidia-ml.so.1", "install the NVIDIA driver or, in a container, set NVIDIA_DRIVER_CAPABILITIES="),
        ("libcudart.so.13", "pip install --force-reinstall torch"),
    ],
)
def test_libraries_of_the_driver_are_told_from_those_of_torch(
    library: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = f"OSError: {library}: cannot open shared object file: No such file or directory"
    monkeypatch.setattr(doctors, "attempt", lambda _: (["torch"], failure))
    (finding,) = doctors.check_imports(CUDA)
    assert finding.problem == f"`import fbgemm_gpu` must succeed: got {failure}"
    assert finding.cure.startswith(cure)


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_setup_by_the_cuda_lock_looks_which_torch_it_got(tmp_path: Path, cuda: str | None) -> None:
    """pip keeps a torch that an interrupted set-up left; a stand-in for it does nothing."""
    made = Installation(tmp_path / ".venv")
    for path in (*made.site.glob("fbgemm_gpu*.dist-info"), made.site / "torch"):
        path.unlink()
    made.add_wheel("fbgemm-gpu", observe().fbgemm[0].version, {})
    (made.site / "torch").mkdir()
    (made.site / "torch/__init__.py").touch()
    (made.site / "torch/version.py").write_text(f"cuda = {cuda!r}\n")
    programs = {"pip": "exit 0", "dlrm-recipes": f'exec {made.python} -m dlrm_torchrec.cli.main "$@"'}
    for name, text in programs.items():
        (made.python.parent / name).write_text(f"#!/bin/sh\n{text}\n")
        (made.python.parent / name).chmod(0o755)
    for name in ("Makefile", "requirements", "setup.cfg", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    setup = ["make", "setup", "PYTHON=true", "REQUIREMENTS=requirements/cuda.txt"]
    done = subprocess.run(setup, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) == (tmp_path / ".venv/installed-cuda").exists() == (cuda is not None)
    problem = "wheels: fbgemm-gpu must have a torch built for CUDA: got torch "
    assert (f"{problem}{importlib.metadata.version('torch')} for CPUs; fix: pip install" in done.stdout) == (
        cuda is None
    )


def test_cuda_is_read_from_torch_and_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802  # the driver's name for it
            ctypes.cast(version, ctypes.POINTER(ctypes.c_int))[0] = 12080
            return 0

    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('read, not imported')")
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", Driver)
    environment = observe()
    assert (environment.torch_cuda, environment.driver_cuda) == ("13.0", "12.8")
    (finding, *_) = check_cuda(environment)
    assert "must run CUDA 13.0, which torch is built for: got 12.8" in finding.problem


def test_a_torchrun_of_another_python(installation: Installation) -> None:
    lines = installation.doctor("programs")  # PATH has those of the environment that runs the tests
    assert [line.partition(" on PATH must be this Python's: got")[0] for line in lines] == [
        "programs: torchrun",
        "programs: torchx",
    ]


def test_this_environment_has_no_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    assert doctor(READING) == 0
    assert observe().versions["dlrm-torchrec"] == importlib.metadata.version("dlrm-torchrec")


def test_a_check_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"check must be one of versions, .*: got 'gpu'; name some of them"):
        doctor(["gpu"])


@pytest.mark.parametrize(
    ("broken", "run", "said"),
    [
        ([], ["processes"], [f"imports: {SOUND['imports'](GOOD)}", f"processes: {SOUND['processes'](GOOD)}"]),
        (["processes"], ["processes", "imports"], [f"imports: {SOUND['imports'](GOOD)}", "processes: p; fix: c"]),
        (["processes", "imports"], ["processes", "imports"], ["imports: p; fix: c"]),
    ],
)
def test_imports_are_tried_alone_only_if_processes_fail(
    broken: list[str],
    run: list[str],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran = []

    def check(name: str, _: Environment) -> list[Finding]:
        ran.append(name)
        return [Finding("p", "c")] if name in broken else []

    for name in ("imports", "processes"):
        monkeypatch.setitem(CHECKS, name, partial(check, name))
    assert doctor(["imports", "processes"]) == len(said) - sum("ok" in line for line in said)
    assert (ran, capsys.readouterr().out.splitlines()) == (run, said)


def test_the_trial_trains_a_table() -> None:
    run_ranks(2, train_a_table)


@pytest.mark.parametrize(
    ("program", "said", "failure"),
    [
        ("print('a')", ["a"], None),
        ("print('a'); raise OSError('x.so: undefined symbol: y')", ["a"], "OSError: x.so: undefined symbol: y"),
        ("import os; print('a', flush=True); os.kill(os.getpid(), 9)", ["a"], "exit code -9"),
    ],
)
def test_an_attempt_says_how_it_ended(program: str, said: list[str], failure: str | None) -> None:
    assert attempt([sys.executable, "-c", program]) == (said, failure)


def test_an_attempt_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "TIMEOUT_S", 0.1)
    assert attempt([sys.executable, "-c", "import time; time.sleep(250)"]) == ([], "no end within 0.1 s")


@pytest.mark.slow
def test_every_check_is_silent_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    assert doctor(list(CHECKS)) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: {SOUND[name](observe())}" for name in CHECKS]


@pytest.mark.slow
def test_processes_that_cannot_meet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    assert doctor(["processes"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("processes: two processes must be able to add a number: got ")
    assert "fix: export GLOO_SOCKET_IFNAME=lo" in line


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (GOOD, "none here, recipes run on CPUs"),
        (CUDA, "ok, torch is built for CUDA 13.0, and the driver runs 13.1"),
        (replace(GOOD, driver_cuda="12.8"), "not used, as torch is built for CPUs; the driver runs CUDA 12.8"),
    ],
)
def test_what_is_said_of_cuda_where_nothing_is_wrong(environment: Environment, said: str) -> None:
    assert SOUND["cuda"](environment) == said


def test_a_check_says_what_it_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(["versions", "wheels"])
    versions, wheels = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"versions: ok, torch \S+, torchrec \S+, fbgemm-gpu\S* \S+ belong together", versions)
    assert re.fullmatch(r"wheels: ok, all \d+ libraries of fbgemm-gpu\S* are as installed", wheels)
    assert SOUND.keys() == CHECKS.keys()

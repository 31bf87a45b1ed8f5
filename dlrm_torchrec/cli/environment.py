"""What is installed for this interpreter. Nothing is imported to find out, because an import may be what is broken."""

from __future__ import annotations

import base64
import csv
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import site
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FBGEMM = ("fbgemm-gpu", "fbgemm-gpu-cpu")  # for CUDA, and for CPUs; both install into the folder fbgemm_gpu/


@dataclass(frozen=True)
class Wheel:
    """A build of FBGEMM that pip lists, and the state of the shared libraries that it installed."""

    name: str
    version: str
    num_libraries: int
    lost: tuple[str, ...] = ()  # libraries that are missing, or that differ from the installed ones


@dataclass(frozen=True)
class Environment:
    versions: Mapping[str, str]  # versions by the normalised names of the packages
    fbgemm: tuple[Wheel, ...]
    torch_cuda: str | None  # CUDA that torch was built for, as '13.0'; None: torch is for CPUs or missing
    driver_cuda: str | None  # newest CUDA that the NVIDIA driver can run; None: no driver
    programs: Mapping[str, Path]  # torchrun and torchx, if they are on PATH
    scripts: tuple[Path, ...]  # folders of this interpreter's own programs


def observe() -> Environment:
    packages: dict[str, importlib.metadata.Distribution] = {}
    for package in importlib.metadata.distributions():
        if package.read_text("METADATA") or package.read_text("PKG-INFO"):  # a broken removal leaves neither
            name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
            packages.setdefault(name, package)  # the first on the path is the one that is imported
    scripts = [sysconfig.get_path("scripts")]
    if site.ENABLE_USER_SITE:
        scripts.append(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")))
    return Environment(
        versions={name: package.version for name, package in packages.items()},
        fbgemm=tuple(_wheel(name, packages[name]) for name in FBGEMM if name in packages),
        torch_cuda=_torch_cuda(),
        driver_cuda=_driver_cuda(),
        programs={name: Path(path) for name in ("torchrun", "torchx") if (path := shutil.which(name))},
        scripts=tuple(map(Path, scripts)),
    )


def _wheel(name: str, package: importlib.metadata.Distribution) -> Wheel:
    # of all that was installed; package.files leaves out what is missing, from Python 3.12 on
    record = csv.reader((package.read_text("RECORD") or "").splitlines())
    libraries = [(file, digest, size) for file, digest, size in record if file.endswith(".so")]
    lost = [
        file for file, *recorded in libraries if not _is_as_installed(Path(str(package.locate_file(file))), *recorded)
    ]
    return Wheel(name, package.version, len(libraries), tuple(lost))


def _is_as_installed(path: Path, digest: str, size: str) -> bool:
    """Whether a file has the ``size`` and the ``digest`` (algorithm=value) that its wheel recorded."""
    algorithm, _, value = digest.partition("=")
    if not path.is_file() or not value or path.stat().st_size != int(size):
        return False
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).digest()
    return base64.urlsafe_b64encode(found).decode().rstrip("=") == value


def _torch_cuda() -> str | None:
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or []:
        path = Path(folder, "version.py")
        match = re.search(r"^cuda\b.*= *'([\d.]+)'", path.read_text() if path.exists() else "", re.M)
        if match:
            return match[1]
    return None


def _driver_cuda() -> str | None:
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"

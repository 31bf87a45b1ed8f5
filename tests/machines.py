"""The tests of numbers as other processors compute them: with other instructions, kernels and numbers of threads.

    make test-machines                      all machines below
    make test-machines MACHINES="avx2"      some of them

The variables choose from the code that PyTorch, MKL, oneDNN, FBGEMM and NumPy have for different processors. On
processors other than Intel's, MKL heeds COMPATIBLE only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import torch

TESTED = ["embeddings", "models", "sharding", "train", "inference", "datasets", "recipes"]
MACHINES = {
    "no-vectors": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",  # it has nothing for less
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        "PYTEST_ADDOPTS": "-k 'not compile'",  # torch.compile leaves out a header that its code then needs
        "OMP_NUM_THREADS": "1",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
        "OMP_NUM_THREADS": "2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_CBWR": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX512_256",
        "OMP_NUM_THREADS": "1",
    },
    "many-threads": {"MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "7"},
}


def main(command: list[str], names: list[str]) -> None:
    """Run ``command``, a call of pytest, on the machines with these names."""
    failed = []
    for name in names:
        print(f"{name}: {MACHINES[name]}", flush=True)
        if name == "avx512" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
            print("left out: this processor has no AVX-512", flush=True)
        elif not passed(command, MACHINES[name]):
            failed.append(name)
    if failed:
        sys.exit(f"error: tests must pass on every machine: they failed on {', '.join(failed)}")


def passed(command: list[str], machine: dict[str, str]) -> bool:
    # torch.compile would take what it has compiled for vectors of another length from a common cache: wrong numbers
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | machine | {"TORCHINDUCTOR_CACHE_DIR": cache}
        return subprocess.run([*command, *(f"tests/{each}" for each in TESTED)], env=environment).returncode == 0


if __name__ == "__main__":
    main(sys.argv[1:], os.environ.get("MACHINES", " ".join(MACHINES)).split())

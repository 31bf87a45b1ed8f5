"""The tests of numbers as other processors compute them: with other instructions, kernels and numbers of threads.

    .venv/bin/python tests/machines.py            all of the machines below
    .venv/bin/python tests/machines.py avx2       one of them

The variables choose among the code that PyTorch, MKL, oneDNN, FBGEMM and NumPy have for processors. MKL heeds only
COMPATIBLE on processors that are not Intel's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
TESTED = ["embeddings", "models", "sharding", "train", "inference", "datasets", "recipes"]
MACHINES = {
    "no-vectors": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",  # the least that it has
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
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


def main(names: list[str]) -> None:
    failed = []
    for name in names or MACHINES:
        if name == "avx512" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
            print("avx512: this processor has no such instructions", flush=True)
            continue
        print(name, MACHINES[name], flush=True)
        command = [sys.executable, "-m", "pytest", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]
        command += ["-q", "-m", "not slow and not gpu", *(f"tests/{folder}" for folder in TESTED)]
        if subprocess.run(command, cwd=ROOT, env=os.environ | MACHINES[name]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"tests must pass on every machine: they failed on {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])

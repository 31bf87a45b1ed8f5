"""Runs parts of the proof, one for each kind and name that arrive on standard input, and writes messages to a pipe.

``benchmarks/gpu_proof.py`` starts it. A message is one line of JSON: ``facts`` about this process at first, then rows,
and ``end`` after each part.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from .packages import NEEDED, OTHERS, without_tyro


def facts(device: str) -> dict[str, Any]:
    """Device, versions, and the packages that are missing."""
    found: dict[str, Any] = {
        "missing": [name for name in (*NEEDED, *OTHERS) if find_spec(name) is None],
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in NEEDED},
        "device": "",
        "error": "",
    }
    try:
        import torch

        found["versions"]["torch"] = torch.__version__
        if device == "cuda":
            found["device"] = torch.cuda.get_device_name()
            found["versions"]["cuda"] = torch.version.cuda
        importlib.import_module("torchrec")
    except Exception as error:  # whatever is wrong with an installation is said in the first line
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def version(name: str) -> str:
    """The version of the package that holds the module ``name``; empty if nothing tells it."""
    names = metadata.packages_distributions().get(name, [name.replace("_", "-")])
    try:
        return metadata.version(names[0])
    except metadata.PackageNotFoundError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--messages", required=True, help="the file descriptor to write to")
    args = parser.parse_args()
    with open(int(args.messages), "w", buffering=1) as pipe:  # a file descriptor

        def tell(message: dict[str, Any]) -> None:
            pipe.write(json.dumps(message) + "\n")

        tell({"facts": facts(args.device)})
        without_tyro()
        import torch

        from .proof import DeviceFaultError, Proof

        proof = Proof(torch.device(args.device), args.toy, tell)
        for line in sys.stdin:
            kind, part = line.split()
            try:
                with proof.guarded(part):
                    importlib.import_module(f"{__package__}.{kind}.{part}").prove(proof)
            except DeviceFaultError:
                sys.exit(f"{part}: the device answers no more")
            tell({"end": part})


if __name__ == "__main__":
    main()

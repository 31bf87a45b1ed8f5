"""``dlrm-recipes serve``: its options, and the server, which is imported only when it is started."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from dlrm_torchrec.inference.serving.limits import ServingConfig

NEEDED = ("starlette", "uvicorn", "prometheus_client")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", metavar="PACKAGE", type=Path, help="folder of a package; load only your own")
    for field in fields(ServingConfig):
        name, help = f"--{field.name.replace('_', '-')}", f"{field.metadata['help']} (%(default)s)"
        parser.add_argument(name, type=type(field.default), default=field.default, metavar="X", help=help)


def serve(args: argparse.Namespace) -> int:
    """0 after the server was told to end. Raises ValueError or OSError when it cannot start."""
    missing = [name for name in NEEDED if not find_spec(name)]
    if missing:
        raise ValueError(f"serving must have {', '.join(NEEDED)}: got no {missing[0]}; pip install {' '.join(NEEDED)}")
    config = ServingConfig(**{field.name: getattr(args, field.name) for field in fields(ServingConfig)})
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch tells that a type in int8 packages is old
    from dlrm_torchrec.inference.serving.server import serve  # this imports torch

    serve(args.package, config)
    return 0

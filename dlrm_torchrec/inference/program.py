"""The file of a model's TorchScript program, whose bytes are the same in every process."""

from __future__ import annotations

import io
import re
from zipfile import ZipFile, ZipInfo

import torch

_CHOSEN_NAME = re.compile(rb"___torch_mangle_\d+")


def program_bytes(model: torch.jit.ScriptModule) -> bytes:
    """The archive of ``model`` as ``torch.jit.save`` writes it, but equal for equal models.

    TorchScript gives classes numbers that depend on what the process has compiled before, and it adds places in source
    files. Here classes are numbered from 0 and the places are left out.
    """
    saved, written = io.BytesIO(), io.BytesIO()
    torch.jit.save(model, saved)
    numbers: dict[bytes, bytes] = {}

    def renamed(text: bytes) -> bytes:
        return _CHOSEN_NAME.sub(lambda name: numbers.setdefault(name[0], b"___torch_mangle_%d" % len(numbers)), text)

    with ZipFile(saved) as source, ZipFile(written, "w") as target:
        for name in source.namelist():
            _, folder, *_ = name.split("/")
            if name.endswith(".debug_pkl") or folder == ".data":
                continue
            content = source.read(name)
            is_tensor = folder in ("data", "constants")
            target.writestr(ZipInfo(renamed(name.encode()).decode()), content if is_tensor else renamed(content))
    return written.getvalue()

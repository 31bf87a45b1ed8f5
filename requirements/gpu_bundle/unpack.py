"""Join, check and unpack a bundle into a folder for PYTHONPATH; needs nothing but the Python it was made for.

    python3 build/gpu_bundle/unpack.py /tmp/gpu_bundle && export PYTHONPATH=/tmp/gpu_bundle:$PWD

``make.py`` writes this file beside the pieces. They may arrive one by one; this is run when all of them are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import sys
import tarfile
from pathlib import Path


def unpack(bundle: Path, target: Path) -> None:
    """Write all files of a bundle below ``target``.

    Raises ValueError if the Python is another, or a piece is absent or damaged, before anything is written.
    """
    manifest = json.loads((bundle / "manifest.json").read_text())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != manifest["python"]:
        raise ValueError(
            f"the Python must be the one that the bundle was made for: got {python}; use python{manifest['python']}"
        )
    contents = []
    for piece in manifest["pieces"]:
        path = bundle / piece["name"]
        contents.append(path.read_bytes() if path.exists() else b"")
        if hashlib.sha256(contents[-1]).hexdigest() != piece["sha256"]:
            raise ValueError(
                f"{path} must have {piece['bytes']} bytes with the manifest's SHA-256: got {len(contents[-1])} bytes; "
                "copy this piece again"
            )
    with lzma.open(io.BytesIO(b"".join(contents))) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        archive.extractall(target, filter="data")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    unpack(Path(__file__).parent, Path(sys.argv[1]))
    print(f"export PYTHONPATH={Path(sys.argv[1]).resolve()}")

"""Draw the pictures of the guides again, each by the commands in its guide: `make figures`, forty minutes.

    python docs/figures.py                # all
    python docs/figures.py plan.png       # one

plan.png and runs.png are pictures of pages and need chromium. The pictures are small and committed, so that every
reader of a guide sees them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "figures"
MAX_BYTES = 100_000
# The commands of each picture, and where they leave it.
FIGURES = {
    "plan.png": (
        "python recipes/plan_sharding.py train_dcnv2 --preset mlperf --topology 2x8:h100 1x8:a100-80",
        "chromium --headless --no-sandbox --hide-scrollbars --window-size=1000,1104 --screenshot=plan.png plan.html",
        "plan.png",
    ),
    "calibration.svg": (
        "python recipes/train_dlrm.py",
        "python recipes/evaluate.py train_dlrm runs/train_dlrm/demo --plot calibration.svg",
        "calibration.svg",
    ),
    "runs.png": (
        "python recipes/train_dlrm.py demo --eval-every 100 --run-dir runs/fast",
        "python recipes/train_dlrm.py demo --eval-every 100 --sparse.lr 0.02 --run-dir runs/slow",
        "dlrm-recipes show runs/fast/demo runs/slow/demo --output runs.html",
        "chromium --headless --no-sandbox --hide-scrollbars --window-size=1000,1080 --screenshot=runs.png runs.html",
        "runs.png",
    ),
    "frontier.png": (
        "python recipes/compare_embeddings.py frontier",
        "runs/compare_embeddings/frontier/quality.png",
    ),
    "all_to_all.svg": (
        "torchrun --standalone --nproc_per_node 4 benchmarks/all_to_all.py --output all_to_all.svg",
        "all_to_all.svg",
    ),
    "operator_shares.svg": (
        "python benchmarks/production_shapes.py --plot operator_shares.svg",
        "operator_shares.svg",
    ),
}


def draw(name: str, folder: Path) -> None:
    """Writes the picture into docs/figures. Raises ValueError when it is too large to be committed."""
    *commands, made = FIGURES[name]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "0", **os.environ, "PATH": programs}
    for command in commands:
        print(command, flush=True)
        subprocess.run(command, shell=True, cwd=folder, env=environment, check=True)
    picture = folder / made
    if picture.suffix == ".png":
        Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)
    if picture.stat().st_size > MAX_BYTES:
        raise ValueError(f"{name} must have at most {MAX_BYTES:,} bytes: got {picture.stat().st_size:,}; draw less")
    FOLDER.mkdir(exist_ok=True)
    shutil.copy(picture, FOLDER / name)


def main(names: list[str]) -> None:
    """Draws the pictures with these names, or all pictures without names. Raises ValueError for an unknown name."""
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise ValueError(f"pictures must be among {', '.join(FIGURES)}: got {', '.join(unknown)}; name some, or none")
    with tempfile.TemporaryDirectory() as folder:
        for source in ("recipes", "benchmarks"):
            Path(folder, source).symlink_to(ROOT / source)
        for name in names or FIGURES:
            draw(name, Path(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="pictures to draw; all of them by default")
    main(parser.parse_args().names)

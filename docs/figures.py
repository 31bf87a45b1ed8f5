"""Draw the pictures of the guides again, each by the commands in its guide: `make figures`, forty minutes.

    python docs/figures.py                # all
    python docs/figures.py plan.png       # one

plan.png and runs.png are pictures of pages and need chromium. The pictures are small and committed, so that every
reader of a guide sees them. Each carries the hash of what it shows; a test finds those that show something else by now.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "figures"
PLANS = ROOT / "tests" / "recipes" / "printed_plans"  # which tests compare with those that the planner prints
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


def source(name: str) -> str:
    """The hash of what a picture shows: its commands, what they reached by RESULTS.md, and printed plans."""
    *commands, _ = FIGURES[name]
    shown = [*commands, *(reached for command in commands for reached in measured(command))]
    if name == "plan.png":
        shown += [path.read_text() for path in sorted(PLANS.glob("*.txt"))]
    return hashlib.sha256("\n".join(shown).encode()).hexdigest()[:16]


def measured(command: str) -> list[str]:
    """What the command reached, by the rows of RESULTS.md that name it with fewer options or the same ones."""
    reached, named = [], ""
    for row in (ROOT / "RESULTS.md").read_text().splitlines():
        cells = row.strip("| ").split(" | ")
        if cells[-1] != "likewise":
            named = cells[-1].strip("`").removeprefix("OMP_NUM_THREADS=1 ")
        if row.startswith("| ") and named and re.fullmatch(rf"{re.escape(named)}( --.*)?", command):
            reached.append(cells[1])
    return reached


def sign(picture: Path, text: str) -> None:
    """Writes a short text into a PNG, which is also made small, or into an SVG."""
    if picture.suffix == ".png":
        info = PngInfo()
        info.add_text("source", text)
        Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True, pnginfo=info)
    else:
        picture.write_text(f"{picture.read_text()}<!-- source: {text} -->\n")


def signature(picture: Path) -> str:
    """The text that ``sign`` wrote."""
    if picture.suffix == ".png":
        return str(Image.open(picture).info.get("source", ""))
    return "".join(re.findall(r"<!-- source: (\w+) -->\n$", picture.read_text()))


def draw(name: str, folder: Path) -> None:
    """Writes the picture into docs/figures. Raises ValueError when it is too large to be committed."""
    *commands, made = FIGURES[name]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "0", **os.environ, "PATH": programs}
    for command in commands:
        print(command, flush=True)
        subprocess.run(command, shell=True, cwd=folder, env=environment, check=True)
    picture = folder / made
    sign(picture, source(name))
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

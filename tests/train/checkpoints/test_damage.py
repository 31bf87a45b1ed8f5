"""Damaged checkpoints: every flipped bit is found, and the whole checkpoint before is used."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from unittest import mock

import pytest
import torch.distributed.checkpoint as dcp
from iopath.common.file_io import g_pathmgr
from torch import nn

from dlrm_torchrec.train.checkpoints.checkpoint import load_unsharded
from dlrm_torchrec.train.checkpoints.checksums import Share
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path, full_fault, quick_fault
from dlrm_torchrec.train.checkpoints.marker import MARKER
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.checkpoints.storage import IoPathReader
from tests.distributed import here, run_ranks
from tests.elsewhere import Elsewhere
from tests.train.checkpoints.small import IDENTITY, SmallRun

NEWEST = "step-00000021"


def _save(folder: str) -> None:
    run = SmallRun(folder)
    for step in (7, 14, 21):
        run.save(step)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 7, 14 and 21, written by two ranks."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    run_ranks(2, _save, str(folder))
    return folder


def _files(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(path.iterdir())}


def test_every_flipped_bit_is_found(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / NEWEST
    shutil.copytree(saved / NEWEST, path)
    files = _files(path)
    assert list(files) == [".metadata", "__0_0.distcp", "__1_0.distcp", MARKER]
    generator = random.Random()
    for number in range(100):
        name = list(files)[number % 4]
        changed = bytearray(files[name])
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
        (path / name).write_bytes(changed)
        shares = [Share(rank, 3, threads=2) for rank in range(3)]
        fault = quick_fault(str(tmp_path), 21) or next(
            filter(None, (full_fault(str(path), share) for share in shares)), ""
        )
        assert fault.startswith(f"{name} "), (name, fault)
        (path / name).write_bytes(files[name])
    assert quick_fault(str(tmp_path), 21) == full_fault(str(path)) == ""


def _cut(name: str, num_bytes: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / name, num_bytes)


def _folder_as_marker(path: Path) -> None:
    (path / MARKER).unlink()
    (path / MARKER).mkdir()


def _link_to_nothing(path: Path) -> None:
    (path / "__0_0.distcp").unlink()
    (path / "__0_0.distcp").symlink_to("/nowhere")


def _older(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.parent / "step-00000007", path)


def _swap(path: Path) -> None:
    ranks = [path / "__0_0.distcp", path / "__1_0.distcp"]
    contents = [each.read_bytes() for each in ranks]
    for file, content in zip(ranks, reversed(contents), strict=True):
        file.write_bytes(content)


def _edit(path: Path) -> None:
    marker = json.loads((path / MARKER).read_text())
    (path / MARKER).write_text(json.dumps({**marker, "step": 10**9}, indent=1))


def _outside(path: Path) -> None:
    """Metadata whose file lies above the folder, as somebody may write it."""
    metadata = IoPathReader(str(path)).read_metadata()
    metadata.storage_data = {
        index: dataclasses.replace(info, relative_path="../outside") for index, info in metadata.storage_data.items()
    }
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty marker": (_cut(MARKER, 0), "checkpoint.json is not whole"),
    "half marker": (_cut(MARKER, 200), "checkpoint.json is not whole"),
    "marker of zeros": (lambda path: (path / MARKER).write_bytes(bytes(500)), "checkpoint.json is not whole"),
    "marker of brackets": (lambda path: (path / MARKER).write_text("[" * 10**5), "checkpoint.json is not whole"),
    "marker without its last line": (
        lambda path: (path / MARKER).write_text((path / MARKER).read_text()[:-27] + "}"),
        "checkpoint.json is not whole",
    ),
    "changed marker": (_edit, "checkpoint.json differs from its checksum"),
    "marker is a folder": (
        _folder_as_marker,
        "checkpoint.json cannot be read: Is a directory",
    ),
    "another step's checkpoint": (
        _older,
        "checkpoint.json is that of step 7",
    ),
    "empty file": (_cut("__0_0.distcp", 0), "__0_0.distcp has 0 bytes, not "),
    "half file": (_cut("__1_0.distcp", 1000), "__1_0.distcp has 1,000 bytes, not "),
    "missing file": (
        lambda path: (path / "__1_0.distcp").unlink(),
        "__1_0.distcp cannot be read: No such file or directory",
    ),
    "longer file": (
        lambda path: (path / "__0_0.distcp").write_bytes((path / "__0_0.distcp").read_bytes() + b"x"),
        "__0_0.distcp has ",
    ),
    "files of ranks swapped": (_swap, "__0_0.distcp "),
    "file of an older checkpoint": (
        lambda path: shutil.copy(path.parent / "step-00000014/__0_0.distcp", path),
        "__0_0.distcp differs from its checksum between bytes 0 and ",
    ),
    "no metadata": (
        lambda path: (path / ".metadata").unlink(),
        ".metadata cannot be read: No such file or directory",
    ),
    "half metadata": (_cut(".metadata", 100), ".metadata has 100 bytes, not "),
    "metadata that leaves the folder": (_outside, ".metadata "),
    "link to nothing": (
        _link_to_nothing,
        "__0_0.distcp cannot be read: No such file or directory",
    ),
}


def _load_each(folders: list[str]) -> list[tuple[int, list[str]]]:
    found = []
    for folder in folders:
        run = SmallRun(folder)
        found.append((run.load(), run.said))
    return found


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(saved: Path, tmp_path: Path) -> None:
    broken = {}
    for number, (name, (damage, _)) in enumerate(FAULTS.items()):
        shutil.copytree(saved, tmp_path / str(number))
        damage(tmp_path / str(number) / NEWEST)
        broken[name] = sorted(each.name for each in (tmp_path / str(number) / NEWEST).iterdir())
    folders = [str(tmp_path / str(number)) for number in range(len(FAULTS))]
    first, second = run_ranks(2, _load_each, folders)
    for (name, (_, fault)), folder, (step, said), (other, unsaid) in zip(
        FAULTS.items(), folders, first, second, strict=True
    ):
        assert (step, other, unsaid) == (14, 14, []), name
        assert len(said) == 2, (name, said)
        assert said[0].startswith(f"warning: checkpoint {folder}/{NEWEST} is damaged ({fault}"), (name, said)
        assert said[0].endswith(f"set aside as damaged-{NEWEST}, and {folder}/step-00000014 is used"), said
        assert said[1] == f"resumed at step 14 from {folder}/step-00000014"
        assert sorted(os.listdir(folder)) == [f"damaged-{NEWEST}", "step-00000007", "step-00000014"]
        assert sorted(os.listdir(f"{folder}/damaged-{NEWEST}")) == broken[name]


def test_a_reader_passes_over_an_obvious_fault_and_refuses_a_hidden_one(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    _cut(MARKER, 10)(folder / NEWEST)
    said: list[str] = []
    assert checkpoint_path(str(folder), say=said.append) == f"{folder}/step-00000014"
    assert said == [
        f"checkpoint {folder}/{NEWEST} is damaged: checkpoint.json is not whole; the one before it is taken"
    ]
    with pytest.raises(ValueError, match=r"must be what was saved: got damage, checkpoint\.json is not whole; name"):
        checkpoint_path(str(folder), 21)
    with pytest.raises(ValueError, match=r"must hold a whole checkpoint of step 8: got those of steps \[7, 14, 21\]"):
        checkpoint_path(str(folder), 8)
    assert (folder / NEWEST).exists()
    changed = bytearray((folder / "step-00000014/__1_0.distcp").read_bytes())
    changed[99] ^= 4
    (folder / "step-00000014/__1_0.distcp").write_bytes(changed)
    for step, fault in (
        (14, r"__1_0\.distcp differs from its checksum between bytes 0 and "),
        (21, r"checkpoint\.json"),
    ):
        with pytest.raises(ValueError, match=rf"checkpoint .* must be what was saved: got damage, {fault}"):
            load_unsharded(nn.Linear(1, 1), f"{folder}/step-{step:08d}")


def _refusals(folder: str) -> list[str]:
    refusals = []
    for _ in range(2):
        try:
            SmallRun(folder).load()
        except ValueError as error:
            refusals.append(str(error))
        if here().is_main and len(refusals) == 1 and Path(folder, "step-00000007").exists():
            for step in (7, 14, 21):
                Path(folder, f"step-{step:08d}").rename(Path(folder, f"damaged-step-{step:08d}"))
    return refusals


def test_a_run_without_a_whole_checkpoint_does_not_begin_again(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for step in (7, 14, 21):
        _cut("__0_0.distcp", step)(folder / f"step-{step:08d}")
    for refusals in run_ranks(2, _refusals, str(folder)):
        damaged, aside = refusals
        assert f"{folder} must hold a whole checkpoint: got only damaged ones, {folder}/{NEWEST} (__0_0" in damaged
        assert "got only damaged ones, damaged-step-00000007, damaged-step-00000014, damaged-step-00000021;" in aside


def _among_others(folder: str) -> tuple[int, int]:
    run = SmallRun(folder, keep=1)
    loaded = run.load()
    run.save(22)
    return loaded, SmallRun(folder).load()


def test_what_else_lies_in_the_folder_is_neither_read_nor_removed(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.copytree(folder / NEWEST, folder / f"{NEWEST}.bak")
    shutil.copytree(folder / NEWEST, folder / "step-99")
    shutil.copytree(folder / NEWEST, folder / "step-٠٠٠٠٠٠٩٩")
    for name in ("step-00000099", "step-notes.txt", ".DS_Store", " ", "step-", "step--0000001"):
        (folder / name).write_text("x")
    others = set(os.listdir(folder)) - {"step-00000007", "step-00000014", NEWEST}
    assert run_ranks(1, _among_others, str(folder)) == [(21, 22)]
    assert set(os.listdir(folder)) == others | {"step-00000022"}
    assert (folder / f"{NEWEST}.bak" / MARKER).exists()


@pytest.mark.parametrize("place", ["../outside", "/etc/passwd", "below/file", "..", ""])
def test_metadata_that_leaves_the_folder_is_refused(saved: Path, tmp_path: Path, place: str) -> None:
    metadata = IoPathReader(str(saved / NEWEST)).read_metadata()
    index, info = next(iter(metadata.storage_data.items()))
    metadata.storage_data[index] = dataclasses.replace(info, relative_path=place)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        ValueError, match=r"files of the checkpoint .* must lie in its folder: got .*; do not load this"
    ):
        IoPathReader(str(tmp_path)).read_metadata()


def _on_a_full_disk(folder: str, full: str) -> tuple[str, int]:
    """What a save says when the disk fills up at the files of ``full``, and the step that is loaded afterwards."""
    run = SmallRun(folder)
    run.save(1)
    whole = g_pathmgr.open

    def open_on_a_full_disk(path: str, mode: str) -> IO[Any]:
        return open("/dev/full", mode) if full in path and mode == "wb" else whole(path, mode)

    with mock.patch.object(g_pathmgr, "open", open_on_a_full_disk):
        try:
            run.save(2)
            said = ""
        except ValueError as error:
            said = str(error)
    return said, SmallRun(folder).load()


@pytest.mark.parametrize("full", ["__1_0.distcp", ".metadata", MARKER])
def test_a_full_disk_is_told_and_keeps_the_checkpoint_before(tmp_path: Path, full: str) -> None:
    folder = tmp_path / "checkpoints"
    for said, step in run_ranks(2, _on_a_full_disk, str(folder), full):
        assert said == (
            f"the disk of {folder} must have room for the checkpoint of step 2: got No space left on device; make room "
            "and run the same command again, which goes on from step 1"
        )
        assert step == 1
    assert os.listdir(folder) == ["step-00000001"]


def _load_format_3(folder: str) -> tuple[int, list[str], str, int]:
    """A checkpoint as the format before was written, whole and then with half a file."""
    run = SmallRun(folder)
    run.save(5)
    run.save(6)
    path = Path(folder, "step-00000006")
    shutil.rmtree(path)
    writer = dcp.FileSystemWriter(path)
    writer.path = str(path)  # as then; a Path would be pickled into the metadata
    dcp.save(run.checkpoints.tensors(run.model, run.optimizer), storage_writer=writer)
    progress = dataclasses.asdict(Progress(identity=IDENTITY, lanes=1, step=6))
    del progress["best_step"], progress["without_gain"], progress["speed"]
    (path / MARKER).write_text(json.dumps({"format": 3, **progress}, indent=1))
    again = SmallRun(folder)
    loaded = again.load()
    os.truncate(path / "__0_0.distcp", 1000)
    return loaded, again.said, quick_fault(folder, 6), SmallRun(folder).load()


def test_a_checkpoint_of_the_format_before_is_loaded_without_verification(tmp_path: Path) -> None:
    ((loaded, said, fault, before),) = run_ranks(1, _load_format_3, str(tmp_path))
    assert (loaded, before) == (6, 5)
    path = tmp_path / "step-00000006"
    assert said == [
        f"checkpoint {path} is of a format without checksums, so its content cannot be verified",
        f"resumed at step 6 from {path}",
    ]
    assert fault.startswith("__0_0.distcp has 1,000 bytes, not ")


def _set_aside_in_a_store(root: str) -> tuple[int, int]:
    g_pathmgr.register_handler(Elsewhere(Path(root)), allow_override=True)
    run = SmallRun("elsewhere://checkpoints")
    for step in (1, 2, 3):
        run.save(step)
    _cut("__0_0.distcp", 50)(Path(root, "checkpoints/step-00000003"))
    loaded = SmallRun("elsewhere://checkpoints").load()
    return loaded, SmallRun("elsewhere://checkpoints").load()


def test_a_damaged_checkpoint_in_a_users_store_is_set_aside(tmp_path: Path) -> None:
    assert run_ranks(2, _set_aside_in_a_store, str(tmp_path)) == [(2, 2)] * 2
    aside = tmp_path / "checkpoints/damaged-step-00000003"
    assert sorted(os.listdir(aside)) == [".metadata", "__0_0.distcp", "__1_0.distcp", MARKER]
    assert os.path.getsize(aside / "__0_0.distcp") == 50


def _damage_twice(folder: str) -> int:
    for _ in range(2):
        run = SmallRun(folder)
        run.save(1)
        run.save(2)
        if here().is_main:
            _cut(MARKER, 5)(Path(folder, "step-00000002"))
        SmallRun(folder).load()
    return SmallRun(folder).load()


def test_a_step_that_is_damaged_again_is_set_aside_beside_the_first(tmp_path: Path) -> None:
    assert run_ranks(1, _damage_twice, str(tmp_path)) == [1]
    assert sorted(os.listdir(tmp_path)) == ["damaged-step-00000002", "damaged-step-00000002-2", "step-00000001"]

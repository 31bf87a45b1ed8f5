"""The output folder of a preparation: only the command that began it may continue it, and foreign files are safe."""

from __future__ import annotations

from typing import Any

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared import manifest
from dlrm_torchrec.datasets.prepared.files import PARTIAL, join, read_json, remove, write_json
from dlrm_torchrec.preparation.work.recorded_work import FOLDER

REPORT, QUARANTINE = "report.json", "quarantine.tsv"
RANK_FILES = "rank-"  # their names begin so; a rank may be writing its own at any moment
_COMMAND = f"{FOLDER}/command.json"


def check(output: str, command: dict[str, Any], *, overwrite: bool) -> None:
    """Raises ValueError when a preparation by ``command`` would damage the content of ``output``.

    This is so if it is prepared already, or half prepared by another command, and ``overwrite`` is not set. It is also
    so if it holds files, but none that shows that a preparation made it.
    """
    names = g_pathmgr.ls(output) if g_pathmgr.isdir(output) else []
    # A preparation writes its quarantine file first. Without one, the files may be someone's only copy.
    if names and QUARANTINE not in names and (manifest.NAME not in names or overwrite):
        raise ValueError(
            f"output {output} must be empty or made by a preparation: got other files in it; name another folder"
        )
    if overwrite:
        return
    if manifest.NAME in names:
        raise ValueError(
            f"output {output} must not be prepared already: got one with a {manifest.NAME}; "
            "set overwrite or name another folder"
        )
    begun = read_json(join(output, _COMMAND))
    if begun is not None and begun != command:
        changed = sorted(key for key in {*begun, *command} if begun.get(key) != command.get(key))
        raise ValueError(
            f"output {output} must be continued with the command that began it: got other {', '.join(changed)}; "
            "repeat that command, set overwrite to begin again, or name another folder"
        )


def begin(output: str, command: dict[str, Any]) -> None:
    """Make the checked folder ``output`` ready: keep what this ``command`` began, or remove an older preparation."""
    g_pathmgr.mkdirs(output)
    if is_begun(output, command):
        sweep(output)
        return
    for name in (manifest.NAME, REPORT):
        if g_pathmgr.exists(join(output, name)):
            g_pathmgr.rm(join(output, name))
    remove(join(output, FOLDER))
    sweep(output, (PARTIAL, ".parquet"))
    with g_pathmgr.open(join(output, QUARANTINE), "w"):
        pass
    write_json(output, _COMMAND, command)


def keep_reports(output: str) -> None:
    """Remove all folders in ``output``, so that the quarantine and the report are left of a preparation that failed."""
    for folder in (join(output, name) for name in g_pathmgr.ls(output)):
        if g_pathmgr.isdir(folder):
            remove(folder)


def sweep(output: str, endings: tuple[str, ...] = (PARTIAL,)) -> None:
    """Remove files with these endings, which are unfinished, from ``output`` and the folders in it."""
    for folder in (output, *(join(output, name) for name in g_pathmgr.ls(output))):
        if g_pathmgr.isdir(folder):
            for name in g_pathmgr.ls(folder):
                mine = name.endswith(endings) and not name.startswith(RANK_FILES)
                if mine and g_pathmgr.isfile(join(folder, name)):
                    g_pathmgr.rm(join(folder, name))


def is_begun(output: str, command: dict[str, Any]) -> bool:
    """Whether this process or another one called ``begin`` with this command, and the preparation is not done."""
    return bool(read_json(join(output, _COMMAND)) == command) and not g_pathmgr.exists(join(output, manifest.NAME))

"""Publish a model after each window of data: a full package first, then deltas."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dlrm_torchrec.inference.deltas.contents import Contents
from dlrm_torchrec.inference.deltas.offline import write_delta
from dlrm_torchrec.inference.deltas.published import BASE, DELTA, Published
from dlrm_torchrec.inference.package import Release, write_package
from dlrm_torchrec.schema import DatasetSpec

_NEXT = ".next"  # the full package of the version that is being published; a later call begins it again


def publish(
    folder: str | Path,
    program: torch.jit.ScriptModule,
    spec: DatasetSpec,
    *,
    vocabularies: Mapping[str, str],
    model_facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    samples: Mapping[str, Any] | None = None,
    window: str,
    trained_until: str = "",
    full_every: int = 0,
) -> Path:
    """The folder of the model's version in ``folder``: ``base-0000``, or ``delta-NNNN`` for each later one.

    The first six arguments after ``folder`` are those of ``write_package``. The previous version is made anew from
    the last full package and its deltas, so that there is no state beside them: a call that was killed at any moment
    and is repeated writes the same bytes. Only one process may publish to a folder at a time.

    Args:
        folder: the published folder
        program: see ``write_package``
        spec: likewise
        vocabularies: likewise
        model_facts: likewise
        metrics: likewise
        samples: likewise
        window: the name of the data that the model was last trained on; each is published once
        trained_until: the end of that data, a time in ISO 8601; empty means that it is unknown
        full_every: every so many versions, write a full package ``base-NNNN`` besides the delta; 0 means never

    Raises ValueError when an earlier window is published again, or the last one with another model.
    """
    folder = Path(folder)
    if not window:
        raise ValueError("window must have a name: got an empty one; name the data that the model was trained on")
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.glob(".*"):  # of a call that was killed
        shutil.rmtree(rest)
    published = Published.read(folder)
    windows = [published.package(version)["window"] for version in range(published.newest + 1)]
    if window in windows[:-1]:
        raise ValueError(
            f"window {window!r} must be published once and in order: got it again after {windows[-1]!r}; leave it out"
        )
    again = windows[-1:] == [window]
    version = len(windows) - again
    release = Release(version=version, window=window, trained_until=trained_until)
    parts: dict[str, Any] = {
        "vocabularies": vocabularies, "model_facts": model_facts, "metrics": metrics, "samples": samples
    }  # fmt: skip
    try:
        write_package(folder / _NEXT, program, spec, **parts, release=release)
        new = Contents.read(folder / _NEXT)
        if again and published.package(version)["fingerprint"] != new.manifest["fingerprint"]:
            raise ValueError(
                f"window {window!r} must be published once: got another model than version {version}; name the window "
                "of its own data, or publish to another folder"
            )
        if version and not again:
            old, base = published.contents(version - 1)
            write_delta(old, new, published.path(DELTA, version), base=base)
        if version not in published.bases and (version % full_every == 0 if full_every else version == 0):
            (folder / _NEXT).rename(published.path(BASE, version))
    finally:
        shutil.rmtree(folder / _NEXT, ignore_errors=True)
    return published.path(DELTA if version else BASE, version)

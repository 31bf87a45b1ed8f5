"""The vectors of one feature, of a run or of a package, with its values and how often training saw them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import numpy.typing as npt
import torch
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.cli.vectors.counts import Counts, training_counts
from dlrm_torchrec.cli.vectors.packaged import open_package
from dlrm_torchrec.cli.vectors.trained import open_checkpoint, trained_data
from dlrm_torchrec.cli.vectors.values import Values
from dlrm_torchrec.datasets.open import SYNTHETIC, vocabularies
from dlrm_torchrec.datasets.prepared.manifest import NAME, Manifest, join
from dlrm_torchrec.datasets.spec_checks import check_same_meaning
from dlrm_torchrec.inference.predictor import MANIFEST
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.train.checkpoints.folder import Which, checkpoint_path
from dlrm_torchrec.train.checkpoints.marker import read_progress

CHUNK_IDS = 1 << 16  # whose vectors are in memory at a time


@dataclass(frozen=True)
class Source:
    """The vectors of ``values.feature``; ``read`` returns those of ids (N,) as float32 (N, D)."""

    title: str  # whose vectors they are
    values: Values
    read: Callable[[torch.Tensor], torch.Tensor]
    counts: Counts | None  # None where no training rows can be read
    least_seen: int  # of the values that matter

    def candidates(self) -> Iterator[torch.Tensor]:
        """All ids that matter, ascending, in chunks."""
        if self.counts is None:
            rows = self.values.feature.rows
            for first in range(0, rows, CHUNK_IDS):
                yield torch.arange(first, min(first + CHUNK_IDS, rows))
        else:
            yield from torch.from_numpy(np.flatnonzero(self.counts.times >= self.least_seen)).split(CHUNK_IDS)

    def most_frequent(self, count: int) -> tuple[npt.NDArray[np.int64], int]:
        """At most ``count`` ids that matter, the most frequent ones first, and how many there are in all.

        Without counts they are the smallest ids.
        """
        if self.counts is None:
            rows = self.values.feature.rows
            return np.arange(min(count, rows)), rows
        seen = np.flatnonzero(self.counts.times >= self.least_seen)
        order = np.argsort(-self.counts.times[seen], kind="stable")
        return seen[order[:count]], len(seen)


def open_source(folder: str, feature: str, *, step: Which, data: str, least_seen: int) -> Source:
    """The vectors of a feature in a package, or in a checkpoint of a run, by default the newest.

    ``data`` is the prepared folder if it is not where the run read it. Values that training saw less often than
    ``least_seen`` do not matter, where that is known. Raises ValueError when there is no such run or feature, or when
    the data mean something else.
    """
    if g_pathmgr.exists(join(folder, MANIFEST)):
        if step is not None:
            raise ValueError(f"step must be of a run: got {step} for the package {folder}; leave out --step")
        spec, words, opened = open_package(Path(folder))
        found, title = _named(spec, feature), f"package {folder}"
        read, vocabulary = opened(found), words.get(found.name, "")
    else:
        path = checkpoint_path(f"{folder}/checkpoints", step)
        progress = read_progress(path)
        spec = DatasetSpec.from_json(progress.identity["spec"])
        found, title = _named(spec, feature), f"{folder}, step {progress.step:,}"
        data, vocabulary = data or trained_data(folder), ""
        read = open_checkpoint(path, spec, found, progress.identity.get("tables", {}))
    if found.encoding == "managed":
        raise ValueError(
            f"feature must have a limited number of values: got {found.name!r}, whose ids have no end; choose another"
        )
    manifest = _manifest(data, spec, needed=found.encoding == "vocab" and not vocabulary)
    if manifest is not None and found.encoding == "vocab" and not vocabulary:
        vocabulary = vocabularies(data, spec)[found.name]
    counts = None if manifest is None else training_counts(manifest, data, found)
    if counts is None and least_seen > 1:
        raise ValueError(
            f"values seen {least_seen} times must be counted in training rows: got none; name them in --data"
        )
    return Source(title, Values.of(spec, found, vocabulary), read, counts, least_seen)


def _named(spec: DatasetSpec, name: str) -> SparseFeature:
    features = {feature.name: feature for feature in spec.sparse}
    if name in features:
        return features[name]
    near = difflib.get_close_matches(name, features)
    advice = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose of {shorten(', '.join(features), 300)}"
    )
    kind = ", a number" if name in spec.feature_names else ""
    raise ValueError(f"feature must be a categorical one of {spec.name!r}: got {name!r}{kind}; {advice}")


def _manifest(data: str, spec: DatasetSpec, *, needed: bool) -> Manifest | None:
    """What the prepared folder ``data`` says of itself; None without such a folder, unless it is ``needed``."""
    if data in ("", SYNTHETIC):
        return None
    if not g_pathmgr.exists(join(data, NAME)):
        if needed:
            raise ValueError(
                f"data must be the prepared folder of the run, which has the texts of its values: got {data!r}; name "
                "where it is now with --data"
            )
        return None
    manifest = Manifest.load(data)
    check_same_meaning(spec, manifest.spec, data)
    return manifest

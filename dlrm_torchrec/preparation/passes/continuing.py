"""A prepared folder as one window of a chain: its vocabularies continue those of the folder of the window before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dlrm_torchrec.datasets.prepared.files import digest, join
from dlrm_torchrec.datasets.prepared.lineage import Lineage, TrainedFile
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.windows.chain import fingerprint
from dlrm_torchrec.preparation.vocabularies.continued import Continued, continue_vocabulary
from dlrm_torchrec.preparation.vocabularies.ledger import KINDS, joined
from dlrm_torchrec.preparation.vocabularies.policy import Policy
from dlrm_torchrec.preparation.vocabularies.runs import Run
from dlrm_torchrec.preparation.vocabularies.vocabulary import FIRST
from dlrm_torchrec.preparation.work.recorded_work import FOLDER, Record
from dlrm_torchrec.preparation.work.workers import Report
from dlrm_torchrec.schema import SparseFeature, safe_name, vocabulary_path


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a person says of a folder that belongs to a chain.

    Later windows take ``headroom`` and ``max_age`` from the first one. Raises ValueError for numbers that make no
    sense.
    """

    after: str = ""  # prepared folder of the window before; empty for the first window
    headroom: float = 0.0  # free ids of each vocabulary as a share of its first values; 0 means that tables grow
    max_age: int = 0  # a value that was in none of so many last windows is forgotten; 0 means never

    def __post_init__(self) -> None:
        if self.headroom < 0 or self.max_age < 0:
            raise ValueError(
                f"headroom and max_age must be at least 0: got {self.headroom} and {self.max_age}; raise them"
            )
        if self.after and (self.headroom or self.max_age):
            raise ValueError(
                f"headroom and max_age must be set for the first window only: got {self.headroom} and {self.max_age} "
                f"after {self.after}; leave them out"
            )


class Chain:
    """The chain that a folder joins."""

    def __init__(self, window: Window) -> None:
        """Raises ValueError when the folder before cannot be continued."""
        self._window, self._after = window, window.after
        self._before: Lineage | None = None
        self._follows = ""
        if window.after:
            manifest = Manifest.load(window.after)
            if manifest.lineage is None:
                raise ValueError(
                    f"folder {window.after} must have kept the counts of its values to be continued: got none; prepare "
                    "it again with --keep_counts"
                )
            self._before, self._follows = manifest.lineage, fingerprint(manifest)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells whether a preparation is the same as before."""
        return {**vars(self._window), "after": self._follows}

    @property
    def known_sources(self) -> tuple[TrainedFile, ...]:
        """The files with training rows of all windows before."""
        return self._before.sources if self._before else ()

    def continued(
        self,
        feature: SparseFeature,
        today: Mapping[str, Sequence[Run]],
        report: Report,
        *,
        number: int,
        output: str,
        scratch: str | None,
    ) -> Continued:
        """The vocabulary of the table of ``feature`` with the values that were counted ``today``."""
        before = self._ledger(feature, report)
        policy = self._policy(feature)
        return continue_vocabulary(
            {kind: joined(today.get(kind, []), before, kind, window=policy.window) for kind in KINDS},
            report,
            policy=policy,
            rows_before=feature.rows if before else FIRST,
            folder=output,
            list_path=vocabulary_path(feature),
            table_path=f"{FOLDER}/table-{number:03d}",
            counts_path=counts_path(feature.table_name),
            scratch_folder=scratch,
        )

    def lineage(self, made: Mapping[str, Record], sources: Iterable[TrainedFile]) -> Lineage:
        """The place of the folder, from the record of each table's vocabulary and the files with training rows."""
        before = self._before
        return Lineage.from_json(
            {
                "window": before.window + 1 if before else 1,
                "follows": self._follows,
                "max_age": before.max_age if before else self._window.max_age,
                "capacities": {table: record.result["capacity"] for table, record in made.items()},
                "counts": {table: record.files[-1].sha256 for table, record in made.items()},
                "changes": {table: record.result["changes"] for table, record in made.items()},
                "sources": [asdict(source) for source in (*self.known_sources, *sources)],
            }
        )

    def _policy(self, feature: SparseFeature) -> Policy:
        if self._before is not None:
            return Policy(
                window=self._before.window + 1,
                min_count=feature.min_count,
                capacity=self._before.capacities[feature.table_name],
                max_age=self._before.max_age,
            )
        capacity = feature.rows - FIRST if feature.rows and not feature.vocabulary else 0
        if capacity < 0 or feature.rows == FIRST:
            raise ValueError(
                f"rows of vocab feature {feature.name!r} must be more than {FIRST}, or 0 to be counted: got "
                f"{feature.rows}; correct them"
            )
        window = self._window
        return Policy(
            window=1,
            min_count=feature.min_count,
            capacity=capacity,
            headroom=window.headroom,
            max_age=window.max_age,
        )

    def _ledger(self, feature: SparseFeature, report: Report) -> str:
        """The ledger of the window before, empty if there is none. Raises ValueError if it is not what was written."""
        if self._before is None:
            return ""
        path, wanted = join(self._after, counts_path(feature.table_name)), self._before.counts[feature.table_name]
        _, found = digest(path, lambda _: report(0, 0))
        if found != wanted:
            raise ValueError(
                f"counts {path} must have the SHA-256 of dataset.json, {wanted[:12]}: got {found[:12]}; restore the "
                f"file or prepare {self._after} again"
            )
        return path


def counts_path(table: str) -> str:
    """The file in a prepared folder with the ledger of a vocabulary."""
    return f"counts/{safe_name(table)}.parquet"


def task_result(continued: Continued) -> dict[str, Any]:
    """What the record of a vocabulary keeps besides its files, in types of JSON."""
    return {
        "rows": continued.changes.rows,
        "digest": continued.digest,
        "capacity": continued.capacity,
        "changes": asdict(continued.changes),
    }

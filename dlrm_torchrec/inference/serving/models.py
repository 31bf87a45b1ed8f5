"""The model that a server serves, and how another version takes its place between two batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any
from weakref import WeakSet

from dlrm_torchrec.inference.deltas.delta import DELTA, DeltaError
from dlrm_torchrec.inference.deltas.live import Update, prepare_update
from dlrm_torchrec.inference.deltas.published import Published
from dlrm_torchrec.inference.loading import PackageError, load_package
from dlrm_torchrec.inference.predictor import MANIFEST, TOP, Predictor
from dlrm_torchrec.inference.serving.batcher import Batcher
from dlrm_torchrec.inference.serving.prometheus import Metrics


@dataclass(frozen=True)
class Served:
    """A predictor, and how it came to be."""

    predictor: Predictor
    trained_at: float  # the end of the data that it was trained on, or when it was written; seconds since 1970
    loaded: str  # the fingerprint of the full package that was loaded
    deltas: tuple[int, ...] = ()  # the versions of the deltas that were applied since

    @property
    def name(self) -> str:
        """The package's name, and its version if it is not the first."""
        name, version = (self.predictor.manifest[each] for each in ("name", "version"))
        return f"{name} version {version}" if version else str(name)


class Models:
    """What is served now, and the rows that would bring back the version before."""

    def __init__(self, path: Path, batcher: Batcher, metrics: Metrics, *, top: int = TOP) -> None:
        self.path = path  # of a package, or of a published folder
        self.top = top  # items of an answer
        self.served: Served | None = None  # until a package is loaded
        self._before: tuple[Served, Update] | None = None
        self._overwritten = WeakSet[Predictor]()  # their rows are those of another version
        self._batcher, self._metrics = batcher, metrics
        self._changing = asyncio.Lock()

    def may_run(self, predictor: Predictor) -> bool:
        """Whether inputs that ``predictor`` encoded may still be run: no other version has overwritten its rows."""
        return predictor not in self._overwritten

    async def load(self) -> Served:
        """Serve what lies in the folder now: by the deltas that are new there, or by loading a full package.

        Raises PackageError, and serves what it served before, if that fails. Deltas before the one that fails stay.
        """
        async with self._changing:
            try:
                deltas = await asyncio.to_thread(self._new_deltas)
                if deltas is None:
                    served = await asyncio.to_thread(self._load)
                    self._replace(served)
                    self._before = None  # it would need a second copy of all tables
                    self._metrics.loads.labels("done").inc()
                    return served
            except PackageError:
                self._metrics.loads.labels("failed").inc()
                raise
            assert self.served is not None
            for path in deltas:
                await self._apply(path)
            return self.served

    async def apply(self, path: Path) -> Served:
        """Serve what a delta makes of the served version. Raises DeltaError, and changes nothing, if that fails."""
        async with self._changing:
            return await self._apply(path)

    async def roll_back(self) -> Served:
        """Serve the version before the last delta. Raises DeltaError when there is none in memory."""
        async with self._changing:
            if self._before is None:
                raise DeltaError(
                    "version before must be in memory: got none, because no delta was applied since a package was "
                    "loaded or a delta taken back; load a full package"
                )
            served, update = self._before
            await self._switch(served, update.undo)
            self._before = None
            self._metrics.deltas.labels("rolled back").inc()
            return served

    def description(self) -> dict[str, Any]:
        """The manifest of the served version, with its age and how it came to be."""
        assert self.served is not None
        state = {
            "age_s": round(time() - self.served.trained_at, 3),
            "loaded": self.served.loaded,
            "deltas": list(self.served.deltas),
            "can_roll_back": self._before is not None,
        }
        return {**self.served.predictor.manifest, "serving": state}

    def _new_deltas(self) -> list[Path] | None:
        """The deltas from the served version to the newest in the folder; None if a full package must be loaded."""
        published = self._published()
        if published is None or self.served is None:
            return None
        fingerprint = self.served.predictor.manifest["fingerprint"]
        for version in range(published.newest, -1, -1):
            known = version in published.deltas or version in published.bases
            if known and published.package(version)["fingerprint"] == fingerprint:
                return [published.deltas[number] for number in range(version + 1, published.newest + 1)]
            if version not in published.deltas:
                return None
        return None

    def _published(self) -> Published | None:
        published = Published.read(self.path)
        return published if published.bases and not (self.path / MANIFEST).exists() else None

    def _load(self) -> Served:
        published = self._published()
        path, deltas = (self.path, []) if published is None else published.chain(published.newest)
        predictor = load_package(path, top=self.top)
        served = Served(predictor, _trained_at(predictor, path / MANIFEST), predictor.manifest["fingerprint"])
        for delta in deltas:
            update = prepare_update(served.predictor, delta)
            update.write()
            served = _after(served, update, delta)
        return served

    async def _apply(self, path: Path) -> Served:
        before = self.served
        if before is None:
            raise DeltaError("package must be loaded before a delta: got none yet; try later")
        try:
            update = await asyncio.to_thread(prepare_update, before.predictor, path)
        except DeltaError:
            self._metrics.deltas.labels("refused").inc()
            raise
        served = _after(before, update, path)
        await self._switch(served, update.write)
        self._before = before, update
        self._metrics.deltas.labels("applied").inc()
        return served

    async def _switch(self, served: Served, work: Callable[[], None]) -> None:
        """Serve another version of the same rows after ``work``.

        Requests in the queue run before it. Later ones are encoded by the new version, from this moment on.
        """
        done = self._batcher.change(work)
        assert self.served is not None
        self._overwritten.add(self.served.predictor)
        self._overwritten.discard(served.predictor)
        self._replace(served)
        await done

    def _replace(self, served: Served) -> None:
        self.served = served
        self._metrics.serves(served.predictor.manifest, served.trained_at)


def _after(served: Served, update: Update, delta: Path) -> Served:
    version = update.predictor.manifest["version"]
    trained_at = _trained_at(update.predictor, delta / DELTA)
    return Served(update.predictor, trained_at, served.loaded, (*served.deltas, version))


def _trained_at(predictor: Predictor, manifest: Path) -> float:
    told = predictor.manifest["trained_until"]
    if not told:
        return manifest.stat().st_mtime
    moment = datetime.fromisoformat(told)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

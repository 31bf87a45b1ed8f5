"""The metrics that a server exports to Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from time import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VERSIONS = ("dlrm_torchrec", "torch", "fbgemm_gpu")  # of a package
BATCH_ROWS = [2**power for power in range(15)]
SECONDS = [1e-3 * bound for bound in (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)]


class Metrics:
    """The metrics of one server, in their own registry, together with those of its process, such as its memory."""

    def __init__(self, queued_rows: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        here: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "dlrm_requests", "Requests by path and code; 499 means that the client hung up", ["path", "code"], **here
        )
        self.rows = Counter("dlrm_rows", "Rows answered with a prediction", **here)
        self.unseen = Counter("dlrm_unseen_values", "Values that training had not seen", ["feature"], **here)
        self.batch_rows = Histogram("dlrm_batch_rows", "Rows in each batch of the model", buckets=BATCH_ROWS, **here)
        latency = Histogram(
            "dlrm_latency_seconds",
            "Time of requests answered with predictions: in the queue, in the model, in total",
            ["part"],
            buckets=SECONDS,
            **here,
        )
        self.queue_s, self.model_s, self.total_s = (latency.labels(part) for part in ("queue", "model", "total"))
        queued = Gauge("dlrm_queued_rows", "Rows not answered yet; a request not read yet counts as one", **here)
        queued.set_function(queued_rows)
        self.loads = Counter(
            "dlrm_package_loads", "How often the package was loaded, including the first time", ["outcome"], **here
        )
        for outcome in ("done", "failed"):
            self.loads.labels(outcome)  # so that it shows 0 before the first count
        self.deltas = Counter(
            "dlrm_deltas", "How often a delta was applied, refused or rolled back", ["outcome"], **here
        )
        for outcome in ("applied", "refused", "rolled back"):
            self.deltas.labels(outcome)
        self.package = Info("dlrm_package", "The served package", **here)
        self.version = Gauge("dlrm_package_version", "The number of models before the served one", **here)
        self.age = Gauge("dlrm_package_age_seconds", "Time since the end of the data it was trained on", **here)

    def serves(self, manifest: Mapping[str, Any], trained_at: float) -> None:
        """Note that another package is served from now on, which was trained at that time in seconds since 1970."""
        versions = {name: str(manifest["versions"].get(name, "")) for name in VERSIONS}
        known = {"name": manifest["name"], "fingerprint": manifest["fingerprint"]}
        self.package.info({**known, "model_sha256": manifest["files"]["model.pt"], **versions})
        self.version.set(manifest["version"])
        self.age.set_function(lambda: time() - trained_at)

    def answered(self, num_rows: int, unseen: Mapping[str, int], seconds: float) -> None:
        self.rows.inc(num_rows)
        for feature, count in unseen.items():
            self.unseen.labels(feature).inc(count)
        self.total_s.observe(seconds)


class Counted:
    """An application that counts its answers by code and path; a path that is not in ``paths`` counts as "other"."""

    def __init__(self, app: ASGIApp, requests: Counter, paths: Set[str]) -> None:
        self.app = app
        self.requests = requests
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)

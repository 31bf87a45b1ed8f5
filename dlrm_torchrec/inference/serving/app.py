"""The endpoints of a server: predictions, the served package, and the state of the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dlrm_torchrec.inference.loading import PackageError
from dlrm_torchrec.inference.predictor import AnyInputs, Prediction, Predictor
from dlrm_torchrec.inference.serving.arrow_body import read_arrow, write_arrow
from dlrm_torchrec.inference.serving.batcher import Batcher
from dlrm_torchrec.inference.serving.client import read_body, unless_gone
from dlrm_torchrec.inference.serving.json_body import read_json
from dlrm_torchrec.inference.serving.limits import ServingConfig
from dlrm_torchrec.inference.serving.models import Models, Served
from dlrm_torchrec.inference.serving.prometheus import Counted, Metrics
from dlrm_torchrec.inference.serving.quota import Quota, client_of
from dlrm_torchrec.inference.serving.reload_guard import check_is_inside, check_may_reload, read_path, read_token

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
MAX_BODIES = 16  # how many request bodies of the largest size are held at once
SHORT_BODY_BYTES = 16_384  # encoded without a thread: with threads, 8 clients get only 0.6 of the answers
LONG_BODY_BYTES = 1_000_000  # a longer body waits for all other long ones, so that many take no more than one thread
MAX_ANSWERS = 40_960  # items of an answer, which are written in one go
MAX_ERROR_LENGTH = 500  # characters of an error, which may repeat the client's input


class Service:
    """A package, and everything that the endpoints share."""

    def __init__(self, path: Path, config: ServingConfig) -> None:
        self.path = path
        self.config = config
        self.reload_token = read_token(config.reload_token_file)
        self.queued_rows = Quota(config.max_queued_rows, "rows", config.client_share)
        self.body_bytes = Quota(MAX_BODIES * config.max_request_bytes, "bytes", config.client_share)
        self.metrics = Metrics(lambda: self.queued_rows.held)
        self.batcher = Batcher(
            self.metrics,
            max_batch_rows=config.max_batch_rows,
            max_delay_s=config.max_delay_ms / 1e3,
            threads=config.threads,
        )
        self._encoder, self._long_encoder = (ThreadPoolExecutor(1, name) for name in ("encode", "encode long"))
        self.models = Models(path, self.batcher, self.metrics, top=config.top)

    def app(self, lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]) -> Counted:
        routes = [
            Route("/predict", self.predict, methods=["POST"]),
            Route("/reload", self.reload, methods=["POST"]),
            Route("/delta", self.delta, methods=["POST"]),
            Route("/rollback", self.roll_back, methods=["POST"]),
            *(Route(path, self.package, methods=["GET"]) for path in ("/", "/package")),
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.readiness, methods=["GET"]),
            Route("/metrics", self.exposition, methods=["GET"]),
        ]
        handlers = {HTTPException: _refused, ClientDisconnect: _gone, Exception: _failed}
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
        app.router.redirect_slashes = False
        return Counted(app, self.metrics.requests, {route.path for route in routes})

    async def predict(self, request: Request) -> Response:
        start = perf_counter()
        content_type = _content_type(request)
        self._loaded()
        client = client_of(request.client.host) if request.client else ""
        with self.body_bytes.holding(client) as hold_bytes, self.queued_rows.holding(client, 1) as hold_rows:
            body = await read_body(request, self.config.max_request_bytes, self.config.timeout_s, hold_bytes)
            answer = self._answer(content_type, body, hold_rows)
            predictor, inputs, found = await unless_gone(request, answer)
        counts = zip(predictor.spec["sparse"], inputs.unseen.tolist(), strict=True)
        unseen = {feature["name"]: count for feature, count in counts if count}
        response = _written(content_type, predictor, replace(found, unseen=unseen))
        self.metrics.answered(len(inputs), unseen, perf_counter() - start)
        return response

    async def _answer(
        self, content_type: str, body: bytes, hold_rows: Callable[[int], None]
    ) -> tuple[Predictor, AnyInputs, Prediction]:
        """One predictor encodes the rows, predicts and answers, even if another package is loaded meanwhile."""
        while True:
            predictor = self._loaded()
            if len(body) <= SHORT_BODY_BYTES:
                inputs = self.encoded(predictor, content_type, body)
            else:
                encoder = self._encoder if len(body) <= LONG_BODY_BYTES else self._long_encoder
                work = partial(self.encoded, predictor, content_type, body)
                inputs = await asyncio.get_running_loop().run_in_executor(encoder, work)
            if self.models.may_run(predictor):
                break
        hold_rows(len(inputs) - 1)  # one row was held since the request began
        found = await self.batcher.submit(predictor, inputs)
        if not np.isfinite(found.predictions).all():
            raise HTTPException(422, "a row must give a finite prediction: got a row whose values overflow the model")
        return predictor, inputs, found

    def encoded(self, predictor: Predictor, content_type: str, body: bytes) -> AnyInputs:
        """The rows of a body. Raises HTTPException with the status of what is wrong with it."""
        if content_type == ARROW:
            columns = read_arrow(body, self.config, predictor.encode.known)
        else:
            columns = read_json(body, self.config)
        try:
            inputs = predictor.encode(columns)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        if len(inputs) == 0:
            raise HTTPException(422, "a request must have rows: got none")
        if len(inputs) > self.config.max_rows:  # several for a user
            most = f"at most {self.config.max_rows}: got {len(inputs)}; split the request"
            raise HTTPException(413, f"candidates of all users must be {most}")
        if predictor.ranked and len(inputs) * predictor.top > MAX_ANSWERS:
            most = f"at most {MAX_ANSWERS}: got {len(inputs)} users with {predictor.top} each; split the request"
            raise HTTPException(413, f"items of an answer must be {most}")
        return inputs

    async def reload(self, request: Request) -> Response:
        check_may_reload(request, self.reload_token)
        return await self._changed(self.models.load())

    async def delta(self, request: Request) -> Response:
        check_may_reload(request, self.reload_token)
        with self.body_bytes.holding("") as hold_bytes:
            body = await read_body(request, self.config.max_request_bytes, self.config.timeout_s, hold_bytes)
        path = read_path(body)
        if not self.reload_token:
            check_is_inside(path, self.path)
        return await self._changed(self.models.apply(path))

    async def roll_back(self, request: Request) -> Response:
        check_may_reload(request, self.reload_token)
        return await self._changed(self.models.roll_back())

    async def _changed(self, change: Awaitable[Served]) -> Response:
        try:
            manifest = (await change).predictor.manifest
        except PackageError as error:
            raise HTTPException(409, f"{error} (the server keeps serving the previous package)") from error
        return JSONResponse({"package": manifest["name"], "version": manifest["version"]})

    async def package(self, _: Request) -> Response:
        self._loaded()
        return JSONResponse(self.models.description())

    async def health(self, _: Request) -> Response:
        return JSONResponse({"alive": True})

    async def readiness(self, _: Request) -> Response:
        return JSONResponse({"package": self._loaded().manifest["name"]})

    async def exposition(self, _: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    def _loaded(self) -> Predictor:
        if self.models.served is None:
            raise HTTPException(503, "the package must be loaded first: got none yet; try later", {"Retry-After": "1"})
        return self.models.served.predictor


def _content_type(request: Request) -> str:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in (JSON, ARROW):
        raise HTTPException(415, f"content type must be {JSON} or {ARROW}: got {content_type or 'none'}")
    if "content-encoding" in request.headers:
        raise HTTPException(415, "content must not be encoded: got a Content-Encoding; send it unencoded")
    return content_type


def _written(content_type: str, predictor: Predictor, found: Prediction) -> Response:
    manifest = predictor.manifest
    package = manifest["name"]
    headers = {"Package-Version": str(manifest["version"]), "Package-Fingerprint": manifest["fingerprint"]}
    if content_type == ARROW:
        columns = dict(zip(predictor.answers, found.columns(), strict=True))
        return Response(write_arrow(columns, found.unseen, package), media_type=ARROW, headers=headers)
    return JSONResponse({**predictor.named(found), "unseen": found.unseen, "package": package}, headers=headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = json.dumps({"error": error.detail[:MAX_ERROR_LENGTH]})  # as ASCII, because it may repeat broken characters
    return Response(text, error.status_code, error.headers, JSON)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _failed(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says why"}, 500)

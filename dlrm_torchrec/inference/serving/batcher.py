"""Batching: requests that wait at the same time become one batch of the model.

The model runs as soon as it is free, on all requests that came while it was busy. A single request never waits, and the
busier the server is, the larger its batches are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

import torch

from dlrm_torchrec.inference.predictor import AnyInputs, Prediction, Predictor
from dlrm_torchrec.inference.serving.prometheus import Metrics


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request in the queue, with the future that receives its rows' predictions."""

    predictor: Predictor  # it encoded the inputs; ids of another package mean other values
    inputs: AnyInputs
    answer: asyncio.Future[Prediction]
    since: float


@dataclass(frozen=True, eq=False)
class Change:
    """Work between two batches that changes what the model reads, with the future that tells its end."""

    work: Callable[[], None]
    done: asyncio.Future[None]


class Batcher:
    """The queue of a model that runs in its own thread, one batch at a time."""

    def __init__(self, metrics: Metrics, *, max_batch_rows: int, max_delay_s: float, threads: int) -> None:
        self.max_batch_rows = max_batch_rows
        self.max_delay_s = max_delay_s
        self.metrics = metrics
        self._queue: deque[Waiting | Change] = deque()
        self._arrival = asyncio.Event()
        self._model = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(threads,))

    def submit(self, predictor: Predictor, inputs: AnyInputs) -> asyncio.Future[Prediction]:
        """A future of the predictions, whose ``unseen`` is that of a whole batch; cancelling it removes the rows."""
        answer = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(predictor, inputs, answer, perf_counter()))
        self._arrival.set()
        return answer

    def change(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """A future of the end of ``work``, which runs after all requests that wait now and before all later ones."""
        done = asyncio.get_running_loop().create_future()
        self._queue.append(Change(work, done))
        self._arrival.set()
        return done

    async def run(self) -> None:
        """Runs the model on waiting requests until this task is cancelled."""
        while True:
            if not self._queue:
                self._arrival.clear()
                await self._arrival.wait()
            head = self._queue[0]
            if isinstance(head, Change):
                self._queue.popleft()
                await self._make(head)
                continue
            await self._wait_for_company(head.since + self.max_delay_s)
            if batch := self._next_batch():
                await self._predict(batch)

    async def _wait_for_company(self, until: float) -> None:
        while (left := until - perf_counter()) > 0 and self._may_have_company():
            self._arrival.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrival.wait(), left)

    def _may_have_company(self) -> bool:
        """Whether more requests may join a batch of all that wait: no change waits, which none can pass."""
        rows = 0
        for each in self._queue:
            if isinstance(each, Change):
                return False
            rows += len(each.inputs)
        return rows < self.max_batch_rows

    def _next_batch(self) -> list[Waiting]:
        """The next batch from the head of the queue: at least one request, then more of the same predictor that fit."""
        batch: list[Waiting] = []
        rows = 0
        while self._queue:
            head = self._queue[0]
            if isinstance(head, Change):
                break
            if not head.answer.cancelled():  # a cancelled request has lost its client
                rows += len(head.inputs)
                if batch and (rows > self.max_batch_rows or head.predictor is not batch[0].predictor):
                    break
                batch.append(head)
            self._queue.popleft()
        return batch

    async def _make(self, change: Change) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._model, change.work)
        except Exception as error:
            change.done.set_exception(error)
        else:
            change.done.set_result(None)

    async def _predict(self, batch: list[Waiting]) -> None:
        start = perf_counter()
        try:
            parts = await asyncio.get_running_loop().run_in_executor(self._model, _predictions, batch)
        except Exception as error:  # the model failed: these requests fail, but the server continues
            for each in batch:
                if not each.answer.cancelled():
                    each.answer.set_exception(error)
            return
        self.metrics.batch_rows.observe(sum(len(each.inputs) for each in batch))
        self.metrics.model_s.observe(perf_counter() - start)
        for each, part in zip(batch, parts, strict=True):
            if not each.answer.cancelled():
                self.metrics.queue_s.observe(start - each.since)
                each.answer.set_result(part)


def _predictions(batch: list[Waiting]) -> list[Prediction]:
    """The predictions for each request."""
    inputs = [each.inputs for each in batch]
    return batch[0].predictor.run(inputs[0].joined(inputs)).of_each(inputs)

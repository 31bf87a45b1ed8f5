"""Worker processes that share a list of tasks. They are forks, so they have the tasks and the machine code already.

A task writes its result to files. A worker only sends back its progress, that a task is done, or its error.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import pyarrow as pa

Report = Callable[[int, int], None]  # takes the rows and bytes of raw data that were read since the last call

_POLL_S = 1.0
_STOP_S = 10.0  # time for a worker to remove unfinished files before it is killed


@dataclass(frozen=True)
class Task:
    """Something to do; ``what`` describes it for people."""

    what: str
    bytes: int  # of raw data that it reads
    run: Callable[[Report], None]


@dataclass
class Worker:
    """A process and its present task."""

    name: str
    process: BaseProcess
    connection: Connection[Any, Any]
    task: Task | None = None


def run_tasks(tasks: Sequence[Task], workers: int, report: Report) -> None:
    """Do all tasks, in this process if ``workers`` is 1; ``report`` is called at least every second.

    The error of a task is raised here, after the other workers were stopped. Raises ChildProcessError when a worker
    dies.
    """
    if workers == 1 or len(tasks) == 1:
        for task in tasks:
            task.run(report)
        return
    started: list[Worker] = []
    try:
        for number in range(min(workers, len(tasks))):
            started.append(_start(f"worker {number}", tasks, started))
        _share_out(deque(enumerate(tasks)), started, report)
    finally:
        _stop(started)


def _share_out(waiting: deque[tuple[int, Task]], workers: list[Worker], report: Report) -> None:
    by_connection = {worker.connection: worker for worker in workers}
    for worker in workers:
        _assign(worker, waiting)
    while any(worker.task for worker in workers):
        report(0, 0)
        for connection in wait([worker.connection for worker in workers if worker.task], _POLL_S):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                message = connection.recv()
            except (EOFError, ConnectionError):
                raise _lost(worker) from None
            if isinstance(message, BaseException):
                raise message
            if message is None:
                _assign(worker, waiting)
            else:
                report(*message)


def _assign(worker: Worker, waiting: deque[tuple[int, Task]]) -> None:
    worker.task = None
    if waiting:
        number, worker.task = waiting.popleft()
        worker.connection.send(number)


def _start(name: str, tasks: Sequence[Task], others: list[Worker]) -> Worker:
    here, there = multiprocessing.Pipe()
    # A worker notices the death of this process only if no other process holds the other end of its pipe.
    not_its_own = [here, *(worker.connection for worker in others)]
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_work, args=(tasks, there, not_its_own), name=name, daemon=True)
    process.start()
    there.close()
    return Worker(name, process, here)


def _work(tasks: Sequence[Task], connection: Connection[Any, Any], not_its_own: list[Connection[Any, Any]]) -> None:
    """Do the tasks whose numbers arrive, until the process that sends them has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal; the main process stops its workers
    for other in not_its_own:
        other.close()
    # Arrow's own pool returns the memory of each block and gets it again for the next: a tenth of all time.
    pa.set_memory_pool(pa.system_memory_pool())

    def send(message: object) -> None:
        try:
            connection.send(message)
        except ConnectionError:  # the main process has ended: remove unfinished files and end, too
            sys.exit()

    while True:
        try:
            number = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            tasks[number].run(lambda rows, raw_bytes: send((rows, raw_bytes)))
        except Exception as error:
            if not isinstance(error, (ValueError, OSError)):
                error.add_note(traceback.format_exc())
            send(error)
            return
        send(None)


def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        worker.process.join(_STOP_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _lost(worker: Worker) -> ChildProcessError:
    worker.process.join()
    code = worker.process.exitcode or 0
    fate = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    assert worker.task is not None
    return ChildProcessError(
        f"{worker.name} (process {worker.process.pid}) must live until it has finished {worker.task.what}: it {fate}; "
        "if the system ran out of memory, lower the number of workers or the memory they may use, then run the same "
        "command again: finished parts are kept"
    )

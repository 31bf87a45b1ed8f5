"""``run_ranks``: a function run by several real processes, as under torchrun, with failures and hangs explained."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dlrm_torchrec.train.world import World

T = TypeVar("T")

# Children are forked from one clean process that has imported what they need and done nothing else, which saves each
# of them the seconds that these imports take.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.imports"])


def run_ranks(
    world_size: int, function: Callable[..., T], *args: Any, timeout_s: float = 120.0, join: bool = True
) -> list[T]:
    """What ``function(*args)`` returned on each of ``world_size`` processes, ordered by rank.

    Every process has one thread, torchrun's environment variables and an initialised gloo process group (without
    ``join``, the function initialises its own, as a recipe does). The function must be importable (top level of a
    module); arguments and results are pickled.

    Raises RuntimeError with the rank and its traceback as soon as one rank fails or dies, and TimeoutError with
    the stacks of the ranks that are still running after ``timeout_s``. No process survives the call.
    """
    # The parent owns the rendezvous store, as torchrun's agent does: the port is taken before anyone is told of it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    work = pickle.dumps((function, args, join))
    with tempfile.TemporaryDirectory() as folder:
        stacks = [Path(folder, f"rank{rank}.txt") for rank in range(world_size)]
        ranks = [_start(rank, world_size, store.port, stacks[rank], work) for rank in range(world_size)]
        try:
            return _collect(ranks, stacks, timeout_s)
        finally:
            for process, _ in ranks:
                process.kill()
                process.join()


def here() -> World:
    """This process among those of ``run_ranks``."""
    control, rank, size = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    assert control is not None
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"), control=control)


def _start(rank: int, world_size: int, port: int, stack: Path, work: bytes) -> tuple[ForkServerProcess, Connection]:
    link, far_end = context.Pipe()
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 connects to the parent's store, too
    }
    process = context.Process(target=_rank_main, args=(environment, stack, work, far_end), daemon=True)
    process.start()
    far_end.close()  # so that the death of the child is the end of the pipe
    return process, link


def _rank_main(environment: dict[str, str], stack: Path, work: bytes, link: Connection) -> None:
    os.environ.update(environment)
    with stack.open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        try:
            torch.set_num_threads(1)
            function, args, join = pickle.loads(work)
            if join:
                dist.init_process_group("gloo")
            message: tuple[bool, Any] = (True, pickle.dumps(function(*args)))
        except BaseException:  # SystemExit as well
            message = (False, traceback.format_exc())
        link.send(message)
        link.recv()  # until all are done: whoever left now would break a peer that is still joining or receiving
        if dist.is_initialized():  # the function may have left the group itself
            dist.destroy_process_group()


def _collect(ranks: list[tuple[ForkServerProcess, Connection]], stacks: list[Path], timeout_s: float) -> list[Any]:
    deadline = time.monotonic() + timeout_s
    running = {link: rank for rank, (_, link) in enumerate(ranks)}
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    while running:
        ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            hanging = [(rank, ranks[rank][0], stacks[rank]) for rank in running.values()]
            raise TimeoutError(_hang_report(hanging, timeout_s))
        for link in [link for link in running if link in ready]:
            rank = running.pop(link)
            try:
                succeeded, content = link.recv()
            except EOFError:  # told at once: what else is ready may be a peer that missed this rank
                process = ranks[rank][0]
                process.join()
                raise RuntimeError(f"rank {rank} died with exit code {process.exitcode}") from None
            if succeeded:
                results[rank] = pickle.loads(content)
            else:
                failures[rank] = content
        if failures:
            raise RuntimeError("\n".join(f"rank {rank} failed:\n{failure}" for rank, failure in failures.items()))
    for _, link in ranks:
        link.send(None)
    for process, _ in ranks:
        process.join(timeout=10)
    return [results[rank] for rank in range(len(ranks))]


def _hang_report(hanging: list[tuple[int, ForkServerProcess, Path]], timeout_s: float) -> str:
    for _, process, _ in hanging:
        if process.pid is not None:
            os.kill(process.pid, signal.SIGUSR1)
    time.sleep(0.5)  # for faulthandler to write
    names = ", ".join(str(rank) for rank, _, _ in hanging)
    dumps = [f"rank {rank} is at\n{stack.read_text()}" for rank, _, stack in hanging]
    return "\n".join([f"rank {names} still running after {timeout_s} s", *dumps])

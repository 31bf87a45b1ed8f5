"""The ranks of a world as threads of this process, which take turns."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields
from types import FunctionType
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.testing._internal.distributed.multi_threaded_pg import ThreadLocalWorld, WorldData
from torchrec.distributed import comm
from torchrec.distributed.sharding import grid_sharding, twrw_sharding

from dlrm_torchrec.train.world import World
from tests.collectives.device import is_marked, patched_cuda, stand_in
from tests.collectives.group import Group
from tests.collectives.meeting import DisagreementError, Meetings

T = TypeVar("T")
_here = threading.local()
_start_thread = threading.Thread.start
_result = concurrent.futures.Future.result


class _Worlds(ThreadLocalWorld):
    """torch's list of process groups, one for each rank, also in the threads that a rank starts."""

    def _get_world(self) -> WorldData:
        world: WorldData = _here.groups
        return world


def on_main_thread() -> bool:
    """Whether this is the thread that runs a rank, and not one that it started."""
    return bool(_here.main)


def here() -> World:
    """The world of the rank that this thread runs."""
    world: World = _here.world
    return world


@contextmanager
def joined(*_: object) -> Iterator[World]:
    """Stands for ``join_world`` in a recipe that is walked."""
    with here().at_end:
        yield here()


def no_groups() -> WorldData:
    """What torch knows of the groups of a rank that has not joined yet; torch 2.11 keeps no list of communicators."""
    lists: dict[str, list[Any]] = {field.name: [] for field in fields(WorldData) if field.name == "comms"}
    return WorldData(None, {}, {}, {}, {}, 0, {}, {}, {}, **lists)  # type: ignore[arg-type]  # None until it has joined


def walk(
    size: int, function: Callable[[World], T], *, local_size: int, device: torch.device
) -> tuple[list[T], Meetings]:
    """What ``function(world)`` returns on each rank, and the collectives that were issued.

    The default group is NCCL's in name, and groups that are asked for as gloo are gloo's. Raises DisagreementError with
    what differs when the ranks do not issue the same collectives.
    """
    cuda = device.type == "cuda"
    meetings, store = Meetings(size, is_marked if cuda else None), dist.HashStore()
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def main(rank: int) -> None:
        _here.main, _here.meetings, _here.backend = True, meetings, "nccl" if cuda else "gloo"
        _here.groups = no_groups()
        _here.comm = {**vars(comm), "_INTRA_PG": None, "_CROSS_PG": None}

        def joined() -> T:
            dist.init_process_group("meeting", store=store, rank=rank, world_size=size)
            own = torch.device("cuda", rank % local_size) if cuda else device
            with stand_in(own) if cuda else nullcontext():
                control = dist.new_group(backend="gloo")
                world = World(rank=rank, size=size, local_size=local_size, device=own, control=control)
                _here.world = world
                return function(world)

        try:
            results[rank] = meetings.run(rank, joined)
        except BaseException as error:
            errors[rank] = error

    with _in_threads(local_size), patched_cuda() if cuda else nullcontext():
        threads = [threading.Thread(target=main, args=(rank,), name=f"rank {rank}") for rank in range(size)]
        for thread in threads:
            _start_thread(thread)
        for thread in threads:
            thread.join()
    if meetings.faults:
        raise DisagreementError(meetings.faults[0]) from next(iter(errors.values()), None)
    return [results[rank] for rank in range(size)], meetings


@contextmanager
def _in_threads(local_size: int) -> Iterator[None]:
    """Inside ``with``, torch and TorchRec keep apart what belongs to ranks that are threads."""
    new_group, worlds = dist.new_group, _Worlds()

    def named_group(ranks: Any = None, *, backend: str | None = None, **kwargs: Any) -> Any:
        inherited = _here.backend
        _here.backend = inherited if backend is None else backend
        try:
            return new_group(ranks, backend="meeting", **kwargs)
        finally:
            _here.backend = inherited

    def backend_of(group: Any = None) -> str:
        return (group or worlds.default_pg).backend

    with ExitStack() as patched:
        for target, name, value in (
            (distributed_c10d, "_world", worlds),
            (dist, "new_group", named_group),
            (distributed_c10d, "new_group", named_group),
            (dist, "get_backend", backend_of),
            (torch.cuda.nccl, "version", lambda: (2, 0)),  # torch logs it
            (twrw_sharding, "intra_and_cross_node_pg", _per_rank(comm.intra_and_cross_node_pg)),
            (grid_sharding, "intra_and_cross_node_pg", _per_rank(comm.intra_and_cross_node_pg)),
            (threading.Thread, "start", _start_as_rank),
            (concurrent.futures.Future, "result", _result_unlocked),
        ):
            patched.enter_context(patch.object(target, name, value))
        patched.enter_context(patch.dict("os.environ", {"LOCAL_WORLD_SIZE": str(local_size)}))
        isolate: Any = torch._C._distributed_c10d
        isolate._set_thread_isolation_mode(True)  # torch lists groups by name, which ranks have in common
        patched.callback(isolate._set_thread_isolation_mode, False)
        yield


def _create(options: Any, _: Any) -> Group:
    ranks = list(options.global_ranks_in_group) or list(range(options.group_size))
    return Group(_here.meetings, _here.backend, options.group_id, ranks, options.group_rank)


dist.Backend.register_backend("meeting", _create, extended_api=True, devices=["cpu", "cuda"])


def _per_rank(function: Callable[..., Any]) -> Callable[..., Any]:
    """TorchRec's function with globals of each rank's own, where it keeps process groups."""

    def called(*args: Any, **kwargs: Any) -> Any:
        own = FunctionType(function.__code__, _here.comm, function.__name__, function.__defaults__)
        return own(*args, **kwargs)

    return called


def _start_as_rank(thread: threading.Thread) -> None:
    """Start a thread of a rank: its collectives are the rank's."""
    inherited, run = {**vars(_here), "main": False}, thread.run

    def run_as_rank() -> None:
        vars(_here).update(inherited)
        run()

    thread.run = run_as_rank  # type: ignore[method-assign]  # of this one thread
    _start_thread(thread)


def _result_unlocked(future: Any, timeout: float | None = None) -> Any:
    """The result of a background thread, which may need the other ranks to go on."""
    if future.done() or not getattr(_here, "main", False):
        return _result(future, timeout)
    return _here.meetings.unlocked(lambda: _result(future, timeout))

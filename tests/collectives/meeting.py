"""Collectives of ranks that are threads of this process: each is compared over its ranks before it runs.

NCCL checks nothing. Ranks that disagree on a kind, a type or a size hang, or read what was never sent. Here every
collective blocks its rank until all ranks of its group have issued it, so a run that ends proves that the ranks' orders
fit together, over all groups: it is the strictest order that NCCL's communicators may need.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import torch

_OWN = (
    "/collectives/meeting.py",
    "/collectives/group.py",
    "/collectives/device.py",
    "/torch/distributed/",
    "/torch/utils/",
    "/contextlib.py",
    "/torch/overrides.py",
    "/typing_extensions.py",
    "/blank.py",
)

# From here DDP's C++ issues collectives, of buffers that it makes on the device of its parameters.
_UNSEEN = ("nn/parallel/distributed.py", "torch/autograd/graph.py")


class DisagreementError(Exception):
    """Ranks issue different collectives, or wait for each other for ever."""


class StoppedError(BaseException):
    """Ends a rank whose peers have failed; not an Exception, so that nothing on its way handles it."""


class Call(NamedTuple):
    """What one rank hands to a collective; ``sends`` and ``receives`` are of an all-to-all, per rank of the group."""

    kind: str
    sent: tuple[torch.Tensor, ...]
    received: tuple[torch.Tensor, ...]
    option: str = ""  # the reduction, the root
    sends: tuple[int, ...] = ()  # numbers
    receives: tuple[int, ...] = ()


class Issued(NamedTuple):
    """A collective in the record of a rank."""

    kind: str
    backend: str
    ranks: tuple[int, ...]
    option: str
    dtypes: tuple[torch.dtype, ...]
    sizes: tuple[int, ...]  # in numbers; none for an all-to-all, whose sizes differ by rank
    caller: str


@dataclass
class _Meeting:
    calls: dict[int, tuple[Call, str]] = field(default_factory=dict)
    over: bool = False


@dataclass
class Meetings:
    """The collectives that wait for ranks, and the record of all that ran."""

    size: int
    on_device: Callable[[torch.Tensor], bool] | None = None  # of a tensor; None: not known
    record: list[list[Issued]] = field(init=False)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.record = [[] for _ in range(self.size)]
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # held by the one rank that runs, as ranks share the globals of libraries
        self._open: dict[tuple[str, int], _Meeting] = {}
        self._waiting: dict[int, str] = {}
        self._running = set(range(self.size))

    def run(self, rank: int, function: Callable[[], Any]) -> Any:
        """What ``function`` returns as ``rank``, whose collectives meet those of the other ranks."""
        self._turn.acquire()
        try:
            return function()
        except StoppedError:
            return None
        except Exception as error:
            self._fail(f"rank {rank} failed: {type(error).__name__}: {error}")
            raise
        finally:
            with self._changed:
                self._running.discard(rank)
                self._look_for_hang()
            self._turn.release()

    def unlocked(self, wait: Callable[[], Any]) -> Any:
        """What ``wait`` returns, while other ranks run."""
        self._turn.release()
        try:
            return wait()
        finally:
            self._turn.acquire()

    def meet(
        self, call: Call, *, group: tuple[str, int], backend: str, ranks: Sequence[int], rank: int, main: bool
    ) -> None:
        """Issue the collective ``call`` of one rank, and return when it has run on all of ``ranks``.

        Args:
            call: what this rank hands over
            group: the name of the group, and how many collectives this rank has issued in it
            backend: nccl or gloo
            ranks: of the group, in order
            rank: that calls
            main: whether it is the rank's main thread, and not one that saves in the background
        """
        caller = _caller()
        if main:
            self._turn.release()
        try:
            with self._changed:
                self._stop_if_failed()
                meeting = self._open.setdefault(group, _Meeting())
                meeting.calls[rank] = call, caller
                sizes = () if call.sends else tuple(each.numel() for each in call.sent)
                dtypes = tuple(each.dtype for each in call.sent)
                self.record[rank].append(Issued(call.kind, backend, tuple(ranks), call.option, dtypes, sizes, caller))
                if len(meeting.calls) == len(ranks):
                    self._hold(group, meeting, backend, ranks)
                else:
                    if main:
                        self._waiting[rank] = f"{call.kind} of {_brief(ranks)} at {caller}"
                        self._look_for_hang()
                    while not meeting.over:
                        self._stop_if_failed()
                        self._changed.wait()
                self._waiting.pop(rank, None)
        finally:
            if main:
                self._turn.acquire()

    def _hold(self, group: tuple[str, int], meeting: _Meeting, backend: str, ranks: Sequence[int]) -> None:
        calls = [meeting.calls[rank] for rank in ranks]
        fault = disagreement(ranks, calls) or self._misplaced(ranks, calls, backend)
        if fault:
            self._fail(fault)
            raise StoppedError
        with torch.no_grad():
            carry_out([call for call, _ in calls])
        del self._open[group]
        meeting.over = True
        for rank in ranks:
            self._waiting.pop(rank, None)
        self._changed.notify_all()

    def _misplaced(self, ranks: Sequence[int], calls: Sequence[tuple[Call, str]], backend: str) -> str:
        if self.on_device is None:
            return ""
        for rank, (call, caller) in zip(ranks, calls, strict=True):
            for tensor in () if caller.startswith(_UNSEEN) else (*call.sent, *call.received):
                if self.on_device(tensor) != (backend == "nccl"):
                    place = "the host" if backend == "nccl" else "the device"
                    return f"rank {rank} hands {backend} a tensor in {place}'s memory: {call.kind} at {caller}"
        return ""

    def _look_for_hang(self) -> None:
        if self._running and self._running <= self._waiting.keys():
            at: dict[str, list[int]] = {}
            for rank in sorted(self._running):
                at.setdefault(self._waiting[rank], []).append(rank)
            ended = sorted(set(range(self.size)) - self._running)
            lines = [f"{_brief(waiting)} wait in {where}" for where, waiting in at.items()]
            self._fail("; ".join(lines + [f"{_brief(ended)} have ended"] * bool(ended)))

    def _fail(self, fault: str) -> None:
        with self._changed:
            self.faults.append(fault)
            self._changed.notify_all()

    def _stop_if_failed(self) -> None:
        if self.faults:
            raise StoppedError


def disagreement(ranks: Sequence[int], calls: Sequence[tuple[Call, str]]) -> str:
    """Why these calls cannot be one collective; empty when they can."""
    for what, of in _COMMON.items():
        found: dict[str, list[int]] = {}
        for rank, (call, _) in zip(ranks, calls, strict=True):
            found.setdefault(f"{of(call)}", []).append(rank)
        if len(found) > 1:
            at = {rank: caller for rank, (_, caller) in zip(ranks, calls, strict=True)}
            each = (f"{value} on {_brief(same)} at {at[same[0]]}" for value, same in found.items())
            return f"ranks of one collective must agree on the {what}: got " + ", ".join(each)
    for a, (sender, caller) in enumerate(calls):
        for b, (receiver, _) in enumerate(calls):
            if sender.sends and sender.sends[b] != receiver.receives[a]:
                return (
                    f"rank {ranks[a]} sends {sender.sends[b]} numbers to rank {ranks[b]}, which expects "
                    f"{receiver.receives[a]}: {sender.kind} at {caller}"
                )
    return ""


def _piece(call: Call) -> tuple[torch.Tensor, ...]:
    """The tensors of a call that are alike on all ranks; a root has others besides."""
    return call.received if call.kind == "scatter" else call.sent


_COMMON: dict[str, Callable[[Call], Any]] = {
    "kind": lambda call: call.kind,
    "reduction or root": lambda call: call.option,
    "dtype": lambda call: [str(each.dtype) for each in _piece(call)],
    "size": lambda call: [] if call.sends else [each.numel() for each in _piece(call)],
}


def carry_out(calls: Sequence[Call]) -> None:
    """Move the numbers: ``calls`` are those of all ranks of a group, and agree."""
    kind, option = calls[0].kind, calls[0].option
    if kind in ("allreduce", "reduce_scatter"):
        for number, tensor in enumerate(calls[0].sent):
            total = _reduced(
                torch.stack([call.sent[number].detach().reshape(-1) for call in calls]), option, tensor.dtype
            )
            parts = [total] * len(calls) if kind == "allreduce" else total.chunk(len(calls))
            for call, part in zip(calls, parts, strict=True):
                call.received[number].detach().copy_(part.view_as(call.received[number]))
    elif kind == "broadcast":
        for call in calls:
            for into, tensor in zip(call.received, calls[int(option)].sent, strict=True):
                into.detach().copy_(tensor.detach())
    elif kind in ("allgather", "gather"):
        gathered = [call.sent[0].detach() for call in calls]
        for rank, call in enumerate(calls):
            if kind == "allgather" or rank == int(option):
                for into, tensor in zip(call.received, gathered, strict=True):
                    into.detach().copy_(tensor.view_as(into))
    elif kind == "scatter":
        for call, tensor in zip(calls, calls[int(option)].sent, strict=True):
            call.received[0].detach().copy_(tensor.detach())
    elif kind == "alltoall":
        pieces = [call.sent[0].detach().reshape(-1).split(list(call.sends)) for call in calls]
        for rank, call in enumerate(calls):
            arrived = torch.cat([sent[rank] for sent in pieces])
            call.received[0].detach().copy_(arrived.view_as(call.received[0]))
    else:
        assert kind == "barrier", kind


def _reduced(numbers: torch.Tensor, option: str, dtype: torch.dtype) -> torch.Tensor:
    if option == "SUM":
        return (numbers.float().sum(0) if dtype.itemsize == 2 else numbers.sum(0)).to(dtype)  # halves are slow on CPU
    if option == "AVG":
        return numbers.mean(0)
    if option == "BOR":
        return reduce(torch.bitwise_or, numbers)
    assert option in ("MAX", "MIN"), option
    return numbers.amax(0) if option == "MAX" else numbers.amin(0)


def _brief(ranks: Sequence[int]) -> str:
    return "ranks " + ",".join(str(rank) for rank in ranks)


def _caller() -> str:
    """File and line that asked for the collective, below torch's own."""
    frame = inspect.currentframe()
    assert frame is not None
    while frame.f_back is not None and any(own in frame.f_code.co_filename for own in _OWN):
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{frame.f_lineno}"

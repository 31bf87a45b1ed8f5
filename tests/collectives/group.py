"""A process group whose collectives are ``Meetings`` of threads, under the names that torch 2.11 to 2.13 call."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future

from tests.collectives.meeting import Call, Meetings

_REDUCTIONS = {getattr(dist.ReduceOp, name): name for name in ("SUM", "AVG", "MAX", "MIN", "BOR")}


_c10d: Any = torch._C._distributed_c10d
_ProcessGroup: Any = dist.ProcessGroup  # torch calls one of each method's overloads


class Group(_ProcessGroup):
    """The group of ``ranks`` as seen by one of them; ``backend`` is what the library believes that it is."""

    def __init__(self, meetings: Meetings, backend: str, name: str, ranks: Sequence[int], place: int) -> None:
        super().__init__(place, len(ranks))
        self.meetings, self.backend, self.name, self.ranks, self.place = meetings, backend, name, tuple(ranks), place
        self.issued = 0

    def size(self) -> int:
        return len(self.ranks)

    def getBackendName(self) -> str:  # noqa: N802 (torch's)
        return self.backend

    @property
    def group_name(self) -> str:
        return self.name

    @property
    def _device_types(self) -> list[torch.device]:
        """Where torch puts the bytes of objects."""
        return [torch.device("cuda" if self.backend == "nccl" else "cpu")]

    def _meet(self, result: Any, call: Call) -> dist.Work:
        from tests.collectives.ranks import on_main_thread

        self.issued += 1
        self.meetings.meet(
            call,
            group=(self.name, self.issued),
            backend=self.backend,
            ranks=self.ranks,
            rank=self.ranks[self.place],
            main=on_main_thread(),
        )
        done: Future[Any] = Future()
        done.set_result(result)
        work: dist.Work = _c10d._create_work_from_future(done)
        return work

    def allreduce(self, tensors: Any, opts: Any = None) -> dist.Work:
        tensors = [tensors] if isinstance(tensors, torch.Tensor) else tensors
        operation = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        return self._meet(tensors, Call("allreduce", tuple(tensors), tuple(tensors), _name(operation)))

    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> dist.Work:
        return self.allreduce(tensors, opts)

    def broadcast(self, tensors: Any, opts: Any = None) -> dist.Work:
        tensors = [tensors] if isinstance(tensors, torch.Tensor) else tensors
        root = 0 if opts is None else opts.rootRank
        return self._meet(tensors, Call("broadcast", tuple(tensors), tuple(tensors), str(root)))

    def allgather(self, outputs: Any, inputs: Any, *_: Any) -> dist.Work:
        (into,), (sent,) = outputs, inputs
        return self._meet(outputs, Call("allgather", (sent,), tuple(into)))

    def all_gather_single(self, output: torch.Tensor, sent: torch.Tensor, *_: Any) -> dist.Work:
        into = output.detach().view(-1).chunk(self.size()) if output.numel() else (output,) * self.size()
        return self._meet(output, Call("allgather", (sent,), into))

    _allgather_base = all_gather_single

    def reduce_scatter_single(self, output: torch.Tensor, sent: torch.Tensor, opts: Any = None) -> dist.Work:
        operation = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        return self._meet(output, Call("reduce_scatter", (sent,), (output,), _name(operation)))

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        (output,), (sent,) = outputs, inputs
        return self.reduce_scatter_single(output, torch.cat([each.reshape(-1) for each in sent]), opts)

    def all_to_all_single(
        self, output: torch.Tensor, sent: torch.Tensor, receives: Any, sends: Any, *_: Any
    ) -> dist.Work:
        return self._meet(
            output,
            Call("alltoall", (sent,), (output,), "", self._numbers(sent, sends), self._numbers(output, receives)),
        )

    alltoall_base = all_to_all_single

    def _numbers(self, tensor: torch.Tensor, rows: Sequence[int]) -> tuple[int, ...]:
        """How many numbers of ``tensor`` each rank gets, or gives; equal parts where no rows are told."""
        if not rows:
            assert tensor.numel() % self.size() == 0
            return (tensor.numel() // self.size(),) * self.size()
        assert sum(rows) == len(tensor), "the rows of an all-to-all must be those of its tensor"
        return tuple(number * prod(tensor.shape[1:]) for number in rows)

    def gather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        return self._meet(
            outputs, Call("gather", tuple(inputs), tuple(outputs[0]) if outputs else (), str(opts.rootRank))
        )

    def scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        return self._meet(
            outputs, Call("scatter", tuple(inputs[0]) if inputs else (), tuple(outputs), str(opts.rootRank))
        )

    def barrier(self, opts: Any = None) -> dist.Work:  # noqa: ARG002 (torch's)
        return self._meet(None, Call("barrier", (), ()))


def _name(operation: Any) -> str:
    return next(name for known, name in _REDUCTIONS.items() if operation == known)

"""A training step in which nothing overlaps, so that each part can be timed; its arithmetic is unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.graph import Node
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.types import ShardedModule
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.train.task import Output, RankingBatch
from dlrm_torchrec.train.timing.stopwatch import Stopwatch
from dlrm_torchrec.train.world import World


class TimedStep:
    """Trains single steps of ``model``; create it before the first backward, because later DDP accepts no hooks."""

    def __init__(self, model: nn.Module, optimizer: CombinedOptimizer, world: World) -> None:
        self._model, self._optimizer, self._world = model, optimizer, world
        self._sharded = [module for module in model.modules() if isinstance(module, ShardedModule)]
        self._watch: Stopwatch | None = None  # set only during a step
        self._hooks: list[Any] = []  # hooks of the step's autograd graph
        self._lookups: list[_Countdown] = []
        self._time_all_reduces()

    def run(self, batches: Iterator[RankingBatch]) -> tuple[Output, int, dict[str, float]]:
        """Train one step: returns the model's output, the rows of this rank's batch, and ``Stopwatch.milliseconds``.

        The model must be detached from any pipeline.
        """
        watch = self._watch = Stopwatch(self._world)
        batch = next(batches).to(self._world.device)
        self._each_optimizer(watch, "zero_grad")
        watch.switch("dense_forward")
        with self._timed_forwards(watch):
            loss, output = self._model(batch)
        watch.switch("dense_backward")
        loss.backward()
        self._each_optimizer(watch, "step")
        milliseconds, self._watch = watch.milliseconds(), None
        assert not any(lookup.left for lookup in self._lookups), "the end of a lookup's backward was not seen"
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._lookups = [], []
        return output, len(batch.labels), milliseconds

    def _each_optimizer(self, watch: Stopwatch, verb: Literal["zero_grad", "step"]) -> None:
        for name, optimizer in self._optimizer.optimizers:
            watch.switch("dense_optimizer" if name == "dense" else "tables_optimizer")  # names from build_optimizer
            getattr(optimizer, verb)()

    @contextmanager
    def _timed_forwards(self, watch: Stopwatch) -> Iterator[None]:
        """Replace ``forward`` of the sharded modules, as TorchRec's pipelines do."""
        forwards = [module.forward for module in self._sharded]
        for module in self._sharded:
            module.forward = partial(self._forward, watch, module)
        try:
            yield
        finally:
            for module, forward in zip(self._sharded, forwards, strict=True):
                module.forward = forward

    def _forward(self, watch: Stopwatch, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Does the same as ``ShardedModule.forward``, and adds hooks that time the backward pass."""
        before = watch.meet("input_dist")
        context = module.create_context()
        features = module.input_dist(context, *args, **kwargs).wait().wait()
        watch.meet("lookup")  # for replicated tables, DDP first broadcasts buffers
        looked_up = module.compute(context, features)
        views = [vectors.view_as(vectors) for vectors in looked_up]  # because output_dist may return the same tensor
        watch.meet("output_dist")
        arrived = module.output_dist(context, views).wait()
        watch.switch(before)
        parts = [each.values() for each in (arrived.values() if isinstance(arrived, dict) else [arrived])]
        output_dist_backward = _Countdown(len(parts), lambda: watch.meet("output_dist_backward"))

        def lookup_backward(_: torch.Tensor) -> None:
            watch.switch("lookup_backward")

        nodes = _nodes_behind(views)
        lookup = _Countdown(len(nodes), lambda: watch.switch("dense_backward"))
        self._lookups.append(lookup)
        self._hooks += [vectors.register_hook(output_dist_backward) for vectors in parts]
        self._hooks += [vectors.register_hook(lookup_backward) for vectors in looked_up]
        self._hooks += [node.register_hook(lookup) for node in nodes]
        return arrived

    def _time_all_reduces(self) -> None:
        lookups = [lookup for module in self._sharded for lookup in module._lookups]  # torch does not list them
        for part, modules in (("output_dist_backward", lookups), ("dense_all_reduce", self._model.modules())):
            for module in modules:
                if isinstance(module, DistributedDataParallel):
                    state = part, module.process_group
                    module.register_comm_hook(state, lambda of, bucket: self._all_reduce(of[0], of[1], bucket))

    def _all_reduce(self, part: str, group: dist.ProcessGroup, bucket: dist.GradBucket) -> Any:
        """Averages gradients like DDP; in a timed step, this does not overlap the backward that called it."""
        watch = self._watch
        before = watch.meet(part) if watch else part
        gradients = bucket.buffer().mul_(1 / dist.get_world_size(group))  # a division would round differently
        averaged = dist.all_reduce(gradients, group=group, async_op=True).get_future()
        if watch:
            averaged.wait()
            watch.switch(before)
        return averaged.then(lambda done: done.value()[0])


class _Countdown:
    """Calls ``then`` when it is called for the last of ``left`` times."""

    def __init__(self, left: int, then: Callable[[], Any]) -> None:
        self.left, self._then = left, then

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if not self.left:
            self._then()


def _nodes_behind(outputs: Iterable[torch.Tensor]) -> set[Node]:
    """The nodes of autograd's graph that gradients of ``outputs`` reach, without the nodes of ``outputs``."""
    nodes: set[Node] = set()
    queue = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while queue:
        for node, _ in queue.pop().next_functions:
            if node is not None and node not in nodes:
                nodes.add(node)
                queue.append(node)
    return nodes

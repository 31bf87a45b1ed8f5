"""A stand-in for a GPU: tensors that lie in the host's memory, but are marked as the device's, and say that they are.

Whatever is made on ``cuda``, moved there, or computed from such tensors is marked. So the library and TorchRec take the
branches that they take on a GPU, and collectives can tell which memory they get. Values are computed as on the CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice
from fbgemm_gpu.split_table_batched_embeddings_ops_training import DenseTableBatchedEmbeddingBagsCodegen as _Dense
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as _Fused
from torch.autograd.function import BackwardCFunction
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.distributed.embedding_lookup import GroupedEmbeddingsLookup
from torchrec.distributed.types import ShardedTensor

from dlrm_torchrec.sharding.modules.sequences.lookup import kernel_of_rows

HBM_BYTES = 80 * 10**9
_CPU = torch.device("cpu")


def is_marked(tensor: torch.Tensor) -> bool:
    """Whether the tensor counts as the device's."""
    if isinstance(tensor, ShardedTensor):
        return any(is_marked(shard.tensor) for shard in tensor.local_shards())
    return bool(getattr(tensor.untyped_storage(), "on_device", False))


def mark(tree: Any, *, on_device: bool = True) -> Any:
    """The same tensors, marked or not."""
    for leaf in leaves(tree):
        leaf.untyped_storage().on_device = on_device
    return tree


def leaves(tree: Any) -> Iterator[Any]:
    """The tensors with memory in nested sequences and dictionaries."""
    if isinstance(tree, torch.Tensor):
        if not isinstance(tree, ShardedTensor) and not tree.is_meta:
            yield tree
    elif isinstance(tree, list | tuple | Mapping):
        for each in tree.values() if isinstance(tree, Mapping) else tree:
            yield from leaves(each)


class _Propagation(TorchDispatchMode):
    """What is computed from marked tensors is marked."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        given = list(leaves((args, kwargs)))
        if any(map(is_marked, given)):
            own = {id(leaf.untyped_storage()) for leaf in given}
            mark([leaf for leaf in leaves(results) if id(leaf.untyped_storage()) not in own])
        return results


class StandIn(TorchFunctionMode):
    """Inside ``with``, calls that name ``device``, a CUDA device, run on the CPU, and their results are marked."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        tensor_class: Any = torch.Tensor
        self._special: dict[Any, Callable[..., Any]] = {
            tensor_class.device.__get__: lambda tensor: self.device if is_marked(tensor) else None,
            tensor_class.is_cuda.__get__: lambda tensor: True if is_marked(tensor) else None,
            tensor_class.is_cpu.__get__: lambda tensor: False if is_marked(tensor) else None,
            torch.Tensor.get_device: lambda tensor: self.device.index if is_marked(tensor) else None,
            torch.Tensor.pin_memory: lambda tensor, *_: tensor,
            torch.Tensor.numpy: self._numpy,
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        special = self._special.get(func)
        if special is not None:
            answer = special(*args)
            if answer is not None:
                return answer
        if func is torch.Tensor.cpu:
            return self._moved(args[0], _CPU)
        if func is torch.Tensor.cuda:
            return self._moved(args[0], self.device)
        named: list[torch.device] = []

        def on_cpu(value: Any) -> Any:
            if isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu")):
                named.append(torch.device(value))
                return _CPU if named[-1].type == "cuda" else value
            return value

        kwargs = {name: on_cpu(value) if name == "device" else value for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.to:
            args = [on_cpu(value) for value in args]
            others = [leaf for leaf in args[1:] if isinstance(leaf, torch.Tensor)]
            named += [self.device if is_marked(other) else _CPU for other in others]
        results = func(*args, **kwargs)
        if not named or named[0].type == "meta":
            return results
        if func is torch.Tensor.to:
            return self._moved(results, named[0], given=args[0])
        return mark(results, on_device=named[0].type == "cuda")

    def _moved(self, tensor: torch.Tensor, to: torch.device, given: torch.Tensor | None = None) -> torch.Tensor:
        given = tensor if given is None else given
        wanted = to.type == "cuda"
        if is_marked(given) == wanted:
            return tensor
        return mark(tensor.clone(), on_device=wanted)

    def _numpy(self, tensor: torch.Tensor, *_: Any, **__: Any) -> None:
        if is_marked(tensor):
            raise TypeError("can't convert a tensor of the device to numpy; use .cpu() first")


class _Stream(MagicMock):
    device = torch.device("cuda", 0)


_here = threading.local()


@contextmanager
def stand_in(device: torch.device) -> Iterator[None]:
    """The modes of one thread; see ``patched_cuda`` for what all threads need."""
    _here.device = device
    with _Propagation(), StandIn(device):
        yield


@contextmanager
def patched_cuda() -> Iterator[None]:
    """Inside ``with``, streams and events do nothing, and FBGEMM's and DDP's modules compute on the CPU."""

    def of_rows(_: Any, config: Any, group: Any, device: Any, *__: Any, **___: Any) -> torch.nn.Module:
        return kernel_of_rows(config, group, device)

    create, create_replicated = (kind.__init__ for kind in (_Fused, _Dense))
    wrap = DistributedDataParallel.__init__

    def create_on_cpu(self: Any, embedding_specs: Any, *args: Any, device: Any = None, **kwargs: Any) -> None:
        on_device = device is not None and torch.device(device).type == "cuda"
        if on_device:
            embedding_specs = [
                (rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows, dim, _, _ in embedding_specs
            ]
        create(self, embedding_specs, *args, device=_CPU if on_device else device, **kwargs)
        if on_device:
            mark([*self.parameters(), *self.buffers()])
            self.current_device = torch.device(device)

    def create_dense(self: Any, *args: Any, **kwargs: Any) -> None:
        create_replicated(self, *args, **kwargs)  # on the CPU, as no GPU is found
        mark([*self.parameters(), *self.buffers()])
        self.current_device = _here.device

    def wrap_on_cpu(self: Any, module: Any, *args: Any, device_ids: Any = None, **kwargs: Any) -> None:  # noqa: ARG001 (DDP's)
        wrap(self, module, *args, **kwargs)

    go_back: Any = BackwardCFunction.apply
    bucket_of: Any = dist.GradBucket.buffer

    def go_back_on_device(self: Any, *gradients: Any) -> Any:
        with StandIn(_here.device):  # which torch leaves for a backward pass
            return go_back(self, *gradients)

    cuda = torch.cuda
    with ExitStack() as patched:
        for target, name, value in (
            (_Fused, "__init__", create_on_cpu),
            (_Dense, "__init__", create_dense),
            (DistributedDataParallel, "__init__", wrap_on_cpu),
            (GroupedEmbeddingsLookup, "_create_embedding_kernel", of_rows),  # FBGEMM has none on the CPU
            (BackwardCFunction, "apply", go_back_on_device),
            (dist.GradBucket, "buffer", lambda bucket: mark(bucket_of(bucket))),  # made by C++, unseen
            (torch.Tensor, "record_stream", lambda *_: None),
            (cuda, "Stream", _Stream),
            (cuda, "Event", _Stream),
            (cuda, "current_stream", lambda *_: _Stream()),
            (cuda, "stream", lambda *_: nullcontext()),
            (cuda, "synchronize", lambda *_: None),
            (cuda, "set_device", lambda *_: None),
            (cuda, "get_rng_state", lambda *_: torch.get_rng_state()),
            (cuda, "set_rng_state", lambda *_: None),
            (cuda, "max_memory_allocated", lambda *_: 0),
            (cuda, "get_device_name", lambda *_: "stand-in"),
            (cuda, "get_device_properties", lambda *_: SimpleNamespace(total_memory=HBM_BYTES)),
        ):
            patched.enter_context(patch.object(target, name, value))
        yield

"""A double of a GPU: tensors that say they are on a device, and whose numbers are in the host's memory.

Inside ``with Double() as device:``, the device ``META`` takes tensors as a GPU does: operators that mix them with
tensors of the host fail, and whatever a GPU would have to be waited for is noted in ``device.waits``. Operators that
would launch a kernel are counted.
"""

from __future__ import annotations

import inspect
import linecache
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
_HOST = torch.device("cpu")
HERE = Path(__file__).parent

VIEWS = {"view", "_unsafe_view", "expand", "select", "slice", "split", "split_with_sizes", "unbind", "transpose", "t"}
VIEWS |= {"permute", "detach", "alias", "as_strided", "unsqueeze", "squeeze", "chunk", "diagonal", "lift_fresh"}
# A GPU's results of unknown shape, or values on the host: the host waits until the GPU is there.
WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique", "_unique2"}
WAITS |= {"unique_dim", "unique_consecutive", "unique_dim_consecutive", "nonzero_numpy", "argwhere", "allclose"}


class Wait(NamedTuple):
    """An operator that waits for the device, and the line of code that called it."""

    operator: str
    file: str  # relative to the folder of its package
    line: str  # its text, which does not change as often as its number
    number: int


class OnDevice(torch.Tensor):
    """A tensor on the double of a GPU, with its numbers."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> OnDevice:
        own: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=META,
        )
        return own

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch's takes contents
        return f"OnDevice({self.numbers!r})"

    is_cuda = property(lambda _: True)
    is_meta = property(lambda _: False)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch's own do

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's subclasses have another signature than its stub
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} must run inside of Double()")


class _Functions(TorchFunctionMode):
    """Notes what waits below the level of operators: constants that are copied to the device, and lists of numbers."""

    def __init__(self, device: Double) -> None:
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_device(kwargs.get("device")):
            if isinstance(args[0], OnDevice):
                return args[0]
            self.device.note(func.__name__)
            return OnDevice(func(*args, **kwargs | {"device": "cpu"}))
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            self.device.note("tolist")
            return args[0].numbers.tolist()
        return func(*args, **kwargs)


class Double(TorchDispatchMode):
    """The device while it is used."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.waits: list[Wait] = []
        self.operators: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> Double:
        self._stack.enter_context(_Functions(self))
        super().__enter__()  # type: ignore[no-untyped-call]  # untyped in torch
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # untyped in torch
        self._stack.close()

    def clear(self) -> None:
        self.waits, self.operators = [], Counter()

    def note(self, operator: str) -> None:
        self.waits.append(Wait(operator, *_caller()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        creates = _is_device(kwargs.get("device"))
        tensors = list(_tensors([args, *kwargs.values()]))
        own = {id(each.numbers): each for each in tensors if isinstance(each, OnDevice)}
        if name in ("is_pinned", "_pin_memory"):  # which ask for a GPU
            return hasattr(args[0], "pinned") if name == "is_pinned" else _pinned(args[0])
        if not own and not creates:
            return func(*args, **kwargs)
        self._check(name, args, kwargs, [each for each in tensors if not isinstance(each, OnDevice)])
        if name not in VIEWS:
            self.operators[name] += 1
        to_host = kwargs.get("device") is not None and not creates
        given = _mapped(lambda each: each.numbers if isinstance(each, OnDevice) else each, [args, kwargs])
        args, kwargs = given[0], given[1] | ({"device": _HOST} if creates else {})
        found = func(*args, **kwargs)
        if name == "_to_copy" and found is args[0]:
            found = found.clone()
        if to_host or (name == "copy_" and id(found) not in own):
            return found
        return _mapped(lambda each: own[id(each)] if id(each) in own else OnDevice(each), found)

    def _check(self, name: str, args: Any, kwargs: Any, host: list[torch.Tensor]) -> None:
        """Notes a wait; raises RuntimeError where a GPU would refuse the operands' devices."""
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"{name} must draw by the device's generator: got one of the host; at {_caller()}")
        copies = name in ("_to_copy", "copy_")
        from_host = copies and not isinstance(args[name == "copy_"], OnDevice)
        to_host = copies and bool(host) if name == "copy_" else not _is_device(kwargs.get("device") or META)
        if copies:
            from_pinned = name == "_to_copy" and kwargs.get("non_blocking") and hasattr(args[0], "pinned")
            if (from_host and not from_pinned) or to_host:
                self.note("copy to the device" if from_host else "copy to the host")
            return
        for each in host:
            if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
                self.note("index on the host")
            elif each.dim() > 0:
                raise RuntimeError(
                    f"operands of {name} must be on one device: got one of shape {tuple(each.shape)} on the host; "
                    f"at {_caller()}"
                )
        if name in WAITS or _by_mask(name, args) or _counts(name, args, kwargs):
            self.note(name)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory from which a GPU reads by itself."""
    found: Any = tensor.clone()
    found.pinned = True
    return found


def _tensors(given: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and tuples."""
    for each in given:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from _tensors(each)


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], given: Any) -> Any:
    """``given`` with ``function`` of each tensor in nested lists, tuples and dictionaries."""
    if isinstance(given, torch.Tensor):
        return function(given)
    if isinstance(given, (list, tuple)):
        return type(given)(_mapped(function, each) for each in given)
    if isinstance(given, dict):
        return {key: _mapped(function, each) for key, each in given.items()}
    return given


def _by_mask(name: str, args: Any) -> bool:
    """Whether a mask chooses elements, so that the device must count them."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
    filled = name != "index" and len(args[1]) == 1 and args[2].dim() == 0  # torch fills by the mask itself
    return bool(masks) and not filled


def _counts(name: str, args: Any, kwargs: Any) -> bool:
    """Whether the size of a result has to be asked from the device, because the caller does not give it."""
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None and not any(isinstance(each, int) for each in args)
    if name == "segment_reduce":
        return not kwargs.get("unsafe", False)
    if name == "permute_2D_sparse_data":
        return len(args) < 5 or args[4] is None
    return False


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == META.type


def _caller() -> tuple[str, str, int]:
    """The innermost line outside of torch, FBGEMM and these tests: file, text and number."""
    frame = inspect.currentframe()
    found = ("?", "backward", 0)
    while frame is not None:
        path = frame.f_code.co_filename
        parts = Path(path).parts
        inner = "fbgemm_gpu" in parts or ("torch" in parts and "torchrec" not in parts) or Path(path).parent == HERE
        if not inner and ("torchrec" in parts or "dlrm_torchrec" in parts or "recipes" in parts):
            package = next(name for name in ("torchrec", "dlrm_torchrec", "recipes") if name in parts)
            short = "/".join(parts[len(parts) - 1 - parts[::-1].index(package) :])
            return short, linecache.getline(path, frame.f_lineno).strip(), frame.f_lineno
        frame = frame.f_back
    return found

"""Tables that nobody fills while they are sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class BlankTables(TorchFunctionMode):
    """Inside ``with BlankTables():``, uniform numbers are not drawn, and tables keep the zeros of their allocation.

    TorchRec draws the weights of a sharded table twice, on one core, and has no option that leaves them out.
    ``initialize_tables`` or a checkpoint fills the tables instead.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # torch's
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.uniform_, torch.nn.init.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)

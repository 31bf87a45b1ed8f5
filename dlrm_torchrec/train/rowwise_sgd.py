"""SGD for tables on FBGEMM's row-wise Adagrad kernel, the only optimizer that its CPU build vectorises."""

from __future__ import annotations

from typing import Any

from torchrec.optim import RowWiseAdagrad

EPS = 2.0**64


def rowwise_sgd(lr: float) -> tuple[type[RowWiseAdagrad], dict[str, Any]]:
    """An optimizer class and its arguments, for ``apply_optimizer_in_backward``, that equal SGD with rate ``lr``.

    Row-wise Adagrad moves a row by lr' / (sqrt(h) + eps) times its gradient, where h is the sum of mean squared
    gradients. With eps = 2^64 and lr' = 2^64 lr, the quotient rounds to ``lr`` in float32 while sqrt(h) < 2^39. So h,
    one number per row, has no effect. A schedule multiplies lr' in the same way as lr.
    """
    return RowWiseAdagrad, {"lr": lr * EPS, "eps": EPS}

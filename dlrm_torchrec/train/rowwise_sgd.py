"""SGD of tables by FBGEMM's row-wise Adagrad kernel, the only optimizer that its CPU build vectorises."""

from __future__ import annotations

from typing import Any

from torchrec.optim import RowWiseAdagrad

EPS = 2.0**64


def rowwise_sgd(lr: float) -> tuple[type[RowWiseAdagrad], dict[str, Any]]:
    """Optimizer class and arguments, for ``apply_optimizer_in_backward``, that are SGD with rate ``lr`` in float32.

    Row-wise Adagrad moves a row by lr' / (sqrt(h) + eps) times its gradient, h the sum of mean squared gradients.
    With eps = 2^64 and lr' = 2^64 lr the quotient rounds to ``lr`` itself as long as sqrt(h) < 2^39, so h, one number
    per row, is kept for nothing. A schedule multiplies lr' as it would lr.
    """
    return RowWiseAdagrad, {"lr": lr * EPS, "eps": EPS}

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numba import int64

from dlrm_torchrec.compiled import compiled, read_only


def test_code_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    names: dict[str, Any] = {}
    exec(compile("def total(values, more):\n    return values.sum() + more", "<nowhere>", "exec"), names)
    with pytest.raises(RuntimeError, match="cannot cache"):  # as where no folder can be written
        numba.njit(cache=True)(names["total"])
    total = compiled(read_only(int64), int64)(names["total"])
    values = np.arange(5)
    assert total(values, 2) == 12
    values.flags.writeable = False
    assert total(values, 2) == 12

"""What a JSON document would cost to parse, seen in its bytes: levels, values and texts.

Python parses a document in one go, in which no other request is answered. So this module counts first, with NumPy,
whose work does not stop other threads.
"""

from __future__ import annotations

import numpy as np
from starlette.exceptions import HTTPException

from dlrm_torchrec.inference.serving.limits import ServingConfig

MAX_LEVELS = 4  # {"rows": [{"tags": [1]}]}


def check_shape(body: bytes, limits: ServingConfig) -> None:
    """HTTPException 400 for a document of more levels than a request has, and 413 for too many values or long texts."""
    octets = np.frombuffer(_without_escapes(body), np.uint8)
    quotes = octets == ord('"')
    outside = ~np.bitwise_xor.accumulate(quotes)  # of texts, apart from their first quotes
    opening = ((octets == ord("[")) | (octets == ord("{"))) & outside
    closing = ((octets == ord("]")) | (octets == ord("}"))) & outside
    num_values = np.count_nonzero(opening) + np.count_nonzero((octets == ord(",")) & outside)
    if num_values > limits.max_values:
        raise HTTPException(
            413, f"values must be at most {limits.max_values}: got {num_values}; split the request, or send Arrow"
        )
    changes = opening.view(np.int8) - closing.view(np.int8)
    levels = changes[np.flatnonzero(changes)].cumsum(dtype=np.int32).max(initial=0)
    if levels > MAX_LEVELS:
        raise HTTPException(400, f"body must be JSON with few nested levels, at most {MAX_LEVELS}: got {levels}")
    ends = np.flatnonzero(quotes)
    longest = int((ends[1::2] - ends[: len(ends) - 1 : 2]).max(initial=1)) - 1
    if longest > limits.max_text_bytes:
        raise HTTPException(
            413, f"texts must have at most {limits.max_text_bytes} bytes: got one of {longest}; shorten it"
        )


def _without_escapes(body: bytes) -> bytes:
    r"""The same number of bytes, in which \\ and \" are blank, so that every quote begins or ends a text."""
    return body.replace(rb"\\", b"  ").replace(rb"\"", b"  ") if b"\\" in body else body

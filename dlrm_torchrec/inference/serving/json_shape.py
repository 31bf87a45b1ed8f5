"""What a JSON document would cost to parse, seen in its bytes: levels, values and texts.

Python parses a document in one go, in which no other request is answered. So this module counts first, block by block,
and stops at the first block that is too much.
"""

from __future__ import annotations

import numpy as np
from starlette.exceptions import HTTPException

from dlrm_torchrec.inference.serving.limits import ServingConfig

MAX_LEVELS = 4  # {"rows": [{"tags": [1]}]}
COST_OF_KEY = 2  # in values
BLOCK_BYTES = 131_072


def check_shape(body: bytes, limits: ServingConfig) -> None:
    """HTTPException 400 for a document of more levels than a request has, and 413 for too many values or long texts."""
    start = num_values = level = 0
    in_text, text_start = False, 0
    while start < len(body):
        end = start + BLOCK_BYTES
        block = body[start:end]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:  # the next byte is escaped
            end += 1
            block = body[start:end]
        octets = np.frombuffer(_without_escapes(block), np.uint8)
        quotes = octets == ord('"')
        outside = np.bitwise_xor.accumulate(quotes) == in_text  # of texts, apart from their last quotes
        opening = ((octets == ord("[")) | (octets == ord("{"))) & outside
        closing = ((octets == ord("]")) | (octets == ord("}"))) & outside
        commas, colons = ((octets == ord(mark)) & outside for mark in ",:")
        num_values += int(np.count_nonzero(opening) + np.count_nonzero(commas) + COST_OF_KEY * np.count_nonzero(colons))
        if num_values > limits.max_values:
            raise HTTPException(413, f"values must be at most {limits.max_values}: got more; split the request")
        changes = opening.view(np.int8) - closing.view(np.int8)
        levels = changes[np.flatnonzero(changes)].cumsum(dtype=np.int32) + level
        if levels.max(initial=0) > MAX_LEVELS:
            raise HTTPException(400, f"body must be JSON with few nested levels, at most {MAX_LEVELS}: got more")
        level = int(levels[-1]) if len(levels) else level
        bounds = np.flatnonzero(quotes) + start
        if in_text:
            bounds = np.append(text_start, bounds)
        in_text = len(bounds) % 2 == 1
        text_start = int(bounds[-1]) if in_text else 0
        ends = np.append(bounds, min(end, len(body))) if in_text else bounds
        if (ends[1::2] - ends[::2] - 1).max(initial=0) > limits.max_text_bytes:
            raise HTTPException(413, f"texts must have at most {limits.max_text_bytes} bytes: got more; shorten them")
        start = end


def _without_escapes(block: bytes) -> bytes:
    r"""The same number of bytes, in which \\ and \" are blank, so that every quote begins or ends a text."""
    return block.replace(rb"\\", b"  ").replace(rb"\"", b"  ") if b"\\" in block else block

"""The columns of an Arrow IPC stream that anybody may have written, and a stream that answers it.

Arrow checks how a stream is built as it reads it, but neither what its arrays hold nor how much memory a few bytes of
it ask for. So arrays are validated in full, and what stands for more than its bytes (compressed buffers, dictionaries,
views, columns that share a buffer) is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import types
from starlette.exceptions import HTTPException

KINDS = (types.is_integer, types.is_floating, types.is_boolean, types.is_null, types.is_string, types.is_large_string)
# Fields of the tables Message (two) and RecordBatch in Arrow's format/Message.fbs; Arrow 0.17 named codecs in metadata.
HEADER, CUSTOM_METADATA, COMPRESSION = 2, 4, 3


def read_arrow(body: bytes, max_rows: int) -> dict[str, pa.Array]:
    """Columns by name; HTTPException 400 for what is no such stream, 413 for more rows, 422 for types not read here."""
    try:
        schema = pa.ipc.open_stream(body).schema
        _check(schema)
        batches: list[pa.RecordBatch] = []
        num_rows = 0
        for message in islice(pa.ipc.MessageReader.open_stream(body), 1, None):  # the first is the schema
            if _may_expand(message):
                raise HTTPException(422, "batches must be plain: got one with a codec or metadata; write it plainly")
            batch = pa.ipc.read_record_batch(message, schema)
            num_rows += max(batch.num_rows, 1)  # an empty batch takes time, too
            if num_rows > max_rows:
                raise HTTPException(413, f"rows must be at most {max_rows}: got more; split the request")
            batch.validate()  # as far as it takes to measure it
            num_values = sum(len(column.values) for column in batch if _is_list(column.type))
            if max(batch.nbytes, num_values) > len(body):  # columns may share their bytes, and nulls have none
                raise HTTPException(
                    413, "columns must hold what the request has bytes for: got more; split the request"
                )
            batch.validate(full=True)
            batches.append(batch)
        table = pa.Table.from_batches(batches, schema).combine_chunks()
    except (pa.ArrowException, OSError, TypeError, ValueError, struct.error) as error:
        raise HTTPException(400, f"body must be an Arrow IPC stream: got {error}") from error
    return {name: table[name].combine_chunks() for name in table.column_names}


def _check(schema: pa.Schema) -> None:
    for field in schema:
        kind = field.type.value_type if _is_list(field.type) else field.type
        if not any(is_kind(kind) for is_kind in KINDS):
            message = f"column {field.name!r} must hold numbers, strings or lists of them: got {field.type}; cast it"
            raise HTTPException(422, message)
    if len(set(schema.names)) < len(schema.names):
        raise HTTPException(422, "columns must have distinct names: got one twice; rename it")


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind))


def _may_expand(message: pa.ipc.Message) -> bool:
    """Whether a message names a codec for the buffers of its batch: pyarrow tells it only by what it allocates."""
    metadata = message.metadata.to_pybytes()

    def read(format: str, place: int) -> int:
        value: int = struct.unpack_from(format, metadata, place)[0]
        return value

    def find(table: int, field: int) -> int:
        """Where the field of a flatbuffers table lies; 0 when it has none."""
        vtable, entry = table - read("<i", table), 4 + 2 * field
        offset = read("<H", vtable + entry) if entry < read("<H", vtable) else 0
        return table + offset if offset else 0

    root = read("<I", 0)
    header = find(root, HEADER)
    return bool(find(root, CUSTOM_METADATA) or find(header + read("<I", header), COMPRESSION))


def write_arrow(probabilities: NDArray[np.float32], unseen: Mapping[str, int], package: str) -> bytes:
    """A stream of one column ``probability``; the schema's metadata has the rest of the answer."""
    schema = pa.schema(
        {"probability": pa.float32()}, metadata={"package": package, "unseen": json.dumps(unseen, ensure_ascii=False)}
    )
    output = pa.BufferOutputStream()
    with pa.ipc.new_stream(output, schema) as stream:
        stream.write(pa.record_batch([pa.array(probabilities)], schema))
    return bytes(output.getvalue())

"""Reads the columns of an Arrow IPC stream from an untrusted client, and writes the answer as a stream.

Arrow checks the structure of a stream while reading. It checks neither the contents of arrays nor how much memory a few
bytes can allocate. Therefore this module validates arrays in full, and refuses everything that stands for more than its
bytes: compressed buffers, dictionaries, views, and columns that share a buffer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Set
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types
from starlette.exceptions import HTTPException

from dlrm_torchrec.inference.serving.limits import ServingConfig

KINDS = (
    *(types.is_integer, types.is_floating, types.is_boolean, types.is_null, types.is_string, types.is_large_string),
    *(types.is_timestamp, types.is_date),
)
# Fields in Arrow's format/Message.fbs: the first two of the table Message, the last of RecordBatch. Arrow 0.17 named
# codecs in metadata.
HEADER, CUSTOM_METADATA, COMPRESSION = 2, 4, 3
MAX_BATCHES = 64  # each takes time, however few rows it has
VALUES_OF_ARROW = 5  # so many take the time of one value of JSON


def read_arrow(body: bytes, limits: ServingConfig, known: Set[str]) -> dict[str, pa.Array]:
    """Columns by name; HTTPException 400 for other bodies, 413 beyond a limit, 422 for types that are refused.

    ``known`` are the columns that a request may have.
    """
    max_rows = limits.max_rows
    try:
        schema = pa.ipc.open_stream(body).schema
        if len(schema) > len(known):  # looking at each of many thousands takes long
            raise HTTPException(422, f"columns must be the {len(known)} raw ones: got {len(schema)}; leave others out")
        _check(schema)
        batches: list[pa.RecordBatch] = []
        num_rows = num_values = 0
        for message in islice(pa.ipc.MessageReader.open_stream(body), 1, None):  # the first is the schema
            if _may_expand(message):
                raise HTTPException(
                    422, "batches must be plain: got a batch with a codec or metadata; write it without them"
                )
            batch = pa.ipc.read_record_batch(message, schema)
            num_rows += max(batch.num_rows, 1)  # an empty batch takes time too
            if num_rows > max_rows:
                raise HTTPException(413, f"rows must be at most {max_rows}: got more; split the request")
            if len(batches) == MAX_BATCHES:
                raise HTTPException(413, f"batches must be at most {MAX_BATCHES}: got more; write larger ones")
            batch.validate()  # enough to measure its size
            in_lists = sum(len(column.values) for column in batch if _is_list(column.type))
            if max(batch.nbytes, in_lists) > len(body):  # columns may share their bytes, and nulls have none
                raise HTTPException(
                    413, "columns must not be larger than the request's body: got more bytes; split the request"
                )
            num_values += in_lists
            if num_values > VALUES_OF_ARROW * limits.max_values:
                most = VALUES_OF_ARROW * limits.max_values
                raise HTTPException(413, f"values in lists must be at most {most}: got more; split the request")
            batch.validate(full=True)
            for column in batch:
                _check_texts(column, limits.max_text_bytes)
            batches.append(batch)
        table = pa.Table.from_batches(batches, schema).combine_chunks()
    except (pa.ArrowException, OSError, TypeError, ValueError, struct.error) as error:
        raise HTTPException(400, f"body must be an Arrow IPC stream: got {error}") from error
    return {name: table[name].combine_chunks() for name in table.column_names}


def _check(schema: pa.Schema) -> None:
    for field in schema:
        kind = field.type.value_type if _is_list(field.type) else field.type
        if not any(is_kind(kind) for is_kind in KINDS):
            message = (
                f"column {field.name!r} must hold numbers, strings, times or lists of them: got {field.type}; cast it"
            )
            raise HTTPException(422, message)
    if len(set(schema.names)) < len(schema.names):
        raise HTTPException(422, "columns must have distinct names: got a name twice; rename one column")


def _check_texts(column: pa.Array, max_bytes: int) -> None:
    texts = column.values if _is_list(column.type) else column
    if types.is_string(texts.type) or types.is_large_string(texts.type):
        longest = pc.max(pc.binary_length(texts)).as_py() or 0
        if longest > max_bytes:
            raise HTTPException(413, f"texts must have at most {max_bytes} bytes: got more; shorten them")


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind))


def _may_expand(message: pa.ipc.Message) -> bool:
    """Whether a message names a codec for its batch's buffers; pyarrow shows this only by the memory it allocates."""
    metadata = message.metadata.to_pybytes()

    def read(format: str, place: int) -> int:
        value: int = struct.unpack_from(format, metadata, place)[0]
        return value

    def find(table: int, field: int) -> int:
        """The position of a field of a flatbuffers table; 0 when the table has no such field."""
        vtable, entry = table - read("<i", table), 4 + 2 * field
        offset = read("<H", vtable + entry) if entry < read("<H", vtable) else 0
        return table + offset if offset else 0

    root = read("<I", 0)
    header = find(root, HEADER)
    return bool(find(root, CUSTOM_METADATA) or find(header + read("<I", header), COMPRESSION))


def write_arrow(columns: Mapping[str, pa.Array], unseen: Mapping[str, int], package: str) -> bytes:
    """A stream of the predictions of each label (B,); the schema's metadata holds the rest of the answer."""
    schema = pa.schema(
        {name: values.type for name, values in columns.items()},
        metadata={"package": package, "unseen": json.dumps(unseen, ensure_ascii=False)},
    )
    output = pa.BufferOutputStream()
    with pa.ipc.new_stream(output, schema) as stream:
        stream.write(pa.record_batch(list(columns.values()), schema))
    return bytes(output.getvalue())

"""Files of Arrow tables: Arrow IPC files and streams, and Feather of both versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from pyarrow import feather

from recgrela.data.formats.columns import find_columns
from recgrela.data.formats.unpacking import Limit
from recgrela.system.errors import DataError
from recgrela.system.text import one_line

_FILE, _FEATHER_V1 = b"ARROW1", b"FEA1"


def read_arrow_columns(
    data: pa.Buffer, label: str, limit: Limit, wanted: Sequence[str], settings: Mapping[str, str]
) -> tuple[pa.Table, tuple[str, ...]]:
    """Columns of an Arrow file, and the names of all its columns.

    Args:
        data: the file. Columns that are not compressed stay in its memory.
        label: the file's name in messages.
        limit: of the bytes that the columns decode to.
        wanted: the columns.
        settings: the settings that name the columns (`column_settings`).

    Raises:
        DataError: the file is damaged, has no such column or two of them, or exceeds the limit.
    """
    start = data[: len(_FILE)].to_pybytes()
    try:
        if start.startswith(_FEATHER_V1):
            table = feather.read_table(pa.BufferReader(data), memory_map=False)
            find_columns(label, table.column_names, tuple(wanted), settings)
            return table.select(wanted), tuple(table.column_names)
        is_file = start == _FILE
        schema = _open(data, is_file, None).schema
        find_columns(label, schema.names, tuple(wanted), settings)
        fields = sorted(schema.get_field_index(name) for name in wanted)
        reader = _open(data, is_file, fields)
        batches, size = [], 0
        for batch in _batches(reader, is_file):
            size += batch.nbytes
            limit.check(size, label)
            batches.append(batch)
        return pa.Table.from_batches(batches, reader.schema).select(wanted), tuple(schema.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{label}: not an Arrow file, or damaged ({one_line(error)})") from None


def _open(
    data: pa.Buffer, is_file: bool, fields: list[int] | None
) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    opened = pa.ipc.open_file if is_file else pa.ipc.open_stream
    return opened(pa.BufferReader(data), options=options)


def _batches(
    reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader, is_file: bool
) -> Iterator[pa.RecordBatch]:
    if is_file:
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)

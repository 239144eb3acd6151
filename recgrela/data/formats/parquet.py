"""Parquet files, read within a limit: a value repeated millions of times takes a few bytes in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from pyarrow import parquet

from recgrela.data.formats.columns import find_columns
from recgrela.data.formats.unpacking import Limit
from recgrela.system.errors import DataError
from recgrela.system.text import one_line

# Bytes of a decoded value. Texts are counted by their pages and read as dictionaries.
VALUE_BYTES = 8
_WIDE_BYTES = 32  # of a decimal


def read_columns(
    data: pa.Buffer,
    label: str,
    limit: Limit,
    wanted: Sequence[str],
    optional: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> tuple[pa.Table, tuple[str, ...]]:
    """Columns of a Parquet file, and the names of all its columns; columns of texts are dictionary arrays.

    Args:
        data: the file.
        label: the file's name in messages.
        limit: of the bytes that the columns decode to.
        wanted: the columns.
        optional: further columns, which the file need not have.
        settings: the settings that name the columns (`column_settings`).

    Raises:
        DataError: the file is damaged, has no such column or two of them, or exceeds the limit.
    """
    try:
        with parquet.ParquetFile(pa.BufferReader(data)) as file:
            names, meta, leaves = file.schema_arrow.names, file.metadata, file.schema
            paths = [leaves.column(leaf).path for leaf in range(meta.num_columns)]
            texts = [path for leaf, path in enumerate(paths) if _is_text(leaves.column(leaf))]
        find_columns(label, names, tuple(wanted), settings)
        wanted = [*wanted, *(name for name in optional if name in names)]
        find_columns(label, names, tuple(wanted))
        read = [leaf for leaf, path in enumerate(paths) if path.partition(".")[0] in wanted]
        limit.check(_decoded_bytes(meta, read), label)
        texts = [path for path in texts if path in wanted]
        with parquet.ParquetFile(pa.BufferReader(data), read_dictionary=texts) as file:
            return file.read(columns=wanted), tuple(names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{label}: not a Parquet file, or damaged ({one_line(error)})") from None


def _is_text(column: parquet.ColumnSchema) -> bool:
    return column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"


def _decoded_bytes(meta: parquet.FileMetaData, leaves: Sequence[int]) -> int:
    """Memory of columns by the metadata of the file: their pages, or their values if those are more."""
    total = 0
    for group in range(meta.num_row_groups):
        row_group = meta.row_group(group)
        for leaf in leaves:
            chunk = row_group.column(leaf)
            width = max(VALUE_BYTES, meta.schema.column(leaf).length)
            if meta.schema.column(leaf).logical_type.type == "DECIMAL":
                width = _WIDE_BYTES
            total += max(chunk.total_uncompressed_size, width * max(chunk.num_values, row_group.num_rows))
    return total

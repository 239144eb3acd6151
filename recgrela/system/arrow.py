"""Arrow columns of text as types that all of Arrow's functions take."""

from __future__ import annotations

import pyarrow as pa


def without_views(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column with large_string in place of string_view, also as the values of a dictionary.

    Polars exports text as string_view, which few of Arrow's functions take. Other columns are returned as
    they are.
    """
    kind = column.type
    if _is_view(kind):
        return column.cast(pa.large_string())
    if pa.types.is_dictionary(kind) and _is_view(kind.value_type):
        return column.cast(pa.dictionary(kind.index_type, pa.large_string(), kind.ordered))
    return column


def _is_view(kind: pa.DataType) -> bool:
    return str(kind) == "string_view"  # pyarrow 15 has the type, but no function for it

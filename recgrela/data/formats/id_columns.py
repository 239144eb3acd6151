"""Columns of ids: any Arrow type -> codes of distinct original ids, which are texts.

One rule for all formats: an id is a text or a whole number, and one with a fraction of zeros is the
number: 1, 1.0 and " 1.0" are one id. Null is the empty id.
"""

from __future__ import annotations

import re
import uuid
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recgrela.system.arrow import plain, values_type
from recgrela.system.text import quote

_SPACES = " \t"  # around an id, which are not a part of it
_WHOLE = r"^([+-]?[0-9]+)\.0+$"  # a whole number with a fraction
# Above these, a float cannot hold every whole number, so different ids have become one.
_EXACT = {pa.float32(): 2**24, pa.float64(): 2**53}
_UUID_BYTES = 16


class Ids(NamedTuple):
    """A column of ids.

    Attributes:
        codes: [n] int32 indices into `tokens`.
        tokens: distinct original ids, in order of first occurrence unless the column is a dictionary.
    """

    codes: np.ndarray
    tokens: list[str]


class BadId(Exception):
    """A value is no id.

    Attributes:
        value: the value.
        row: its row; None if the whole column has a wrong type.
        fault: what is wrong, and what to do about it.
        role: "user" or "item".
    """

    role = ""

    def __init__(self, row: int | None, value: object, fault: str) -> None:
        super().__init__(fault)
        self.row, self.value, self.fault = row, value, fault

    def where(self, column: str) -> str:
        """The end of a message: the row, the column and the fault."""
        if self.row is None:
            return f", column {quote(column)}: {self.fault}"
        return f", row {self.row + 1}, column {quote(column)}: {quote(self.value)} {self.fault}"


def encode_ids(column: pa.ChunkedArray) -> Ids:
    """The codes and tokens of a column of ids. Raises BadId.

    Texts and whole numbers of any width are ids; floats and decimals if they are whole, and NaN is the empty
    id; binary values if they are UTF-8. Binary values of fixed size are hexadecimal, those of 16 bytes UUIDs.
    """
    column = plain(column)
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    _check_type(values_type(column))
    codes, values = encode(column)
    different = _texts(codes, values).dictionary_encode()
    number_of, tokens = different.indices.to_numpy(), different.dictionary.to_pylist()
    numbers = codes.fill_null(len(number_of)).to_numpy()
    if codes.null_count:
        if "" not in tokens:
            tokens.append("")
        number_of = np.append(number_of, np.int32(tokens.index("")))
    if not np.array_equal(number_of, np.arange(number_of.size)):  # several values are one id
        numbers = number_of[numbers]
    return Ids(numbers, tokens)


def encode(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.Array]:
    """A column as int32 codes of different values and these values; a dictionary array is never expanded."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), chunk.dictionary)
        for chunk in column.chunks
    ]
    column = pa.chunked_array(chunks, None if chunks else column.type).unify_dictionaries()
    codes = pa.chunked_array([chunk.indices for chunk in column.chunks], pa.int32())
    values = column.chunk(0).dictionary if chunks else pa.array([], column.type.value_type)
    different = values.dictionary_encode()
    if len(different.dictionary) < len(values):  # a dictionary may have a value twice, and null
        codes, values = different.indices.take(codes), different.dictionary
    return codes, values


def id_text(value: str) -> str:
    """An original id as `encode_ids` writes it: 1.0 is the number 1, and spaces around it are removed."""
    return re.sub(_WHOLE, r"\1", value.strip(_SPACES), flags=re.ASCII)


def id_fault(name: str, value: str) -> str | None:
    """Describes an id in the column `name` that is missing; None for one that is not."""
    if value.strip():
        return None
    return f"column {quote(name)}: {f'missing id {quote(value)}' if value else 'empty id'}"


def _check_type(kind: pa.DataType) -> None:
    types = pa.types
    if types.is_nested(kind):
        raise BadId(None, None, f"a row has several values ({kind}); write one event a row")
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
    numbers = types.is_integer(kind) or types.is_decimal(kind) or kind in _EXACT
    if not (texts or numbers or _is_binary(kind) or types.is_fixed_size_binary(kind)):
        raise BadId(None, None, f"ids must be texts or whole numbers, not {kind}")


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _texts(codes: pa.ChunkedArray, values: pa.Array) -> pa.Array:
    """The text of every value. Raises BadId for the first row whose value has none."""
    kind, text = values.type, pa.large_string()
    if pa.types.is_integer(kind):
        return values.cast(text)
    if pa.types.is_fixed_size_binary(kind):
        return pa.array([_hexadecimal(value) for value in values.to_pylist()], text)
    if pa.types.is_decimal(kind):
        decimals = values.to_pylist()
        _refuse(codes, values, np.array([value != int(value) for value in decimals], bool), _NOT_WHOLE)
        return pa.array([str(int(value)) for value in decimals], text)
    if kind in _EXACT:
        numbers = values.to_numpy()
        is_missing = np.isnan(numbers)
        numbers = np.where(is_missing, 0, numbers)
        _refuse(codes, values, np.floor(numbers) != numbers, _NOT_WHOLE)
        _refuse(codes, values, np.abs(numbers) > _EXACT[kind], _INEXACT)
        found = pa.array(numbers.astype(np.int64)).cast(text)
        return pc.if_else(pa.array(is_missing), pa.scalar("", text), found)
    if _is_binary(kind):
        try:
            values = values.cast(text)
        except pa.ArrowInvalid:
            _refuse(codes, values, np.array([not _is_utf8(value) for value in values.to_pylist()]), _NOT_TEXT)
            raise
    values = pc.utf8_trim(values.cast(text), _SPACES)
    if pc.any(pc.ends_with(values, "0")).as_py() and pc.any(pc.match_substring_regex(values, _WHOLE)).as_py():
        values = pc.replace_substring_regex(values, _WHOLE, r"\1")
    return values


_NOT_WHOLE = "is not a whole number; ids are texts or whole numbers"
_INEXACT = "is too large for a float to be exact, so ids were lost; store ids as integers or texts"
_NOT_TEXT = "is not UTF-8 text; store ids as texts, or as binary values of one fixed size"


def _refuse(codes: pa.ChunkedArray, values: pa.Array, bad: np.ndarray, fault: str) -> None:
    """Raises BadId for the first row whose value is bad, [values] bool."""
    if bad.any():
        row = int(np.append(bad, False)[codes.fill_null(len(values)).to_numpy()].argmax())
        raise BadId(row, values[codes[row].as_py()].as_py(), fault)


def _hexadecimal(value: bytes) -> str:
    return str(uuid.UUID(bytes=value)) if len(value) == _UUID_BYTES else value.hex()


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True

"""Damage to files and values, drawn by hypothesis."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import strategies as st

PLACES = st.integers(0, 2**20)  # taken modulo the length of what is damaged
EXTREMES = (
    *(
        "",
        "0",
        "-1",
        "1e400",
        "-0.0",
        "nan",
        "9" * 30,
        "9" * 5000,
        "0x10",
        "123\x00",
        "5\x0b",
        "\udc80",
        "\x1b[31m",
    ),
    *("a\u2028b", "\u202eabc", "x" * 100_000, "[" * 5000, '"', "::", "\t", ",", "\n", "\r", "\ufeff", "true"),
)
WORDS = re.compile(rb"[-+.\w]+")

edits = st.one_of(
    st.tuples(st.just("flip"), PLACES, st.integers(1, 255)),
    st.tuples(st.just("cut"), PLACES, st.integers(1, 64)),
    st.tuples(st.just("truncate"), PLACES, st.just(0)),
    st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("repeat"), PLACES, st.integers(1, 200)),
    st.tuples(st.just("swap"), PLACES, PLACES),
    st.tuples(st.just("word"), PLACES, st.sampled_from(EXTREMES)),
    st.tuples(
        st.just("integer"), PLACES, st.sampled_from((0, 1, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1))
    ),
)
edit_lists = st.lists(edits, min_size=1, max_size=4)


def damaged(data: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    """The bytes after some edits."""
    for kind, place, value in changes:
        at = place % (len(data) or 1)
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + value :]
        elif kind == "truncate":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 16] * value + data[at + 16 :]
        elif kind == "integer":
            data = data[:at] + value.to_bytes(4, "little") + data[at + 4 :]
        elif words := list(WORDS.finditer(data)):
            first = words[place % len(words)]
            if kind == "word":
                new = value.encode("utf-8", "surrogateescape" if "\udc80" in value else "strict")
                data = data[: first.start()] + new + data[first.end() :]
            else:
                other = words[value % len(words)]
                first, other = sorted((first, other), key=lambda word: word.start())
                if first.end() <= other.start():
                    middle = data[first.end() : other.start()]
                    data = data[: first.start()] + other[0] + middle + first[0] + data[other.end() :]
    return data


VALUES = st.sampled_from(
    (
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        2**70,
        -(2**70),
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\ud800",
        [],
        {},
    )
)
value_edits = st.lists(st.tuples(PLACES, VALUES | st.just("remove")), min_size=1, max_size=3)


def damaged_values(content: Any, changes: list[tuple[int, Any]]) -> Any:
    """A JSON value with some of its parts replaced or removed."""
    content = json.loads(json.dumps(content))
    for place, value in changes:
        parts = list(_parts(content))
        if parts:
            holder, key = parts[place % len(parts)]
            if value == "remove":
                del holder[key]
            else:
                holder[key] = json.loads(json.dumps(value))
    return content


def _parts(value: Any) -> Any:
    """Holder and key of each part of a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _parts(value[key])

"""RecBole atomic files: NAME.inter, and NAME.item for titles."""

from __future__ import annotations

import dataclasses
import posixpath
import re

import pyarrow as pa

from recgrela.data.formats.columns import Arrays, Names
from recgrela.data.formats.source import Source
from recgrela.data.formats.text import Layout, header_layout, read_events, read_titles
from recgrela.settings.data import DataConfig


def read(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events and titles of a ``.inter`` file.

    Columns are separated by tabs, in any order, with names such as ``user_id:token``. Titles are from the
    ``.item`` file in the same folder, from the column "name" or one whose name ends in "title".
    """
    label = source.label(name)
    names = Names(config.user_column, config.item_column, config.time_column)
    arrays = read_events(data, label, _layout(data, label), names, config.rating_to_read)
    stem = re.sub(r"(\.inter)?(\.gz)?$", "", posixpath.basename(name), flags=re.IGNORECASE)
    item_file = source.sibling(name, f"{stem}.item", f"{stem}.item.gz")
    if item_file is None:
        return arrays, {}
    data, label = source.read(item_file), source.label(item_file)
    layout = _layout(data, label)
    title = next((column for column in layout.columns if column.endswith("title") or column == "name"), None)
    if title is None:
        return arrays, {}
    return arrays, read_titles(data, label, layout, config.item_column, title)


def _layout(data: pa.Buffer, label: str) -> Layout:
    layout = header_layout(data, label, "\t")
    return dataclasses.replace(layout, columns=[column.split(":")[0] for column in layout.columns])

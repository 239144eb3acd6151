"""RecBole atomic files: NAME.inter, and NAME.item for titles."""

from __future__ import annotations

import posixpath
import re
from dataclasses import replace

import pyarrow as pa

from recgrela.data.formats.columns import Arrays, column_names
from recgrela.data.formats.layout import find_layout
from recgrela.data.formats.source import Source
from recgrela.data.formats.text import read_events, read_titles
from recgrela.settings.data import DataConfig


def read(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events and titles of a ``.inter`` file.

    Columns are in any order, with names such as ``user_id:token``, and separated by tabs, unless RecBole's
    ``field_separator`` was another. Titles are from the ``.item`` file in the same folder, from the column
    "name" or one whose name ends in "title".
    """
    label = source.label(name)
    names = column_names(config)
    layout = find_layout(data, label, config, names[:2], has_types=True)
    arrays = read_events(data, label, layout, names, config.rating_to_read, config.time_format)
    stem = re.sub(r"(\.inter)?(\.gz)?$", "", posixpath.basename(name), flags=re.IGNORECASE)
    item_file = source.sibling(name, f"{stem}.item", f"{stem}.item.gz")
    if item_file is None:
        return arrays, {}
    data, label = source.read(item_file), source.label(item_file)
    layout = find_layout(data, label, replace(config, columns=None), names[1:2], has_types=True)
    title = next((column for column in layout.columns if column.endswith("title") or column == "name"), None)
    if title is None:
        return arrays, {}
    return arrays, read_titles(data, label, layout, config.item_column, title)

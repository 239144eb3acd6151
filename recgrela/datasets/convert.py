"""`python -m recgrela.data convert SOURCE [SOURCE ...] OUT`: write packed interactions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from recgrela.data.formats import find_files, read_parts
from recgrela.data.load import load
from recgrela.data.packed import is_packed, open_packed
from recgrela.data.packing import write_packed
from recgrela.data.parts import pack_parts
from recgrela.data.prepare import filter_settings, split_settings
from recgrela.data.reading import reading_notes, rule_settings
from recgrela.settings.command_line import Parser, to_argv
from recgrela.settings.data import DataConfig, with_absolute_path
from recgrela.settings.fields import options_of
from recgrela.system.console import say
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path
from recgrela.system.output import display_console

UNUSED = ("data.path", "data.max_len", "data.eval_max_len", "data.eval_users")  # settings of runs on the data


def command(argv: Sequence[str]) -> int:
    """Parse, convert, print."""
    parser = Parser(
        "data convert", "Write events as packed interactions, which --data.path maps instead of loading."
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="File, folder or zip, as for --data.path; several are parts of one set, read one at a time.",
    )
    parser.add_argument("out", metavar="OUT", help="Folder to write, which must not exist.")
    parser.add([option for option in options_of(DataConfig).values() if option.key not in UNUSED])
    options = parser.read(argv)
    settings = {key.removeprefix("data."): value for key, value in options.items() if key.startswith("data.")}
    config, out = DataConfig(**settings), expand_path(options["out"], "OUT")
    sources = options["sources"]
    config = with_absolute_path(replace(config, path=sources[0] if len(sources) == 1 else sources))
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder")
    if len(sources) > 1 and "synthetic" in sources:
        raise ConfigError("synthetic: is not a part of other data; convert it alone")
    is_special = len(sources) == 1 and (config.path == "synthetic" or is_packed(sources[0]))
    if is_special or len(find_files(config)) == 1:
        write_packed(load(config), out)
    else:  # one file is in memory at a time
        pack_parts(read_parts(config), out, config)
    counts = open_packed(out, verify=False).description
    numbers = ", ".join(f"{counts[name]:,} {name}" for name in ("users", "items", "events"))
    words = shlex.join(to_argv({"data.path": str(out)} | _recorded(config)))
    say(display_console(), f"{out}: {numbers}, with padding ids; train with: {words}")
    for note in reading_notes(counts):
        say(display_console(), note)
    return 0


def _recorded(config: DataConfig) -> dict[str, Any]:
    """The settings, by dotted key, that the packed form records, unless they are defaults."""
    names = {*rule_settings(config), *filter_settings(config), *split_settings(config), "order"}
    return {
        f"data.{field.name}": getattr(config, field.name)
        for field in fields(config)
        if field.name in names and getattr(config, field.name) != field.default
    }

"""`python -m recgrela.data stats PATH`: what a data set has, and how much the order of its events says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

from recgrela.data import statistics
from recgrela.data.events import Events
from recgrela.data.formats import read
from recgrela.data.interactions import Interactions
from recgrela.data.load import READING, synthetic_events
from recgrela.data.packed import is_packed, open_packed
from recgrela.data.prepare import prepare
from recgrela.data.reading import reading_notes
from recgrela.datasets.plots import Image, draw
from recgrela.datasets.report import show
from recgrela.evaluation.order import MAX_USERS, order_scores
from recgrela.settings.command_line import Parser
from recgrela.settings.data import DataConfig, with_absolute_path
from recgrela.settings.fields import NOTHING, Option, options_of
from recgrela.system.console import say
from recgrela.system.errors import ConfigError
from recgrela.system.files import atomic_write_text, expand_path
from recgrela.system.out_of_memory import MemoryPhase
from recgrela.system.output import display_console, result_console

# Settings of runs on the data, and of splits: statistics are those of all events and of leave-one-out.
UNUSED = re.compile(r"data\.(path|eval_\w+|split\w*|(valid|test)_path)")
OPTIONS = [
    Option("out", None, "Folder of the plots; null: none are drawn.", optional=True, affects=NOTHING),
    Option("image", "png", "Format of the plots.", choices=get_args(Image), affects=NOTHING),
    Option("json", None, "File of all statistics as JSON; null: none.", optional=True, affects=NOTHING),
    Option(
        "order_users",
        MAX_USERS,
        "Users for the scores that say how much the order matters; 0: no scores.",
        kind=int,
        min=0,
    ),
]


class Loaded(NamedTuple):
    """A data set; `events` are its events before the filter, None for packed interactions."""

    data: Interactions
    events: Events | None


def command(argv: Sequence[str]) -> int:
    """Parse, compute, print, and write what is asked for."""
    parser = Parser("data stats", "Print what a data set has after the filter, and how much its order says.")
    parser.add_argument(
        "path",
        nargs="+",
        metavar="PATH",
        help="File, folder or zip, as for --data.path; several are one set.",
    )
    parser.add(OPTIONS)
    parser.add([option for option in options_of(DataConfig).values() if not UNUSED.fullmatch(option.key)])
    options = parser.read(argv)
    settings = {key.removeprefix("data."): value for key, value in options.items() if key.startswith("data.")}
    given = options["path"]
    config = with_absolute_path(replace(DataConfig(**settings), path=given[0] if len(given) == 1 else given))
    paths = {
        key: expand_path(options[key], f"--{key}") for key in ("out", "json") if options[key] is not None
    }
    for key, path in paths.items():
        if not path.parent.is_dir():
            raise ConfigError(f"--{key}: {path.parent}: no such folder")
        if path.exists() and path.is_dir() != (key == "out"):
            raise ConfigError(f"--{key}: {path} is a {'file' if key == 'out' else 'folder'}")
    loaded = _load(config, [key for key in parser.split(argv)[0] if key.startswith("data.")])
    with MemoryPhase("computing statistics", "give fewer events, or more memory"):
        times = None if loaded.events is None else statistics.user_times(loaded.events, config)
        facts = _facts(loaded, times, config, options["order_users"])
    show(facts, result_console())
    console = display_console()
    for note in reading_notes(loaded.data.description):
        say(console, note)
    if "json" in paths:
        atomic_write_text(paths["json"], json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        say(console, f"written: {paths['json']}")
    if "out" in paths:
        paths["out"].mkdir(exist_ok=True)
        written = draw(loaded.data, times, paths["out"], options["image"])
        say(console, f"written: {', '.join(map(str, written))}")
    return 0


@READING
def _load(config: DataConfig, given: Sequence[str]) -> Loaded:
    """Load a data set. Raises ConfigError if a given setting would prepare data that are packed already."""
    if isinstance(config.path, str) and is_packed(config.path):
        for key in given:
            if key != "data.max_len":
                raise ConfigError(f"{config.path}: is packed and has its own settings; leave out --{key}")
        return Loaded(open_packed(config.path), None)
    events = synthetic_events(config) if config.path == "synthetic" else read(config)
    return Loaded(prepare(events, config), events)


def _facts(
    loaded: Loaded, times: statistics.UserTimes | None, config: DataConfig, order_users: int
) -> dict[str, Any]:
    """All statistics as values for JSON; a section without data is None."""
    data = loaded.data
    has_targets = data.users.max_events >= 3
    return {
        **{
            key: data.description[key]
            for key in ("source", "format", "filter", "order", "rules", "events_read")
        },
        "packed": loaded.events is None,
        "sha256": data.sha256,
        "published": data.description.get("published"),
        "counts": statistics.count(data),
        "lengths": statistics.lengths(data),
        "popularity": statistics.popularity(data),
        "repeats": statistics.repeats(data),
        "ties": None if times is None else statistics.ties(times),
        "times": None if times is None else statistics.span(times),
        "leakage": None if times is None else statistics.leakage(times),
        "order_scores": order_scores(data, config.max_len, order_users)
        if order_users and has_targets
        else None,
    }

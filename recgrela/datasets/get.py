"""`python -m recgrela.data get NAME [--to DIR]`: download a known data set, or say where it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from recgrela.datasets.public import MANUAL, PUBLIC, ManualSet, PublicSet
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import Option, check_known
from recgrela.system import download
from recgrela.system.console import say
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path
from recgrela.system.memory import in_gb
from recgrela.system.output import display_console, result_console

OPTIONS = [
    Option("to", ".", "Folder to write the file to; it is made if it does not exist."),
    Option(
        "timeout",
        download.TIMEOUT,
        "Seconds that the server may take to answer or to send bytes.",
        kind=float,
        above=0,
    ),
]


def command(argv: Sequence[str]) -> int:
    """Parse, print the terms, download."""
    parser = Parser("data get", "Download a known data set, or say where it is. Without a name: list them.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="Name of the set.")
    parser.add(OPTIONS)
    options = parser.read(argv)
    name = options.get("name")
    if name is None:
        _list()
        return 0
    name = name.lower()
    check_known([name], [*PUBLIC, *MANUAL], "unknown data set")
    if name in MANUAL:
        raise ConfigError(_where(MANUAL[name]))
    fetch(PUBLIC[name], expand_path(options["to"], "--to"), options["timeout"], display_console())
    return 0


def fetch(known: PublicSet, folder: Path, timeout: float, console: Console) -> Path:
    """Download a set unless the folder has it, and say how it is read.

    Raises:
        ConfigError: the folder has another file of this name.
        RunError, DiskFull: see `recgrela.system.download.download`.
    """
    for what, text in (
        (known.title, known.page),
        ("terms", known.terms),
        ("please cite", known.cite),
        ("from", known.url),
    ):
        say(console, f"{what}: {text}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / known.file
    if path.exists():
        _check(known, path)
        say(console, f"{path}: is there already")
    else:
        with _progress(known.file, console) as progress:
            download.download(known.url, path, known.checksum, progress, timeout)
        say(console, f"{path}: {in_gb(path.stat().st_size)}, sha256 {download.file_digest(path)}")
    if known.checksum is None:
        say(console, "its publisher gives no checksum: note the sha256 to compare copies")
    else:
        say(console, f"its {known.checksum.algorithm} is the published one")
    source = str(path)
    if known.unpack:
        say(console, f"extract it with: tar -xzf {shlex.quote(source)} -C {shlex.quote(str(folder))}")
        source = str(folder / known.unpack)
    words = f"--data.path {shlex.quote(source)} {known.settings}".rstrip()
    say(console, f"read it with: {words}")
    return path


def _check(known: PublicSet, path: Path) -> None:
    if known.checksum is not None and (found := known.checksum.of(path)) != known.checksum.digest:
        algorithm = known.checksum.algorithm
        raise ConfigError(
            f"{path}: exists, but its {algorithm} is {found}, not {known.checksum.digest}; remove it, or "
            "give another folder by --to"
        )


@contextmanager
def _progress(name: str, console: Console) -> Iterator[download.Progress]:
    """A bar on a terminal, and a line for every tenth elsewhere."""
    if console.is_terminal:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, size: bar.update(task, completed=done, total=size)
        return
    shown = -1

    def line(done: int, size: int | None) -> None:
        nonlocal shown
        tenth = done * 10 // size if size else done // 10**8
        if tenth != shown:
            shown = tenth
            say(console, f"{name}: {in_gb(done)}" + (f" of {in_gb(size)}" if size else ""))

    yield line


def _list() -> None:
    table = Table(box=None)
    for column in ("name", "set", "terms"):
        table.add_column(column, no_wrap=column == "name")
    for known in PUBLIC.values():
        table.add_row(known.name, known.title, known.terms)
    for other in MANUAL.values():
        table.add_row(other.name, other.title, f"{other.why}; `get {other.name}` says what to do")
    result_console(is_wide=True).print(table)


def _where(known: ManualSet) -> str:
    return (
        f"{known.title} {known.why}; take it from {known.page}: {known.files}; read it with: --data.path "
        f"PATH {known.settings}"
    )

"""Settings of delimited text: its separator, and the names of its columns."""

from __future__ import annotations

from recgrela.system.errors import ConfigError
from recgrela.system.suggest import near_miss
from recgrela.system.text import listed, quote

SPACES = " "  # one or more spaces or tabs
SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": SPACES}
IGNORED = "_"  # name of a column that is not read


def separator_of(value: str) -> str | None:
    """The separator that ``data.separator`` names, or None for "auto".

    Raises:
        ConfigError: it is no separator.
    """
    if value == "auto":
        return None
    if value in SEPARATORS:
        return SEPARATORS[value]
    known = ("auto", *SEPARATORS)
    if not value or value.isalnum():
        words = f"one of {', '.join(known)}, or a text such as '::'"
        raise ConfigError(f"data.separator: {quote(value)} is not {words}{near_miss(value, known)}")
    if any(letter in value for letter in '"\r\n'):
        raise ConfigError(f"data.separator: {quote(value)} contains a quotation mark or a line break")
    if value == r"\t":
        return "\t"
    return value if value.strip(" ") else SPACES


def separator_word(separator: str) -> str:
    """A separator as a word of the command line."""
    word = next((word for word, known in SEPARATORS.items() if known == separator), None)
    return word if word is not None else quote(separator)


def column_list(columns: str) -> list[str]:
    """The names in ``data.columns``."""
    return [name.strip() for name in columns.split(",")]


def check_columns(columns: str, wanted: dict[str, str]) -> None:
    """Raises ConfigError if a wanted name, given by its setting, is not exactly once among the columns."""
    names = column_list(columns)
    for key, name in wanted.items():
        if names.count(name) > 1:
            raise ConfigError(f"data.columns: {quote(name)} occurs {names.count(name)} times")
        if name not in names:
            fix = f"name it {quote(name)} or set data.{key}"
            if key == "time_column":
                fix += "; without times, --data.order file keeps the order of the file"
            hint = near_miss(name, names) or f"; {fix}"
            raise ConfigError(
                f"data.columns: no column {quote(name)} among {listed(map(quote, names))}{hint}"
            )

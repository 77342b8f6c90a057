"""What commands print: JSON for programs, tables for people.

Everything shown comes from others (ids, messages), so control characters are made visible: a
customer's words must not move the cursor of an operator's terminal.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson


def say(text: str) -> None:
    """Write one line to standard output."""
    sys.stdout.write(visible(text) + "\n")


def note(text: str) -> None:
    """Write one line to standard error, where everything goes that is no result."""
    sys.stderr.write(visible(text) + "\n")
    sys.stderr.flush()


def print_json(value: Any) -> None:
    """Print a value as one line of JSON; indented on a terminal."""
    print_raw_json(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))


def print_raw_json(raw: bytes) -> None:
    """Print JSON as it came; indented on a terminal."""
    if sys.stdout.isatty():
        raw = orjson.dumps(orjson.loads(raw), option=orjson.OPT_INDENT_2)
    sys.stdout.write(raw.decode() + "\n")
    sys.stdout.flush()


def visible(value: object) -> str:
    """A value as one line of text without control characters; None is a dash."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns; where nobody looks, without lines and never cut."""
    from rich.console import Console  # noqa: PLC0415 - slow, and JSON needs none
    from rich.table import Table  # noqa: PLC0415 - likewise
    from rich.text import Text  # noqa: PLC0415 - likewise

    if not sys.stdout.isatty():
        _print_plain(columns, rows)
        return
    table = Table(header_style="bold", border_style="dim")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [tuple(columns), *(tuple(visible(cell) for cell in row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(cells).rstrip())


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error if that is a terminal: call it with (done, total)."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console  # noqa: PLC0415 - slow, and programs need none
    from rich.progress import Progress  # noqa: PLC0415 - likewise

    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)

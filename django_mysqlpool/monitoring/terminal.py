"""Shows headings, facts, tables and notes on a terminal: with ``rich`` if it is installed, as plain text otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Colours of the levels of notes.
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan", "proposal": "bold green"}
#: The parts of a bar, and their colours: out, idle, and what could still be opened.
_PARTS = (("█", "green"), ("▒", "cyan"), ("·", "dim"))
_PLAIN_PARTS = str.maketrans("█▒·", "#+.")
#: The colour of what is out while others wait.
_SCARCE = "red"
_BAR_WIDTH = 12


@dataclass
class Heading:
    """A line that begins a part of its own."""

    text: str


@dataclass
class Facts:
    """Pairs of a name and what there is to say."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, text: str | None) -> None:
        """Add a pair, if there is something to say."""
        if text:
            self.rows.append((name, text))


@dataclass
class Bar:
    """The connections of a pool, and the threads that wait for one, in a cell of a table."""

    out: int
    idle: int
    cap: int | None
    waiting: int

    def parts(self) -> Iterator[tuple[str, str]]:
        """The characters of each part, and their colour."""
        total = max(self.cap or 0, self.out + self.idle, 1)
        lengths = [round(_BAR_WIDTH * self.out / total), round(_BAR_WIDTH * self.idle / total)]
        lengths.append(max(_BAR_WIDTH - sum(lengths), 0))
        for length, (character, style) in zip(lengths, _PARTS, strict=True):
            yield character * length, _SCARCE if self.waiting and style == "green" else style


Cell = str | int | Bar


@dataclass
class Table:
    """Rows of cells; numbers stand at the right."""

    headers: Sequence[str]
    rows: list[Sequence[Cell]]
    title: str = ""

    def is_number(self, column: int) -> bool:
        """True if the column has a number, and perhaps words for those that are missing."""
        return any(isinstance(row[column], int) for row in self.rows)


@dataclass
class Note:
    """Something to be told from the rest, and what to do about it."""

    level: str
    text: str
    change: str = ""


Element = Heading | Facts | Table | Note


def printable(text: str) -> str:
    """A text without characters that steer a terminal: a request's path, say, comes from outside."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


class Terminal:
    """Where a command writes to.

    :param out: a file; a terminal gets colours and lines if ``rich`` is installed
    :param color: ``True``: as if it were a terminal; ``False``: plain text in any case; ``None``: as it is
    """

    def __init__(self, out: TextIO, *, color: bool | None = None) -> None:
        self._out = out
        self.is_terminal = out.isatty() if color is None else color
        self._console: Console | None = _console(out) if self.is_terminal else None

    def show(self, elements: Sequence[Element]) -> None:
        """Show the elements."""
        if self._console is not None:
            self._console.print(_rich(elements))
        else:
            self._out.write(plain(elements))
            self._out.flush()

    def watch(self, look: Callable[[], Sequence[Element]], interval: float) -> None:
        """Show what ``look`` returns, again and again, until an interrupt; the last of it stays on the terminal."""
        last: Sequence[Element] = ()
        with suppress(KeyboardInterrupt):
            if self._console is None:
                while True:
                    if self.is_terminal:
                        self._out.write("\x1b[H\x1b[2J")
                    self.show(look())
                    time.sleep(interval)
            from rich.live import Live

            with Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="ellipsis") as live:
                while True:
                    last = look()
                    live.update(_rich(last), refresh=True)
                    time.sleep(interval)
        if last:
            self.show(last)


# Plain text


def plain(elements: Sequence[Element]) -> str:
    """The elements as text, each line with its end."""
    return "".join(f"{line.rstrip()}\n" for element in elements for line in _lines(element))


def _lines(element: Element) -> Iterator[str]:
    if isinstance(element, Heading):
        yield printable(element.text)
    elif isinstance(element, Facts):
        width = max((len(name) for name, _ in element.rows), default=0)
        yield from (f"  {name:<{width}}  {printable(text)}" for name, text in element.rows)
    elif isinstance(element, Note):
        yield f"  {element.level}: {printable(element.text)}"
        if element.change:
            yield f"    {printable(element.change)}"
    else:
        yield from _table_lines(element)


def _table_lines(table: Table) -> Iterator[str]:
    if table.title:
        yield f"  {table.title}"
    rows = [list(table.headers), *([_cell(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = [table.is_number(number) for number in range(len(widths))]
    for row in rows:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        )
        yield f"  {'  '.join(cells)}"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Bar):
        return "".join(text for text, _ in cell.parts()).translate(_PLAIN_PARTS)
    return printable(str(cell))


# rich


def _console(out: TextIO) -> Console | None:
    try:
        from rich.console import Console
    except ImportError:
        return None
    # (A command's output is Django's wrapper of a file, which adds the end of a line to whatever has none.)
    console = Console(file=_Plain(out), force_terminal=True, highlight=False)  # type: ignore[arg-type]
    return console if console.encoding.startswith("utf") else None


class _Plain:
    """A file without what Django's ``OutputWrapper`` adds."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self.encoding = getattr(out, "encoding", None) or sys.stdout.encoding

    def write(self, text: str) -> None:
        if hasattr(self._out, "style_func"):
            self._out.write(text, ending="")
        else:
            self._out.write(text)

    def flush(self) -> None:
        self._out.flush()

    def isatty(self) -> bool:
        return bool(self._out.isatty())

    def fileno(self) -> int:
        return int(self._out.fileno())


def _rich(elements: Sequence[Element]) -> RenderableType:
    from rich.console import Group

    return Group(*(_renderable(element) for element in elements))


def _renderable(element: Element) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.table import Table as Grid
    from rich.text import Text

    if isinstance(element, Heading):
        return Padding(Rule(Text(printable(element.text), style="bold"), align="left", style="blue"), (1, 0, 0, 0))
    if isinstance(element, Facts):
        grid = Grid.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in element.rows:
            grid.add_row(Text(name), Text(printable(text)))
        return Padding(grid, (0, 0, 0, 2))
    if isinstance(element, Note):
        note = Text.assemble((f"{element.level}: ", _STYLES.get(element.level, "")), printable(element.text))
        if element.change:
            return Padding(Group(note, Padding(Text(printable(element.change)), (0, 0, 0, 2))), (1, 0, 0, 2))
        return Padding(note, (1, 0, 0, 2))
    return Padding(_grid(element), (1, 0, 0, 2))


def _grid(table: Table) -> RenderableType:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(title=table.title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for number, header in enumerate(table.headers):
        is_bar = any(isinstance(row[number], Bar) for row in table.rows)
        is_number = table.is_number(number)
        grid.add_column(header, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number or is_bar)
    for row in table.rows:
        grid.add_row(
            *(Text.assemble(*cell.parts()) if isinstance(cell, Bar) else Text(printable(str(cell))) for cell in row)
        )
    return grid

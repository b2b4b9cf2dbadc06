"""Tables as Markdown, as CSV with every number in full, and for the terminal; numbers as a reader wants them."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tabulate import tabulate

__all__ = [
    "Cell",
    "Table",
    "csv_text",
    "duration",
    "interval",
    "markdown",
    "mean_std",
    "number",
    "plain",
    "short",
    "size",
    "words",
]


def markdown(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table in Markdown, whose columns are aligned in the file too."""
    return _laid_out(header, [[str(cell).replace("|", r"\|") for cell in row] for row in rows], "github")


def plain(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table for the terminal."""
    return _laid_out(header, rows, "simple")


def csv_text(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def _laid_out(header, rows, layout):
    return tabulate(rows, header, tablefmt=layout, disable_numparse=True) + "\n"  # cells stay as they are written


class Cell(NamedTuple):
    """What a reader sees, and the values behind it: suffix of the column's name → value."""

    text: str
    values: dict


class Table(NamedTuple):
    """Rows (column → `Cell`; a missing one is empty) and, below them, sentences computed from the same records."""

    title: str
    rows: list
    sentences: list

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in the order in which they first occur."""
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def csv(self) -> str:
        """As CSV, a column for each value."""
        suffixes = {column: next(row[column].values for row in self.rows if column in row) for column in self.columns}
        header = [f"{column} {suffix}".strip() for column in self.columns for suffix in suffixes[column]]
        empty = Cell("", {})
        rows = [
            [row.get(column, empty).values.get(suffix, "") for column in self.columns for suffix in suffixes[column]]
            for row in self.rows
        ]
        return csv_text(header, rows)

    def markdown(self, caption: str) -> str:
        """As a page of Markdown: the title, the table, the sentences, the figure's caption."""
        sentences = [f"- {sentence}" for sentence in self.sentences]
        return "\n".join([f"# {self.title}", "", markdown(self.columns, self.texts()), *sentences, "", caption, ""])

    def texts(self) -> list[list[str]]:
        """Row by row what a reader sees."""
        return [[row[column].text if column in row else "" for column in self.columns] for row in self.rows]


def words(text: str) -> Cell:
    """A cell of words."""
    return Cell(text, {"": text})


def number(value: float, digits: int = 3) -> Cell:
    """A cell of a number, see `short`."""
    return Cell(short(value, digits), {"": float(value)})


def interval(value: NamedTuple, digits: int = 3) -> Cell:
    """A cell of a median and its interval: three numbers, whose names are those of the values."""
    median, low, high = (short(part, digits) for part in value)
    return Cell(f"{median} [{low}, {high}]", {name: float(part) for name, part in value._asdict().items()})


def mean_std(mean: float, std: float = math.nan, digits: int = 2, *, name: str = "std") -> Cell:
    """A cell of a mean ± a deviation, which is left out of the text where it is nan, as it is of a single value."""
    text = f"{mean:.{digits}f}" if math.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"
    return Cell(text, {"mean": float(mean), name: float(std)})


def short(value: float, digits: int = 3) -> str:
    """A number in few digits, without an exponent where it is easily read without one: 4,660, not 4.66e+03."""
    return format(float(f"{value:.{digits}g}"), ",g")


def duration(seconds: float) -> str:
    """Three digits, and a unit."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"


def size(nbytes: float) -> str:
    """Three digits, and a unit."""
    return f"{nbytes / 2**20:.3g} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:.3g} KiB"

"""Tables that are written as CSV, every number in full, and as Markdown, and shown in the terminal."""

import csv
import io
from typing import NamedTuple

import rich.box
import rich.table

__all__ = ["Cell", "Table", "csv_text", "interval", "number", "short", "spread", "words"]


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
    def columns(self):
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def csv(self):
        """As CSV, a column for each value."""
        suffixes = {column: next(row[column].values for row in self.rows if column in row) for column in self.columns}
        header = [f"{column} {suffix}".strip() for column in self.columns for suffix in suffixes[column]]
        empty = Cell("", {})
        rows = [
            [row.get(column, empty).values.get(suffix, "") for column in self.columns for suffix in suffixes[column]]
            for row in self.rows
        ]
        return csv_text(header, rows)

    def markdown(self, caption):
        """As a page of Markdown: the title, the table, the sentences, the figure's caption."""
        lines = [_line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row[column].text if column in row else "" for column in self.columns) for row in self.rows]
        sentences = [f"- {sentence}" for sentence in self.sentences]
        return "\n".join([f"# {self.title}", "", *lines, "", *sentences, "", caption, ""])

    def to_rich(self):
        """For the terminal."""
        table = rich.table.Table(title=self.title, box=rich.box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
        for column in self.columns:
            table.add_column(column)
        for row in self.rows:
            table.add_row(*(row[column].text if column in row else "" for column in self.columns))
        return table


def words(text):
    return Cell(text, {"": text})


def short(value, digits=3):
    """A number in few digits, without an exponent where it is easily read without one: 4,660, not 4.66e+03."""
    return format(float(f"{value:.{digits}g}"), ",g")


def number(value, digits=3):
    return Cell(short(value, digits), {"": float(value)})


def interval(value, digits=3):
    """Cell of a median and its interval, a `paper_figures.curves.Interval` of numbers."""
    median, low, high = (short(part, digits) for part in value)
    return Cell(f"{median} [{low}, {high}]", {name: float(part) for name, part in value._asdict().items()})


def spread(mean, std):
    return Cell(f"{mean:.2f} ± {std:.2f}", {"mean": float(mean), "std": float(std)})


def csv_text(header, rows):
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def _line(cells):
    return "| " + " | ".join(cells) + " |"

"""A figure and its numbers as files, each written whole or not at all; the same records give the same bytes."""

import io
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from analysis.experiments.output import write
from analysis.experiments.tables import Table, csv_text
from paper_figures.curves import Curve

__all__ = ["Drawing", "save"]


class Drawing(NamedTuple):
    """A figure, the caption below it, its table, and the curves it shows."""

    figure: Figure
    caption: str
    table: Table
    curves: list[Curve]


def save(drawing: Drawing, name: str, folder: Path) -> list[Path]:
    """Write ``name``.png, .pdf, .csv, .md and ``name``_curves.csv; return their paths."""
    contents = {
        f"{name}.png": _drawn(drawing.figure, "png"),
        f"{name}.pdf": _drawn(drawing.figure, "pdf"),
        f"{name}.csv": drawing.table.csv(),
        f"{name}.md": drawing.table.markdown(drawing.caption),
        f"{name}_curves.csv": _curves(drawing.curves),
    }
    for file, content in contents.items():
        write(folder / file, content)
    return [folder / file for file in contents]


def _drawn(figure, kind):
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi="figure", metadata={"CreationDate": None} if kind == "pdf" else None)
    return buffer.getvalue()


def _curves(curves):
    header = ["panel", "quantity", "method", "x", "median", "low", "high"]
    rows = [
        [curve.panel, curve.quantity, curve.method.name, *map(float, point)]
        for curve in curves
        for point in zip(curve.x, *curve.y, strict=True)
    ]
    return csv_text(header, rows)

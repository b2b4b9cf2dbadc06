"""Writing a figure and its numbers, each file whole or not at all, and the same bytes from the same records."""

import io
import os
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from paper_figures.tables import Table, csv_text

__all__ = ["Product", "save", "write"]


class Product(NamedTuple):
    """A figure, the caption below it, its table, and the curves it shows."""

    figure: Figure
    caption: str
    table: Table
    curves: list


def save(product, name, folder):
    """Write ``name``.png, .pdf, .csv, .md and ``name``_curves.csv; return their paths."""
    contents = {
        f"{name}.png": _drawn(product.figure, "png"),
        f"{name}.pdf": _drawn(product.figure, "pdf"),
        f"{name}.csv": product.table.csv().encode(),
        f"{name}.md": product.table.markdown(product.caption).encode(),
        f"{name}_curves.csv": _curves(product.curves).encode(),
    }
    paths = [Path(folder, file) for file in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write(path, content)
    return paths


def write(path, content):
    """Write bytes to a file by way of a temporary one: killed at any moment, the old file is there or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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

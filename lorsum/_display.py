"""How matrices and results print, as text and as HTML in a notebook."""

import math
from html import escape

from lorsum._operators import is_operator


def _magnitude(value):
    """A number as one reads it: integers in full, the rest with five significant digits."""
    if isinstance(value, str):
        return value
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{float(value):.5g}" if 1e-2 <= abs(value) < 1e4 else f"{float(value):.4e}"


def text_table(header, rows):
    """Right-aligned columns of text."""
    cells = [list(header)] + [[_magnitude(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def html_table(caption, header, rows):
    """The same as an HTML table with a caption."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(_magnitude(value))}</td>" for value in row) + "</tr>" for row in rows)
    caption = f"<caption style='caption-side:top;text-align:left'><b>{escape(caption)}</b></caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def dtype_name(x):
    return str(x.dtype).rpartition(".")[2]


def shape_text(x):
    *batch, m, n = x.shape
    return f"{m} × {n}" + (f", batch of {' × '.join(map(str, batch))}" if batch else "")


def term_text(term):
    if hasattr(term, "rank"):
        return f"rank {term.rank}"
    return "operator" if is_operator(term) else "dense"


def sign_and_size(c):
    try:
        value = complex(c)
    except Exception:  # a traced number has no value to print
        return "+", "c"
    if value.imag:
        return "+", f"({value:.4g})"
    return ("-" if value.real < 0 else "+"), f"{abs(value.real):.4g}"


def storage_rows(x, terms):
    stored = sum(math.prod(factor.shape) for term in terms for factor in term)
    dense = math.prod(x.shape)
    share = f" ({stored / dense:.2%} of the dense matrix)" if dense else ""
    return [("numbers in factors", f"{stored:,}{share}")]

"""Draw the paper's figures and tables, running the studies that have no record yet.

Without options: figure1, mnist and gap, within ten minutes on two cores, the linear task as in the paper and MNIST
reduced; table1 and mnli, which take longer and need torch, transformers and peft, with ``--only``. Started again after
an interruption, it repeats no finished run.
"""

import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import rich.box
import rich.table
from rich.console import Console

from analysis.experiments.command_line import parser
from analysis.experiments.style import RC
from analysis.experiments.tables import Table
from paper_figures import figure1, gap, mnist, mnli, table1
from paper_figures.drawing import Drawing, save
from paper_figures.studies import records_of

__all__ = ["main"]

FIGURES = {"figure1": figure1, "mnist": mnist, "gap": gap, "table1": table1, "mnli": mnli}
ON_REQUEST = {"table1", "mnli"}  # they take longer, and need torch, transformers and peft


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the arguments ask for."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, figure in FIGURES.items():
            print(f"{name:8}  {(figure.__doc__ or '').strip()}")
        return
    asked = options.only or [name for name in FIGURES if name not in ON_REQUEST]
    try:
        _draw({name: FIGURES[name] for name in asked}, options)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished runs are recorded: the same command goes on from there.")


def _draw(figures, options):
    start = time.perf_counter()
    recorded = cache(lambda study: records_of(study, options.folder, full=options.full, workers=options.workers))
    written = []
    for name, figure in figures.items():
        records = {study: recorded(study) for study in figure.STUDIES}
        with matplotlib.rc_context(RC):
            drawing = figure.make(records)
            written.append((drawing, save(drawing, name, options.output)))
    console = Console(width=None if sys.stdout.isatty() else 160)
    for drawing, paths in written:
        _report(console, drawing, paths)
    console.print(f"{time.perf_counter() - start:.0f} s in all.", highlight=False)


def _report(console: Console, drawing: Drawing, paths: list[Path]) -> None:
    """The table, what follows from it, what was run on which data, and where it was written."""
    console.print(_in_terminal(drawing.table))
    for text in (*(f"• {sentence}" for sentence in drawing.table.sentences), "", drawing.caption, ""):
        console.print(text, markup=False, highlight=False)
    for path in paths:
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def _in_terminal(table: Table) -> rich.table.Table:
    shown = rich.table.Table(title=table.title, box=rich.box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for column in table.columns:
        shown.add_column(column)
    for row in table.rows:
        shown.add_row(*(row[column].text if column in row else "" for column in table.columns))
    return shown


def _parser():
    made = parser("paper_figures", __doc__, output=Path("figures"), folder=Path("records"), workers=None)
    made.add_argument(
        "--full", action="store_true", help="the paper's protocol on MNIST too: 3 seeds, 20 epochs (about 40 minutes)"
    )
    made.add_argument("--only", action="append", choices=FIGURES, help="draw this figure; may be repeated")
    made.add_argument("--list", action="store_true", help="name the figures, each with what it shows, and stop")
    return made


if __name__ == "__main__":
    main()

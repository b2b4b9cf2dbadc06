"""Measure lorsum beside its competitors and the machine's roofline, print what was reached, and write it down.

Records are kept: started again after an interruption, the same command goes on from there. A selection prints its own
table; the page, the figures and the collected records are written where --output says. To see what a change costs,
run it in both checkouts with --output, and give the other's benchmarks.json to --against.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from analysis.benchmarks.kernels.comparison import comparison
from analysis.benchmarks.kernels.configurations import TASKS, configurations, name_of
from analysis.benchmarks.kernels.figures import accuracy_figure, growth_figure
from analysis.benchmarks.kernels.measurements import run
from analysis.benchmarks.kernels.page import page, sections
from analysis.benchmarks.recording import collected, recorded, write_page
from analysis.experiments.command_line import parser
from analysis.experiments.output import write

__all__ = ["command"]


def command(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and has no record yet, print it, and write it where ``--output`` says."""
    options = _parser().parse_args(arguments)
    start = time.perf_counter()
    configs = configurations(tasks=options.only, quick=options.quick)
    configs = [config for config in configs if all(text in name_of(config) for text in options.case)]
    if not configs:
        sys.exit(f"No configuration has all of {options.case} in its name, such as 'grid 84x120 r=8 R=64 float32'.")
    before = None if options.against is None else collected(options.against)
    records = recorded(run, configs, options.folder, again=options.again)
    for title, text in sections(records).items():
        print(f"{title}\n\n{text}")
    if before is not None:
        print(f"Times beside those of {options.against}\n\n{comparison(before, records)}")
    if options.output is not None:
        write_page(options.output, "benchmarks", page(records), records)
        _write_figures(options.output, records)
    print(f"{time.perf_counter() - start:.0f} s in all.")


def _write_figures(folder, records):
    for name, figure in (("growth", growth_figure(records)), ("accuracy", accuracy_figure(records))):
        if figure is not None:
            write(folder / f"benchmarks-{name}.png", figure)


def _parser():
    made = parser("analysis benchmarks", __doc__, folder=Path("records/benchmarks"), output=None, again=False)
    made.add_argument("--only", action="append", choices=TASKS, help="this part; may be repeated")
    made.add_argument(
        "--case", action="append", default=[], metavar="TEXT",
        help="cases whose name, such as 'grid 84x120 r=8 R=64 float32 threads=1', has this in it; may be repeated",
    )  # fmt: skip
    made.add_argument("--against", type=Path, metavar="JSON", help="compare with the collected records of another run")
    made.add_argument("--quick", action="store_true", help="the smallest case of each part, in some seconds")
    return made


if __name__ == "__main__":
    command()

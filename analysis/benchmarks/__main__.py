"""Measure lorsum beside its competitors and the machine's limit, print what was reached, and write it down.

Records are kept: started again after an interruption, the same command goes on from there. A selection prints its own
table; the page, the plots and the collected records are written where --output says.
"""

import argparse
import sys
import time
from pathlib import Path

from analysis.benchmarks.command import measured, write_collected
from analysis.benchmarks.study import TASKS, configurations, name_of, run
from analysis.benchmarks.table import page, sections

__all__ = ["main"]


def main(arguments=None):
    options = _parser().parse_args(arguments)
    start = time.perf_counter()
    configs = configurations(tasks=options.only, quick=options.quick)
    configs = [config for config in configs if all(text in name_of(config) for text in options.case)]
    if not configs:
        sys.exit(f"No configuration has all of {options.case} in its name, such as 'grid 84x120 r=8 R=64 float32'.")
    records = measured(run, configs, options.records, again=options.again)
    for title, text in sections(records).items():
        if not text.startswith("!["):
            print(f"{title}\n\n{text}")
    if options.output is not None:
        _write(records, options.output)
    print(f"{time.perf_counter() - start:.0f} s in all.")


def _write(records, folder):
    from analysis.benchmarks.plots import accuracy_figure, growth_figure
    from paper_figures.files import write

    write(folder / "benchmarks.md", page(records).encode())
    write_collected(folder / "benchmarks.json", records)
    for name, figure in (("growth", growth_figure(records)), ("accuracy", accuracy_figure(records))):
        if figure is not None:
            write(folder / f"benchmarks-{name}.png", figure)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m analysis.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=TASKS, help="this part; may be repeated")
    parser.add_argument(
        "--case", action="append", default=[], metavar="TEXT",
        help="cases whose name, such as 'grid 84x120 r=8 R=64 float32 threads=1', has this in it; may be repeated",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="the smallest case of each part, in some seconds")
    parser.add_argument("--again", action="store_true", help="measure anew what is recorded")
    parser.add_argument("--output", type=Path, help="folder of the page, the plots and the collected records: docs")
    parser.add_argument("--records", type=Path, default=Path("records/benchmarks"), help="folder of the records")
    return parser


if __name__ == "__main__":
    main()

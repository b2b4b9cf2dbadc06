"""Measure what a training step costs with each optimizer, and write the page about it.

Records are kept: started again after an interruption, the same command goes on from there. On a core that does nothing
else it takes three minutes.
"""

import argparse
import os
import time
from pathlib import Path

from analysis.benchmarks.command import measured, write_collected
from analysis.training_cost.page import page
from analysis.training_cost.study import MODELS, configurations, run
from paper_figures.files import write

__all__ = ["main"]


def main(arguments=None):
    options = _parser().parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else PyTorch's profiler tells of each start
    start = time.perf_counter()
    records = measured(run, configurations(options.model), options.records, again=options.again)
    text = page(records)
    print(text)
    write(options.output / "training-cost.md", text.encode())
    write_collected(options.output / "training-cost.json", records)
    print(f"{time.perf_counter() - start:.0f} s in all.")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m analysis.training_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", action="append", choices=MODELS, help="this one; may be repeated; default: all")
    parser.add_argument("--again", action="store_true", help="measure anew what is recorded")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the page and its records")
    parser.add_argument("--records", type=Path, default=Path("records/training-cost"), help="folder of the records")
    return parser


if __name__ == "__main__":
    main()

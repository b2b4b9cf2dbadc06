"""Measure what a training step costs with each optimizer, print the page about it, and write it down.

Records are kept: started again after an interruption, the same command goes on from there. The page and the collected
records are written where --output says.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from analysis.benchmarks.recording import recorded, write_page
from analysis.benchmarks.training_cost.measurements import MODELS, configurations, run
from analysis.benchmarks.training_cost.page import page
from analysis.experiments.command_line import parser

__all__ = ["command"]


def command(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and has no record yet, print it, and write it where ``--output`` says."""
    made = parser("analysis training-cost", __doc__, folder=Path("records/training-cost"), output=None, again=False)
    made.add_argument("--model", action="append", choices=MODELS, help="this one; may be repeated; default: all")
    options = made.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else PyTorch's profiler tells of each start
    start = time.perf_counter()
    records = recorded(run, configurations(options.model), options.folder, again=options.again)
    print(page(records))
    if options.output is not None:
        write_page(options.output, "training-cost", page(records), records)
    print(f"{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    command()

"""Measure what a training step costs with each optimizer, and write the page about it.

Records are kept: started again after an interruption, the same command goes on from there. On a core that does nothing
else it takes three minutes.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from analysis.records import record_path, run_study, write_record
from analysis.training_cost.page import page
from analysis.training_cost.study import MODELS, configurations, run
from paper_figures.files import write

__all__ = ["main"]


def main(arguments=None):
    options = _parser().parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else PyTorch's profiler tells of each start
    start = time.perf_counter()
    configs = configurations(options.model)
    if options.again:
        for config in configs:
            record_path(options.records, config).unlink(missing_ok=True)
    try:
        records = run_study(run, configs, options.records, workers=1)  # one process: optimizers take turns in it
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished runs are recorded: the same command goes on from there.")
    text = page(records)
    print(text)
    write(options.output / "training-cost.md", text.encode())
    collected = [{"config": r["config"], "results": r["results"], "seconds": r["seconds"]} for r in records]
    write_record(
        options.output / "training-cost.json", {"environment": records[-1]["environment"], "records": collected}
    )
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

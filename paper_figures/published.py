"""What the paper has for a method, from ``published.csv``, which says where each number stands."""

import csv
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

from analysis.experiments.methods import Config

__all__ = ["Estimate", "published"]


class Estimate(NamedTuple):
    """A number and its standard deviation over the seeds, nan where there is none."""

    value: float
    std: float


def published(config: Config, task: str, quantity: str) -> Estimate | None:
    """The paper's value of a quantity for a configuration's method; None where it has none.

    A row of the file without a number of iterations is for any.
    """
    rows = _rows()
    key = task, quantity, config["method"]
    return rows.get((*key, str(config.get("iters", ""))), rows.get((*key, "")))


@cache
def _rows():
    with open(Path(__file__).with_name("published.csv"), encoding="utf-8", newline="") as file:
        return {
            (row["task"], row["quantity"], row["method"], row["iters"]): Estimate(
                float(row["value"]), float(row["std"] or math.nan)
            )
            for row in csv.DictReader(file)
        }

"""The runs of a method, one for each seed, and what a curve shows of them: their median and an interval."""

import json
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from analysis.experiments.methods import METHODS, Config, label
from analysis.experiments.records import Record
from lorsum.typing import Array

__all__ = ["BOOTSTRAP", "Curve", "Interval", "MethodRuns", "median_interval", "methods"]

_ENUMERATED = 5  # seeds; 5⁵ = 3125 resamples
BOOTSTRAP = (
    "95% percentile-bootstrap interval of the median over all resamples of the seeds "
    f"(with {_ENUMERATED} seeds or fewer: their smallest and largest value)"
)


class Interval(NamedTuple):
    """A median over the seeds and its 95% interval."""

    median: Any
    low: Any
    high: Any


class Curve(NamedTuple):
    """What is drawn of a method in a panel, and the quantity's name."""

    panel: str
    quantity: str
    method: "MethodRuns"
    x: Array
    y: Interval


class MethodRuns(NamedTuple):
    """A configuration without its seed, and the results of its runs in the order of the seeds."""

    config: Config
    runs: list[dict]

    @property
    def name(self) -> str:
        """As in the legends; a momentum rank is told where it is not the default."""
        rank = self.config.get("momentum_rank")
        return label(self.config) + (f", momentum rank {rank}" if rank else "")

    def values(self, entry: str) -> Array:
        """One of the results, a row for each seed."""
        return np.array([run[entry] for run in self.runs])


def methods(records: Sequence[Record], **wanted: Any) -> list[MethodRuns]:
    """The methods whose configurations have the wanted entries, families and their K and momentum rank in order."""
    found: dict[str, MethodRuns] = {}
    for record in sorted(records, key=lambda record: record["config"]["seed"]):
        config = {key: value for key, value in record["config"].items() if key != "seed"}
        if all(config.get(key) == value for key, value in wanted.items()):
            found.setdefault(json.dumps(config, sort_keys=True), MethodRuns(config, [])).runs.append(record["results"])
    return sorted(found.values(), key=_place)


def _place(method):
    config = method.config
    return list(METHODS).index(config["method"]), config.get("momentum_rank", 0), config.get("iters", 0)


def median_interval(values: Array) -> Interval:
    """Median over the first axis and its 95% percentile-bootstrap interval; every resample of up to five seeds."""
    values, n = np.asarray(values, float), len(values)
    exhaustive = n <= _ENUMERATED
    picks = list(product(range(n), repeat=n)) if exhaustive else np.random.default_rng(0).integers(n, size=(3000, n))
    medians = np.median(values[np.array(picks)], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975], axis=0, method="inverted_cdf")
    return Interval(np.median(values, axis=0), low, high)

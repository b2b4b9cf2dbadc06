"""Two runs of the benchmark compared, such as those of two commits: which call became slower, and where."""

import numpy as np

from analysis.benchmarks.kernels.competitors import LISTING
from analysis.benchmarks.kernels.configurations import name_of
from analysis.benchmarks.kernels.targets import geometric_mean
from analysis.experiments.tables import markdown

__all__ = ["changes", "comparison"]

UNIT = f"{LISTING} K=1"


def changes(before: list[dict], after: list[dict]) -> dict[str, dict[str, float]]:
    """Name of a call → case → its time after over its time before, in all cases that both runs have.

    Times are those of the fastest round, which other work on the machine disturbs least, in units of Listing 1's in the
    same run, so that another machine changes little.
    """
    earlier = _fastest(before)
    found: dict[str, dict[str, float]] = {}
    for case, now in _fastest(after).items():
        then = earlier.get(case, {})
        for name in now:
            if name != UNIT and name in then:
                found.setdefault(name, {})[case] = now[name] / then[name]
    return found


def _fastest(records):
    """Case → name of a call → time in units of Listing 1's."""
    timed = {name_of(record["config"]): record["results"].get("seconds", {}) for record in records}
    return {
        case: {name: np.nanmin(rounds) / np.nanmin(seconds[UNIT]) for name, rounds in seconds.items()}
        for case, seconds in timed.items()
        if UNIT in seconds
    }


def comparison(before: list[dict], after: list[dict]) -> str:
    """`changes` as a table in Markdown, a row for each call."""
    rows = []
    for name, values in sorted(changes(before, after).items()):
        slowest, fastest = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
        extremes = (f"{values[case]:.2f} ({case})" for case in (fastest, slowest))
        rows.append([name, len(values), f"{geometric_mean(values.values()):.2f}", *extremes])
    return markdown(["call", "cases", "after / before, geometric mean", "least", "most"], rows)

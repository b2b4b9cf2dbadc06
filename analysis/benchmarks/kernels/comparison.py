"""Two runs of the benchmark compared, such as those of two commits: which call became slower, and where."""

from analysis.benchmarks.kernels.competitors import LISTING, parsed
from analysis.benchmarks.kernels.configurations import name_of
from analysis.benchmarks.kernels.targets import geometric_mean
from analysis.experiments.tables import markdown
from analysis.experiments.timing import ratio

__all__ = ["changes", "comparison"]


def changes(before: list[dict], after: list[dict]) -> dict[str, dict[str, float]]:
    """Name of a call → case → its time after over its time before, in all cases that both runs have.

    Both times are in units of Listing 1's in the same rounds, so that a machine that became slower changes nothing.
    """
    earlier = {name_of(record["config"]): record["results"].get("seconds", {}) for record in before}
    found: dict[str, dict[str, float]] = {}
    for record in after:
        case = name_of(record["config"])
        now, then = record["results"].get("seconds", {}), earlier.get(case, {})
        for name in now.keys() & then.keys():
            unit = f"{LISTING} K={parsed(name)[1]}"
            unit = unit if unit in now and unit in then else f"{LISTING} K=1"
            if not name.startswith(LISTING) and unit in now and unit in then:
                found.setdefault(name, {})[case] = ratio(now[name], now[unit]) / ratio(then[name], then[unit])
    return found


def comparison(before: list[dict], after: list[dict]) -> str:
    """`changes` as a table in Markdown, a row for each call."""
    rows = []
    for name, values in sorted(changes(before, after).items()):
        slowest, fastest = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
        extremes = (f"{values[case]:.2f} ({case})" for case in (fastest, slowest))
        rows.append([name, len(values), f"{geometric_mean(values.values()):.2f}", *extremes])
    return markdown(["call", "cases", "after / before, geometric mean", "least", "most"], rows)

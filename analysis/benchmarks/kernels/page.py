"""The page, written from the records."""

from analysis.benchmarks.kernels.problems import Case
from analysis.benchmarks.kernels.targets import outcomes
from analysis.benchmarks.recording import having, provenance
from analysis.experiments.tables import duration, markdown, size
from analysis.experiments.timing import median, ratio

__all__ = ["page", "sections", "target_table"]

OWN = ("auto K=1", "auto K=2", "auto K=8", "direct K=1", "direct K=8", "coefficients K=1", "coefficients K=8",
       "Krylov K=2", "Krylov K=8", "factored")  # fmt: skip
OTHERS = ("Listing 1 K=1", "Listing 1 K=8", "form the matrix", "torch.svd_lowrank", "randomized_svd", "svds",
          "dense SVD")  # fmt: skip
PARTNER = {"Listing 1 K=1": "auto K=1", "Listing 1 K=8": "auto K=8"}
FIGURES = {
    "Growth": "![Time against m + n, R, r and K](benchmarks-growth.png)",
    "Accuracy against time": "![Excess against time](benchmarks-accuracy.png)",
}


def page(records: list[dict]) -> str:
    """The page as Markdown."""
    tables = sections(records)
    targets, figures = {"Targets": tables.pop("Targets")}, FIGURES if having(records, task="grid") else {}
    parts = [f"## {title}\n\n{text}\n" for title, text in (targets | figures | tables).items()]
    return "\n".join([f"# Benchmarks\n\n{_opening(records)}\n", *parts])


def sections(records: list[dict]) -> dict[str, str]:
    """Title → table, of what there are records of."""
    grid, two = having(records, task="grid"), having(records, task="threads")
    made = {
        "Targets": (target_table, records),
        "lorsum, one thread": (_own, grid),
        "Competitors, one thread": (_others, grid),
        "lorsum, two threads": (_own, two),
        "Competitors, two threads": (_others, two),
        "Roofline": (_roofline, grid + two),
        "Many adapters": (_batches, having(records, task="batch")),
        "Overheads": (_overheads, having(records, task="overhead")),
        "Memory": (_memory, having(records, task="memory")),
    }
    return {title: written(chosen) for title, (written, chosen) in made.items() if chosen}


def target_table(records: list[dict]) -> str:
    """The targets, each with pass or miss."""
    rows = []
    for target, outcome in outcomes(records):
        if outcome is None:
            rows.append([target.what, target.wanted, "–", "not measured", ""])
        else:
            verdict = "pass" if outcome.passed else "**miss**"
            rows.append([target.what, target.wanted, f"{outcome.value:.3g}", verdict, outcome.note])
    return markdown(["against", "target", "measured", "", "cases"], rows)


def _opening(records):
    return (
        f"{provenance('python -m analysis benchmarks', records[-1]['environment'])} "
        "What was tried, what helped and what did not: [speed notes](speed-notes.md).\n\n"
        "The target is W − ηG − ηαM, W and M of rank r and G of rank R, so that the stacked rank is R + 2r. Times are "
        "medians of interleaved rounds, ratios medians of the ratios round by round. Behind each time stands the "
        "excess ‖W − X‖ / ‖W − W_r‖ − 1 over the truncated SVD W_r; two answers are equally accurate where their "
        "errors differ by less than ε‖W‖, and a faster answer that is less accurate does not count. All iterations "
        "start with V, as Listing 1 does. R above min(m, n) is a batch larger than the layer. –: predicted to take "
        "too long, or not part of the case."
    )


_CASE = ("m × n", "r", "R", "dtype")


def _case(record):
    config = record["config"]
    m, n = config["shape"]
    return [f"{m} × {n}", config["rank"], config["gradient_rank"], config["dtype"]]


def _own(records):
    rows = [[*_case(record), *(_cell(record, name) for name in OWN), _picked(record)] for record in records]
    return markdown([*_CASE, *OWN, "`auto` at K = 8"], rows)


def _others(records):
    """With the ratio to our time at the same K; baselines against the fastest of ours that is as accurate."""
    rows = [[*_case(record), *(_cell(record, name, _partner(record, name)) for name in OTHERS)] for record in records]
    return "(× own): against lorsum at the same K, or at K = 1.\n\n" + markdown([*_CASE, *OTHERS], rows)


def _partner(record, name):
    return record["results"]["seconds"][PARTNER.get(name, "auto K=1")]


def _cell(record, name, partner=None):
    """The time, how many times longer than the partner's it is, and the excess."""
    results = record["results"]
    seconds = results["seconds"].get(name)
    if seconds is None:
        return "–"
    times = "" if partner is None else f" ({ratio(seconds, partner):.1f} ×)"
    excess = f", {results['excess'][name]:.0e}" if name in results["excess"] else ""
    return duration(median(seconds)) + times + excess


def _picked(record):
    return record["results"]["picked"].get("8") or "another way"


def _roofline(records):
    iterations = list(records[0]["results"]["limit"])
    rows = []
    for record in records:
        results, case = record["results"], Case.of(record["config"])
        rates = f"{results['bandwidth'] / 1e9:.1f}", f"{results['products'] / 1e9:.0f}"
        compared = ((median(results["seconds"][f"auto K={K}"]), results["limit"][K]) for K in iterations)
        shares = [f"{duration(taken)} / {duration(least)} = {taken / least:.1f}" for taken, least in compared]
        factors = size(case.factor_numbers * case.itemsize)
        rows.append([*_case(record), record["config"]["threads"], factors, *rates, *shares])
    said = (
        "Time over the larger of bytes / bandwidth and operations / rate, measured beside it on as much memory; the "
        "model is described in `analysis/benchmarks/kernels/roofline.py`.\n\n"
    )
    header = [*_CASE, "threads", "factors", "GB/s", "GF/s", *(f"K = {K}" for K in iterations)]
    return said + markdown(header, rows)


def _batches(records):
    rows = []
    for record in records:
        seconds, config = record["results"]["seconds"], record["config"]
        for K in (1, 8):
            batch, loop, listing = (seconds[f"{name} K={K}"] for name in ("batch", "loop", "Listing 1"))
            rows.append([config["adapters"], *_case(record), config["threads"], K, duration(median(batch)),
                         f"{duration(median(loop))} ({ratio(loop, batch):.1f} ×)",
                         f"{duration(median(listing))} ({ratio(listing, batch):.1f} ×)",
                         f"{record['results']['apart']:.0e}"])  # fmt: skip
    header = ["adapters", *_CASE, "threads", "K", "one call", "a loop", "a loop of Listing 1", "batch against loop"]
    return markdown(header, rows)


def _overheads(records):
    seconds = {name: taken for record in records for name, taken in record["results"]["seconds"].items()}
    return markdown(["call", "time"], [[f"`{name}`", duration(median(taken))] for name, taken in seconds.items()])


def _memory(records):
    """Peaks as multiples of the factors of W, G and M."""
    rows = []
    for record in records:
        case, results = Case.of(record["config"]), record["results"]
        factors = case.factor_numbers * case.itemsize
        for name in results["temporaries"]:
            peaks = (results[entry][name] for entry in ("temporaries", "total", "resident"))
            rows.append([*_case(record), size(factors), f"{case.m * case.n / case.factor_numbers:.1f}", name,
                         *("–" if peak is None else f"{peak / factors:.2f}" for peak in peaks)])  # fmt: skip
    said = (
        "In multiples of the factors' size: the temporaries of a call beyond its inputs and result as NumPy reports "
        "them, the same with the result, and how much the process grew in another call, which shows compiled code and "
        "BLAS too. The matrix itself would be the multiple in its column.\n\n"
    )
    header = [*_CASE, "factors", "the matrix", "call", "temporaries", "with the result", "process"]
    return said + markdown(header, rows)

"""The benchmark's page, written from its records."""

from analysis.benchmarks.kernels.problems import Case
from analysis.benchmarks.kernels.targets import outcomes
from analysis.benchmarks.recording import provenance
from analysis.experiments.tables import duration, markdown, size
from analysis.experiments.timing import median, ratio

__all__ = ["page", "sections", "target_table"]

OWN = ("auto K=1", "auto K=2", "auto K=8", "direct K=1", "direct K=8", "coefficients K=1", "coefficients K=8",
       "Krylov K=2", "Krylov K=8", "factored")  # fmt: skip
OTHERS = ("Listing 1 K=1", "Listing 1 K=8", "form the matrix", "torch.svd_lowrank", "randomized_svd", "svds",
          "dense SVD")  # fmt: skip
PARTNER = {"Listing 1 K=1": "auto K=1", "Listing 1 K=8": "auto K=8"}


def page(records: list[dict]) -> str:
    """The page as Markdown."""
    parts = [f"# Benchmarks\n\n{_opening(records)}\n"]
    for title, text in sections(records).items():
        parts.append(f"## {title}\n\n{text}\n")
    return "\n".join(parts)


def sections(records: list[dict]) -> dict[str, str]:
    """Title → text, of what there are records of."""
    tasks = {}
    for record in records:
        tasks.setdefault(record["config"]["task"], []).append(record)
    grid, two = tasks.get("grid", []), tasks.get("threads", [])
    made = {
        "Targets": target_table(records),
        "Growth": "![Time against m + n, R, r and K](benchmarks-growth.png)" if grid else "",
        "Accuracy against time": "![Excess against time](benchmarks-accuracy.png)" if grid else "",
        "lorsum, one thread": grid and _own(grid),
        "Competitors, one thread": grid and _others(grid),
        "lorsum, two threads": two and _own(two),
        "Competitors, two threads": two and _others(two),
        "Roofline": _roofline(grid + two),
        "Many adapters": _batches(tasks.get("batch", [])),
        "Overheads": _overheads(tasks.get("overhead", [])),
        "Memory": _memory(tasks.get("memory", [])),
    }
    return {title: text for title, text in made.items() if text}


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


def _own(records):
    rows = [[*_case(record), *(_cell(record, name) for name in OWN), _picked(record)] for record in records]
    return markdown([*_CASE, *OWN, "`auto` at K = 8"], rows)


def _others(records):
    """With the ratio to our time at the same K; baselines against the fastest of ours that is as accurate."""
    rows = [[*_case(record), *(_cell(record, name, ours=True) for name in OTHERS)] for record in records]
    return "(× own): against lorsum at the same K, or at K = 1.\n\n" + markdown([*_CASE, *OTHERS], rows)


_CASE = ("m × n", "r", "R", "dtype")


def _case(record):
    config = record["config"]
    m, n = config["shape"]
    return [f"{m} × {n}", config["rank"], config["gradient_rank"], config["dtype"]]


def _cell(record, name, ours=False):
    results = record["results"]
    seconds = results["seconds"].get(name)
    if seconds is None:
        return "–"
    text = duration(median(seconds))
    if ours:
        text += f" ({ratio(seconds, results['seconds'][PARTNER.get(name, 'auto K=1')]):.1f} ×)"
    return text + (f", {results['excess'][name]:.0e}" if name in results["excess"] else "")


def _picked(record):
    return record["results"]["picked"].get("8") or "another way"


def _roofline(records):
    rows = []
    for record in records:
        results = record["results"]
        case = Case.of(record["config"])
        row = [*_case(record), record["config"]["threads"], size(case.factor_numbers * case.itemsize)]
        row += [f"{results['bandwidth'] / 1e9:.1f}", f"{results['products'] / 1e9:.0f}"]
        for K, least in results["limit"].items():
            taken = median(results["seconds"][f"auto K={K}"])
            row.append(f"{duration(taken)} / {duration(least)} = {taken / least:.1f}")
        rows.append(row)
    header = [*_CASE, "threads", "factors", "GB/s", "GF/s"]
    model = (
        "Time over the larger of bytes / bandwidth and operations / rate, measured beside it on as much memory; the "
        "model is described in `analysis/benchmarks/kernels/roofline.py`."
    )
    return f"{model}\n\n{markdown([*header, *(f'K = {K}' for K in records[0]['results']['limit'])], rows)}" if rows else ""


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
    return markdown(header, rows) if rows else ""


def _overheads(records):
    rows = [
        [f"`{name}`", duration(median(values))] for r in records for name, values in r["results"]["seconds"].items()
    ]
    return markdown(["call", "time"], rows) if rows else ""


def _memory(records):
    """Peaks as multiples of the factors of W, G and M."""
    rows = []
    for record in records:
        case, results = Case.of(record["config"]), record["results"]
        factors = case.factor_numbers * case.itemsize
        for name, temporaries in results["temporaries"].items():
            peaks = [results[entry][name] for entry in ("total", "resident")]
            rows.append([*_case(record), size(factors), f"{case.m * case.n / case.factor_numbers:.1f}", name,
                         f"{temporaries / factors:.2f}",
                         *("–" if peak is None else f"{peak / factors:.2f}" for peak in peaks)])  # fmt: skip
    said = (
        "In multiples of the factors' size: the temporaries of a call beyond its inputs and result as NumPy reports "
        "them, the same with the result, and how much the process grew in another call, which shows compiled code and "
        "BLAS too. The matrix itself would be the multiple in its column.\n\n"
    )
    header = [*_CASE, "factors", "the matrix", "call", "temporaries", "with the result", "process"]
    return said + markdown(header, rows) if rows else ""

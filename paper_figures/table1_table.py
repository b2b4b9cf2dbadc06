"""The MNIST column of Table 1 beside the paper's, and sentences that are computed from the records."""

import math

import numpy as np

from analysis.experiments.records import Record
from analysis.experiments.tables import Cell, Table, mean_std, short, words
from paper_figures.accuracy import average, estimate, last, papers_average
from paper_figures.curves import MethodRuns, methods
from paper_figures.studies import is_papers, stated

__all__ = ["name", "in_column", "table"]

_BEYOND = 2  # combined standard deviations


def name(method: MethodRuns) -> str:
    """As in the legends; how A starts is told where it is not as in the column."""
    return method.name if in_column(method) else f"{method.name}, A uniform"


def in_column(method: MethodRuns) -> bool:
    """True for a method of the column; False for one more run of it, with A uniform at first."""
    return method.config["init"] != "uniform"


def table(records: list[Record]) -> Table:
    compared = methods(records)
    sentences = [*_of_differences(compared, records), _of_order(compared), _of_time(compared)]
    title = "Table 1, MNIST: LeNet5's test accuracy (%) averaged over the epochs, mean ± standard deviation over seeds"
    return Table(title, [_row(method) for method in compared], sentences)


def _row(method):
    ours, paper = average(method), papers_average(method)
    row = {
        "method": words(name(method)),
        "average over epochs": mean_std(*ours),
        "last epoch": mean_std(*estimate(last(method))),
    }
    if paper is not None:
        row["paper's average"] = mean_std(*paper)
        row["difference"] = Cell(f"{ours.value - paper.value:+.2f}", {"": ours.value - paper.value})
        if not math.isnan(ours.std):
            row["in combined std"] = Cell(f"{_deviations(ours, paper):+.1f}", {"": _deviations(ours, paper)})
    return row


def _deviations(ours, paper):
    """The difference in units of √(s₁² + s₂²)."""
    return (ours.value - paper.value) / math.hypot(ours.std, paper.std)


def _of_differences(compared, records):
    if not is_papers(records):
        yield f"This is {stated(records)}: its averages are not the paper's, and no difference is judged."
        return
    papers = ((method, papers_average(method)) for method in compared)
    measured = {name(method): (average(method), value) for method, value in papers if value is not None}
    beyond = {method: pair for method, pair in measured.items() if abs(_deviations(*pair)) > _BEYOND}
    for method, (ours, paper) in beyond.items():
        yield (
            f"{method} differs from the paper by more than two combined standard deviations √(s₁² + s₂²): "
            f"{ours.value:.2f} ± {ours.std:.2f} against {paper.value:.2f} ± {paper.std:.2f}."
        )
    rest = len(measured) - len(beyond)
    yield f"{rest} of {len(measured)} rows are within two combined standard deviations of the paper."


def _of_order(compared):
    averages = {name(method): average(method).value for method in compared}
    adapters = {method: mean for method, mean in averages.items() if not method.startswith("full")}
    best_first = sorted(adapters, key=lambda method: adapters[method], reverse=True)
    ranked = ", ".join(f"{method} {adapters[method]:.2f}" for method in best_first)
    return f"From the best to the worst, full training ({averages['full']:.2f}) apart: {ranked}."


def _of_time(compared):
    seconds = {method.name: float(np.min(method.values("seconds"))) for method in compared if in_column(method)}
    base = seconds.pop("LoRA SGD")
    ratios = ", ".join(f"{method} {short(value / base)}" for method, value in seconds.items())
    return f"An epoch's steps, the fastest of each method, take this many times LoRA SGD's {short(base)} s: {ratios}."

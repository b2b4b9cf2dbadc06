"""The MNIST column of Table 1 beside the paper's, and sentences that are computed from the records."""

import math

import numpy as np

from paper_figures import mnist_table
from paper_figures.curves import methods
from paper_figures.protocol import is_papers, stated
from paper_figures.tables import Cell, Table, short, spread, words

__all__ = ["average", "name", "in_column", "published", "table"]

_BEYOND = 2  # combined standard deviations


def published(config):
    """The paper's value for a method; None for full training by AdamW, which its table leaves out."""
    return None if config["method"] == "full adamw" else mnist_table.published(config)


def name(method):
    """As in the legends; how A starts is told where it is not as in the column."""
    return method.name if in_column(method) else f"{method.name}, A uniform"


def in_column(method):
    """True for a method of the column; False for one more run of it, with A uniform at first."""
    return method.config["init"] != "uniform"


def average(method):
    """Mean and standard deviation over the seeds of the accuracy averaged over the epochs, in per cent."""
    return _over_seeds(100 * method.values("accuracy").mean(axis=1))


def table(records):
    compared = methods(records)
    sentences = [*_of_differences(compared, records), _of_order(compared), _of_time(compared)]
    title = "Table 1, MNIST: LeNet5's test accuracy (%) averaged over the epochs, mean ± standard deviation over seeds"
    return Table(title, [_row(method) for method in compared], sentences)


def _row(method):
    ours, paper = average(method), published(method.config)
    row = {
        "method": words(name(method)),
        "average over epochs": _spread(ours),
        "last epoch": _spread(_over_seeds(100 * method.values("accuracy")[:, -1])),
    }
    if paper is not None:
        row["paper's average"] = spread(*paper)
        row["difference"] = Cell(f"{ours.mean - paper.mean:+.2f}", {"": ours.mean - paper.mean})
        if not math.isnan(ours.std):
            row["in combined std"] = Cell(f"{_deviations(ours, paper):+.1f}", {"": _deviations(ours, paper)})
    return row


def _spread(value):
    """Without a standard deviation where there is one seed."""
    return Cell(f"{value.mean:.2f}", {"": value.mean}) if math.isnan(value.std) else spread(*value)


def _over_seeds(values):
    return mnist_table.Published(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan)


def _deviations(ours, paper):
    """The difference in units of √(s₁² + s₂²)."""
    return (ours.mean - paper.mean) / math.hypot(ours.std, paper.std)


def _of_differences(compared, records):
    if not is_papers(records):
        yield f"This is {stated(records)}: its averages are not the paper's, and no difference is judged."
        return
    measured = {name(m): (average(m), published(m.config)) for m in compared if published(m.config) is not None}
    beyond = {method: pair for method, pair in measured.items() if abs(_deviations(*pair)) > _BEYOND}
    for method, (ours, paper) in beyond.items():
        yield (
            f"{method} differs from the paper by more than two combined standard deviations √(s₁² + s₂²): "
            f"{ours.mean:.2f} ± {ours.std:.2f} against {paper.mean:.2f} ± {paper.std:.2f}."
        )
    rest = len(measured) - len(beyond)
    yield f"{rest} of {len(measured)} rows are within two combined standard deviations of the paper."


def _of_order(compared):
    averages = {name(method): average(method).mean for method in compared}
    adapters = {method: mean for method, mean in averages.items() if not method.startswith("full")}
    ranked = ", ".join(
        f"{method} {adapters[method]:.2f}" for method in sorted(adapters, key=adapters.get, reverse=True)
    )
    return f"From the best to the worst, full training ({averages['full']:.2f}) apart: {ranked}."


def _of_time(compared):
    seconds = {method.name: float(np.min(method.values("seconds"))) for method in compared if in_column(method)}
    base = seconds.pop("LoRA SGD")
    ratios = ", ".join(f"{method} {short(value / base)}" for method, value in seconds.items())
    return f"An epoch's steps, the fastest of each method, take this many times LoRA SGD's {short(base)} s: {ratios}."

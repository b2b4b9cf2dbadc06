"""The MNIST column of Table 1 beside the paper's, and sentences that are computed from the records."""

import math

import numpy as np

from paper_figures import mnist_table
from paper_figures.curves import methods
from paper_figures.protocol import is_papers, stated
from paper_figures.tables import Cell, Table, short, spread, words

__all__ = ["average", "published", "table"]

_BEYOND = 2  # combined standard deviations


def published(config):
    """The paper's value for a method; None for full training by AdamW, which its table leaves out."""
    return None if config["method"] == "full adamw" else mnist_table.published(config)


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
        "method": words(method.name),
        "average over epochs": spread(*ours),
        "last epoch": spread(*_over_seeds(100 * method.values("accuracy")[:, -1])),
    }
    if paper is not None:
        row["paper's average"] = spread(*paper)
        row["difference"] = Cell(f"{ours.mean - paper.mean:+.2f}", {"": ours.mean - paper.mean})
        row["in combined std"] = Cell(f"{_deviations(ours, paper):+.1f}", {"": _deviations(ours, paper)})
    return row


def _over_seeds(values):
    return mnist_table.Published(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan)


def _deviations(ours, paper):
    """The difference in units of √(s₁² + s₂²)."""
    return (ours.mean - paper.mean) / math.hypot(ours.std, paper.std)


def _of_differences(compared, records):
    if not is_papers(records):
        yield f"This is {stated(records)}: its averages are not the paper's, and no difference is judged."
        return
    measured = {m.name: (average(m), published(m.config)) for m in compared if published(m.config) is not None}
    beyond = {name: pair for name, pair in measured.items() if abs(_deviations(*pair)) > _BEYOND}
    for name, (ours, paper) in beyond.items():
        yield (
            f"{name} differs from the paper by more than two combined standard deviations √(s₁² + s₂²): "
            f"{ours.mean:.2f} ± {ours.std:.2f} against {paper.mean:.2f} ± {paper.std:.2f}."
        )
    rest = len(measured) - len(beyond)
    yield f"{rest} of {len(measured)} methods are within two combined standard deviations of the paper."


def _of_order(compared):
    averages = {method.name: average(method).mean for method in compared}
    adapters = {name: mean for name, mean in averages.items() if not name.startswith("full")}
    ranked = ", ".join(f"{name} {adapters[name]:.2f}" for name in sorted(adapters, key=adapters.get, reverse=True))
    return f"From the best to the worst, full training ({averages['full']:.2f}) apart: {ranked}."


def _of_time(compared):
    seconds = {method.name: float(np.min(method.values("seconds"))) for method in compared}
    base = seconds["LoRA SGD"]
    ratios = ", ".join(f"{name} {short(value / base)}" for name, value in seconds.items() if name != "LoRA SGD")
    return f"An epoch's steps, the fastest of each method, take this many times LoRA SGD's {short(base)} s: {ratios}."

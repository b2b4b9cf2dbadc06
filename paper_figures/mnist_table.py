"""The numbers of the MNIST figure beside the paper's, and sentences that are computed from the records."""

from typing import NamedTuple

import numpy as np

from paper_figures.curves import methods
from paper_figures.tables import Table, number, short, spread, words

__all__ = ["published", "table"]

_HALF_A_POINT = 0.5


class Published(NamedTuple):
    """Accuracy averaged over the epochs, in per cent."""

    mean: float
    std: float


# Table 1, column MNIST: LeNet5, 20 epochs, 3 seeds
_TABLE_1 = {
    ("lora sgd", None): Published(98.27, 0.069),
    ("lora adamw", None): Published(98.18, 0.088),
    ("preconditioned sgd", None): Published(98.55, 0.144),
    ("preconditioned adamw", None): Published(98.32, 0.056),
    ("projected oplora", 1): Published(98.53, 0.098),
    ("projected oplora", 2): Published(98.51, 0.062),
    ("projected oplora", 8): Published(98.54, 0.118),
    ("oplora", 1): Published(98.58, 0.106),
    ("oplora", 2): Published(98.55, 0.100),
    ("oplora", 8): Published(98.56, 0.134),
    ("svdlora", None): Published(98.52, 0.074),
    ("full", None): Published(98.77, 0.111),
}


def published(config):
    """The paper's value for a method."""
    return _TABLE_1[config["method"], config.get("iters")]


def table(records):
    compared = {method.name: method for method in methods(records)}
    base = _seconds(compared["LoRA SGD"])
    rows = [_row(method, base) for method in compared.values()]
    sentences = [*_of_svdlora(compared), _of_lora(compared), _of_best(compared), _of_time(compared)]
    return Table("MNIST: test accuracy (%), mean ± standard deviation over seeds", rows, sentences)


def _row(method, base):
    return {
        "method": words(method.name),
        "average over epochs": _spread(_average(method)),
        "last epoch": _spread(100 * method.values("accuracy")[:, -1]),
        "training loss, last epoch": number(method.values("loss")[:, -1].mean()),
        "fastest epoch, s": number(_seconds(method)),
        "× LoRA SGD": number(_seconds(method) / base),
        "paper's average (LeNet5, 20 epochs)": spread(*published(method.config)),
    }


def _average(method):
    """Accuracy averaged over the epochs in per cent, for each seed."""
    return 100 * method.values("accuracy").mean(axis=1)


def _seconds(method):
    """Of an epoch's steps alone: the fastest one, which compilation and whatever else ran have slowed least."""
    return float(method.values("seconds").min())


def _spread(values):
    return spread(values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan)


def _of_svdlora(compared):
    """How OPLoRA ×1 compares with SVDLoRA: the seeds give both the same network, data and order."""
    difference = _average(compared["OPLoRA ×1"]) - _average(compared["SVDLoRA"])
    within = abs(difference.mean()) <= _HALF_A_POINT
    yield (
        f"OPLoRA ×1 and SVDLoRA are {'within' if within else 'not within'} half a point of each other: the difference "
        f"of their averages is {_spread(difference).text} points, paired by seed."
    )


def _of_lora(compared):
    lora = _average(compared["LoRA SGD"]).mean()
    averages = {name: _average(compared[name]).mean() for name in ("OPLoRA ×1", "SVDLoRA")}
    behind = [
        f"{name} falls {lora - average:.2f} points short" for name, average in averages.items() if average <= lora
    ]
    above = " and ".join(f"{name} by {average - lora:.2f}" for name, average in averages.items() if average > lora)
    if behind:
        return f"Not both of OPLoRA ×1 and SVDLoRA are above LoRA SGD ({lora:.2f}%): {' and '.join(behind)}."
    return f"OPLoRA ×1 and SVDLoRA are both above LoRA SGD ({lora:.2f}%), in points: {above}."


def _of_best(compared):
    averages = {name: _average(method).mean() for name, method in compared.items() if name != "full"}
    best = max(averages, key=averages.get)
    return f"The best average, full training apart, is {best}'s: {averages[best]:.2f}%."


def _of_time(compared):
    base = _seconds(compared["LoRA SGD"])
    names = ("OPLoRA ×1", "OPLoRA ×2", "SVDLoRA")
    ratios = ", ".join(f"{name} {short(_seconds(compared[name]) / base)}" for name in names)
    return (
        "The steps of an epoch, the fastest of each method since all else that ran slowed the others, take this many "
        f"times LoRA SGD's {short(base)} s: {ratios}."
    )

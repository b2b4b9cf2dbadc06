"""Accuracies on MNIST: averaged over the epochs, as in the paper, and on an axis that tells the good ones apart."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from lorsum.typing import Array
from paper_figures.curves import Curve, MethodRuns
from paper_figures.published import Estimate, published

__all__ = ["OURS", "PAPERS", "average", "averages", "estimate", "extent", "last", "papers_average", "stretch"]

OURS = {"color": "0.3", "marker": "o", "markersize": 5, "linestyle": "none"}  # marks, as arguments of ``plot``
PAPERS = {"color": "0.4", "marker": "D", "markersize": 4, "fillstyle": "none", "linestyle": "none"}
_APART = {"x": 0.06, "y": 0.03}  # labels of ticks, as a part of the axis
_TICKS = [99.5, 99, 98.5, 98, 97, 96, 95, 94, 92, 90, 85, 80, 70, 50, 10]


def averages(method: MethodRuns) -> Array:
    """Accuracy averaged over the epochs in per cent, for each seed."""
    return 100 * method.values("accuracy").mean(axis=1)


def average(method: MethodRuns) -> Estimate:
    """Mean and standard deviation over the seeds of the accuracy averaged over the epochs, in per cent."""
    return estimate(averages(method))


def papers_average(method: MethodRuns) -> Estimate | None:
    """The paper's, with LeNet5, 20 epochs, 3 seeds; None for full training by AdamW, which its table leaves out."""
    return published(method.config, "MNIST", "average test accuracy (%)")


def last(method: MethodRuns) -> Array:
    """Accuracy after the last epoch in per cent, for each seed."""
    return 100 * method.values("accuracy")[:, -1]


def estimate(values: Array) -> Estimate:
    """Mean and standard deviation over the seeds."""
    return Estimate(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan)


def extent(curves: Sequence[Curve]) -> tuple[float, float]:
    """Smallest and largest value of the curves, their bands included."""
    return min(curve.y.low.min() for curve in curves), max(curve.y.high.max() for curve in curves)


def stretch(axis: Axes, low: float, high: float, which: str = "y") -> None:
    """Accuracies between two on the scale of the logarithm of the error, which tells the good ones apart."""
    functions = (lambda y: -np.log(np.maximum(100 - y, 1e-2)), lambda z: 100 - np.exp(-z))
    limits = 100 - 1.1 * (100 - low), 100 - 0.9 * (100 - high)
    start, end = map(functions[0], limits)
    ticks: list[float] = []
    for tick in _TICKS:  # so far apart that labels do not touch
        far = not ticks or functions[0](ticks[-1]) - functions[0](tick) > _APART[which] * (end - start)
        if low <= tick <= high and far:
            ticks.append(tick)
    getattr(axis, f"set_{which}scale")("function", functions=functions)
    axis.set(**{f"{which}lim": limits, f"{which}ticks": ticks})

"""MNIST: test accuracy, training loss, and the accuracy averaged over the epochs beside the paper's Table 1."""

import numpy as np

from paper_figures import mnist_table
from paper_figures.curves import BOOTSTRAP, Curve, median_interval, methods
from paper_figures.files import Product
from paper_figures.protocol import stated
from paper_figures.style import appearance, draw_curve, keys_of, sheet

__all__ = ["STUDIES", "extent", "make", "stretch"]

STUDIES = ("mnist",)
_MEAN = {"color": "0.3", "marker": "o", "markersize": 5, "linestyle": "none"}
_PAPER = {"color": "0.4", "marker": "D", "markersize": 4, "fillstyle": "none", "linestyle": "none"}
_APART = {"x": 0.06, "y": 0.03}  # labels of ticks, as a part of the axis
_TICKS = np.array([10, 50, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.5])


def make(records):
    """The figure from MNIST's records."""
    records = records["mnist"]
    compared, caption = methods(records), _caption(records)
    keys = keys_of(compared) | {"right panel": {"mean over the seeds (|)": _MEAN, "paper: LeNet5, 20 epochs": _PAPER}}
    figure, axes = sheet(1, (0.55, 0.6, 1.5), keys, caption, width=11, panel_height=2.9)
    accuracy = [_curve("test accuracy (%)", method, 100 * method.values("accuracy")) for method in compared]
    loss = [_curve("training loss", method, method.values("loss")) for method in compared]
    for axis, curves in zip(axes[0], (accuracy, loss), strict=False):
        _draw(axis, curves)
    stretch(axes[0, 0], *extent(accuracy))
    axes[0, 1].set_yscale("log")
    _compare(axes[0, 2], compared)
    return Product(figure, caption, mnist_table.table(records), accuracy + loss)


def _curve(quantity, method, values):
    return Curve(quantity, quantity, method, np.arange(1, values.shape[1] + 1), median_interval(values))


def _draw(axis, curves):
    for curve in curves:
        draw_curve(axis, curve, marker=".")
    axis.set(title=curves[0].quantity, xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)


def extent(curves):
    """Smallest and largest value of the curves, their bands included."""
    return min(curve.y.low.min() for curve in curves), max(curve.y.high.max() for curve in curves)


def stretch(axis, low, high, which="y"):
    """Accuracies between two on the scale of the logarithm of the error, which tells the good ones apart."""
    functions = (lambda y: -np.log(np.maximum(100 - y, 1e-2)), lambda z: 100 - np.exp(-z))
    limits = 100 - 1.1 * (100 - low), 100 - 0.9 * (100 - high)
    start, end = map(functions[0], limits)
    ticks: list = []
    for tick in sorted(_TICKS, reverse=True):  # so far apart that labels do not touch
        far = not ticks or functions[0](ticks[-1]) - functions[0](tick) > _APART[which] * (end - start)
        if low <= tick <= high and far:
            ticks.append(tick)
    getattr(axis, f"set_{which}scale")("function", functions=functions)
    axis.set(**{f"{which}lim": limits, f"{which}ticks": ticks})


def _compare(axis, compared):
    """Accuracy averaged over the epochs: each seed, their mean, and what the paper has for its network."""
    for y, method in enumerate(compared):
        average = 100 * method.values("accuracy").mean(axis=1)
        color = appearance(method.config)["color"]
        axis.plot(average, np.full(len(average), y), "|", color=color, markersize=7)
        axis.plot(average.mean(), y, **(_MEAN | {"color": color}))
        axis.plot(mnist_table.published(method.config).mean, y, **_PAPER)
    axis.set(title="test accuracy averaged over the epochs (%)", yticks=range(len(compared)))
    axis.set_yticklabels([method.name for method in compared])
    axis.invert_yaxis()


def _caption(records):
    return (
        f"MNIST by LeNet-300-100, frozen random weights with adapters of rank 8 on every layer and trained biases: "
        f"{stated(records)}. Data: {records[0]['config']['data']}. Lines: median over the seeds; bands: {BOOTSTRAP}. "
        "The paper's column of Table 1 is another network's, LeNet5 (convolutions trained) over 20 epochs: compare "
        "the order of the methods, not the numbers. Learning rates are the paper's for LeNet5."
    )

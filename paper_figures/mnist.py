"""MNIST: test accuracy, training loss, and the accuracy averaged over the epochs beside the paper's Table 1."""

import numpy as np

from analysis.experiments.records import Record
from analysis.experiments.style import appearance
from paper_figures import mnist_table
from paper_figures.accuracy import OURS, PAPERS, averages, extent, papers_average, stretch
from paper_figures.curves import BOOTSTRAP, Curve, median_interval, methods
from paper_figures.drawing import Drawing
from paper_figures.sheet import draw_curve, keys_of, sheet
from paper_figures.studies import stated

__all__ = ["STUDIES", "make"]

STUDIES = ("mnist",)


def make(records: dict[str, list[Record]]) -> Drawing:
    """The figure from MNIST's records."""
    runs = records["mnist"]
    compared, caption = methods(runs), _caption(runs)
    keys = keys_of(compared) | {"right panel": {"mean over the seeds (|)": OURS, "paper: LeNet5, 20 epochs": PAPERS}}
    figure, axes = sheet(1, (0.55, 0.6, 1.5), keys, caption, width=11, panel_height=2.9)
    accuracy = [_curve("test accuracy (%)", method, 100 * method.values("accuracy")) for method in compared]
    loss = [_curve("training loss", method, method.values("loss")) for method in compared]
    for axis, curves in zip(axes[0], (accuracy, loss), strict=False):
        _draw(axis, curves)
    stretch(axes[0, 0], *extent(accuracy))
    axes[0, 1].set_yscale("log")
    _compare(axes[0, 2], compared)
    return Drawing(figure, caption, mnist_table.table(runs), accuracy + loss)


def _curve(quantity, method, values):
    return Curve(quantity, quantity, method, np.arange(1, values.shape[1] + 1), median_interval(values))


def _draw(axis, curves):
    for curve in curves:
        draw_curve(axis, curve, marker=".")
    axis.set(title=curves[0].quantity, xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)


def _compare(axis, compared):
    """Accuracy averaged over the epochs: each seed, their mean, and what the paper has for its network."""
    for y, method in enumerate(compared):
        values = averages(method)
        color = appearance(method.config)["color"]
        axis.plot(values, np.full(len(values), y), "|", color=color, markersize=7)
        axis.plot(values.mean(), y, **(OURS | {"color": color}))
        if (papers := papers_average(method)) is not None:
            axis.plot(papers.value, y, **PAPERS)
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

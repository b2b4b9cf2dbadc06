"""Table 1, column MNIST: LeNet5's test accuracy averaged over the epochs, beside the paper's numbers (on request)."""

import numpy as np

from analysis.experiments.records import Record
from analysis.experiments.style import appearance
from paper_figures import table1_table
from paper_figures.accuracy import OURS, PAPERS, average, extent, papers_average, stretch
from paper_figures.curves import BOOTSTRAP, Curve, median_interval, methods
from paper_figures.drawing import Drawing
from paper_figures.sheet import draw_curve, keys_of, sheet
from paper_figures.studies import stated

__all__ = ["STUDIES", "make"]

STUDIES = ("lenet5",)
_APART = 0.17  # of the two marks in a row


def make(records: dict[str, list[Record]]) -> Drawing:
    """The figure from LeNet5's records."""
    runs = records["lenet5"]
    compared, caption = methods(runs), _caption(runs)
    keys = keys_of(compared) | {"right panel": {"ours: mean ± std": OURS, "paper: mean ± std": PAPERS}}
    figure, axes = sheet(1, (0.55, 2.15), keys, caption, width=12, panel_height=3.1)
    curves = [_curve(method) for method in compared if table1_table.in_column(method)]
    for curve in curves:
        draw_curve(axes[0, 0], curve, marker=".")
    axes[0, 0].set(title="test accuracy (%)", xlabel="epoch")
    axes[0, 0].xaxis.get_major_locator().set_params(integer=True)
    stretch(axes[0, 0], *extent(curves))
    _compare(axes[0, 1], compared)
    return Drawing(figure, caption, table1_table.table(runs), curves)


def _curve(method):
    accuracy = 100 * method.values("accuracy")
    x = np.arange(1, accuracy.shape[1] + 1)
    return Curve("test accuracy (%)", "test accuracy (%)", method, x, median_interval(accuracy))


def _compare(axis, compared):
    """The averages and the paper's, each with its standard deviation over the seeds."""
    means = []
    for y, method in enumerate(compared):
        marks = [(average(method), -_APART, OURS | {"color": appearance(method.config)["color"]})]
        if (paper := papers_average(method)) is not None:
            marks.append((paper, _APART, PAPERS))
        for (mean, std), shift, look in marks:
            means.append(mean)
            axis.errorbar(mean, y + shift, xerr=np.nan_to_num(std), elinewidth=1, **look)
    stretch(axis, min(means), max(means), "x")
    axis.set(title="test accuracy averaged over the epochs (%)", yticks=range(len(compared)))
    axis.set_yticklabels([table1_table.name(method) for method in compared])
    axis.invert_yaxis()


def _caption(records):
    config = records[0]["config"]
    return (
        f"LeNet5, {stated(records)}; batches of {config['batch']}. The linear layers' weights are frozen and have "
        f"adapters of rank {config['rank']}, with B = 0 and A ~ N(0, 1) at first, or A uniform on ±1/√d_in where that "
        "is said; biases and convolutions are trained beside them, at the same rate. Learning rates are the paper's. "
        f"Data: {config['data']}, resized to 32 × 32. Equal seeds have the same network and order of the images for "
        f"all methods. Lines: median over the seeds; bands: {BOOTSTRAP}."
    )

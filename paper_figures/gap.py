"""How far each step lands from the truncated SVD of what it approximates, on the linear task and on MNIST."""

import numpy as np

from analysis.experiments.methods import label
from analysis.experiments.records import Record
from analysis.experiments.tables import Table, interval, short, words
from paper_figures.curves import Curve, median_interval, methods
from paper_figures.drawing import Drawing
from paper_figures.sheet import draw_curve, keys_of, sheet
from paper_figures.studies import stated

__all__ = ["STUDIES", "make"]

STUDIES = ("linear", "mnist")
_QUANTITIES = {"step_excess": "excess of the step", "step_missed": "share of the way missed"}
_COLUMNS = {"step_excess": "excess", "step_missed": "missed"}
_ROUNDING = 1e-14  # of the best loss
_CONVERGED = 1e-12  # of the best loss: from there a step has nowhere to go, and what it misses is rounding
_LOWEST = 1e-6  # that is shown


def make(records: dict[str, list[Record]]) -> Drawing:
    """The figure from the records of the linear task and of MNIST."""
    panels = _panels(records)
    caption = _caption(records)
    keys = keys_of([curve.method for curve in _flat(panels)])
    figure, axes = sheet(2, (0.75, 0.5, 0.5), keys, caption, width=10, panel_height=2.2)
    for column, (title, curves) in zip(axes.T, panels.items(), strict=True):
        for axis, entry in zip(column, _QUANTITIES, strict=True):
            _draw(axis, [curve for curve in curves if curve.quantity == _QUANTITIES[entry]])
        column[0].set_title(title)
        column[-1].set_xlabel("step" if title.startswith("MNIST") else "epoch (its last step)")
    for axis, quantity in zip(axes[:, 0], _QUANTITIES.values(), strict=True):
        axis.set_ylabel(quantity)
    return Drawing(figure, caption, _table(records), _flat(panels))


def _panels(records):
    """Title → curves of both quantities."""
    return {
        title: [
            _curve(title, entry, method, x)
            for entry in _QUANTITIES
            for method in compared
            if "momentum_rank" not in method.config
        ]
        for title, compared, x in _tasks(records)
    }


def _tasks(records):
    """Titles, methods that step by low-rank matrices, and the name of what their steps are counted by."""
    tasks = [
        ("Linear, full batch", methods(records["linear"], task="full batch"), "gap_epoch"),
        ("Linear, mini-batch", methods(records["linear"], task="mini-batch"), "gap_epoch"),
        ("MNIST, first layer", methods(records["mnist"]), "gap_step"),
    ]
    return [(title, [method for method in group if method.config["method"] != "full"], x) for title, group, x in tasks]


def _curve(title, entry, method, x):
    moving = _moving(method)
    values = method.values(entry)[:, moving]
    return Curve(title, _QUANTITIES[entry], method, method.values(x)[0][moving], median_interval(values))


def _moving(method):
    """Which of the measured steps had somewhere to go."""
    if method.config["study"] != "linear":
        return np.full(len(method.runs[0]["step_excess"]), True)
    before = method.values("excess")[:, method.values("gap_epoch")[0] - 1]
    return np.median(before / method.values("best")[:, None], axis=0) > _CONVERGED


def _draw(axis, curves):
    """SVDLoRA's is at rounding: the others, down to some value, set the limits."""
    medians = np.concatenate([curve.y.median for curve in curves if curve.method.config["method"] != "svdlora"])
    lowest = max(_LOWEST, 0.5 * medians.min())
    for curve in curves:
        draw_curve(axis, curve, lowest=lowest, band=False, **({"marker": "."} if len(curve.x) == 1 else {}))
    axis.set(yscale="log", ylim=(lowest, 2 * medians.max()))
    if curves[0].method.config["study"] == "linear":
        axis.set(xscale="log")
        axis.xaxis.set_major_formatter("{x:g}")


def _table(records):
    rows, sentences = [], []
    for title, compared, _ in _tasks(records):
        rows += [_row(title, method) for method in compared]
        sentences += [*_of_iterations(title, compared), _closest(title, compared)]
    title = "Gap: excess of the steps and share of the way they missed, median over seeds [95% interval]"
    return Table(title, rows, sentences)


def _row(title, method):
    row = {"task": words(title), "method": words(method.name)}
    for entry, column in _COLUMNS.items():
        values = method.values(entry)[:, _moving(method)]
        row[f"{column}, first step"] = interval(median_interval(values[:, 0]), 2)
        row[f"{column}, median step"] = interval(median_interval(np.median(values, axis=1)), 2)
    return row


def _missed(method):
    """Median over the steps and the seeds of the share of the way that was missed."""
    return float(np.median(method.values("step_missed")[:, _moving(method)]))


def _of_iterations(title, compared):
    for family in ("projected oplora", "oplora"):
        members = [m for m in compared if m.config["method"] == family and "momentum_rank" not in m.config]
        shares = ", ".join(f"{label(method.config)} {short(_missed(method), 2)}" for method in members)
        if members:
            yield f"{title}: share of the way missed, median over the steps: {shares}."


def _closest(title, compared):
    """Whether landing closest is what trains best."""
    low_rank = [method for method in compared if method.config["method"] != "svdlora"]
    closest = min(low_rank, key=_missed)
    if low_rank[0].config["study"] == "linear":
        measure, quality = "lowest median excess at the end", [-_final_excess(method) for method in low_rank]
    else:
        measure, quality = "highest average accuracy", [method.values("accuracy").mean() for method in low_rank]
    best = [method.name for method, value in zip(low_rank, quality, strict=True) if value == max(quality)]
    return f"{title}: SVDLoRA apart, {closest.name} misses least; the {measure} is that of {' and '.join(best)}."


def _final_excess(method):
    """Median over the seeds, relative to the best loss; what is at rounding is equal."""
    return max(float(np.median(method.values("excess")[:, -1] / method.values("best"))), _ROUNDING)


def _caption(records):
    source = records["mnist"][0]["config"]["data"]
    return (
        "How far a step W → W⁺ lands from the truncated SVD T of what it approximates, W − η M with the exact momentum "
        "M: the excess ‖W − η M − W⁺‖ / ‖W − η M − T‖ − 1, and the share of the way that it missed, ‖W⁺ − T‖ / ‖W − T‖ "
        "(0: on the truncated SVD; 1: as far from it as before the step). AdamW and LoRA SGD, which do not aim at it, "
        "are shown for comparison. Medians over the seeds; ▼: below the axis; steps from where the excess "
        f"loss was below {_CONVERGED:g} of the best loss are left out. Linear task: {stated(records['linear'])}. "
        f"MNIST, LeNet-300-100: {stated(records['mnist'])}; data: {source}."
    )


def _flat(panels):
    return [curve for curves in panels.values() for curve in curves]

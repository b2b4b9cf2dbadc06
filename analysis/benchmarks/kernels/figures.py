"""The page's figures: how time grows with m + n, R, r and K, and accuracy against time."""

import io

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis.benchmarks.kernels.competitors import parsed
from analysis.benchmarks.kernels.problems import Case
from analysis.benchmarks.recording import having
from analysis.experiments.style import RC
from analysis.experiments.timing import median

__all__ = ["accuracy_figure", "growth_figure"]

_LOOKS = {
    "auto": ("lorsum", "#08519c", "-", "o"),
    "direct": ("lorsum, direct", "#6baed6", "-", "."),
    "coefficients": ("lorsum, coefficients", "#2171b5", (0, (4, 1.2)), "."),
    "Krylov": ("lorsum, Krylov", "#007a5a", (0, (6, 1.5, 1, 1.5)), "^"),
    "factored": ("exact, factored", "black", (0, (7, 2)), "s"),
    "Listing 1": ("Listing 1, PyTorch", "#d95f02", (0, (4, 1.2)), "D"),
    "torch.svd_lowrank": ("torch.svd_lowrank", "#882255", (0, (1, 1)), "v"),
    "randomized_svd": ("randomized_svd", "#dd77aa", (0, (1, 1)), "<"),
    "svds": ("svds", "#999933", (0, (1, 2.2)), ">"),
    "dense SVD": ("dense SVD", "0.5", (0, (1, 2.2)), "P"),
}
_SMALLEST_EXCESS = 1e-16
_SHOWN = ((84, 120), (768, 768), (768, 3072), (4096, 4096))


def growth_figure(records: list[dict]) -> bytes | None:
    """Four panels as a PNG, or None where one of them has no record."""
    grid = having(records, task="grid", rank=8, dtype="float32")
    panels = [
        ("m + n", having(grid, gradient_rank=64), lambda case: case.m + case.n, "r = 8, R = 64"),
        ("R", having(grid, shape=[4096, 4096]), lambda case: case.gradient_rank, "4096², r = 8"),
        ("r", having(records, task="ranks"), lambda case: case.rank, "768 × 3072, R = 64"),
    ]
    iterations = having(records, task="iterations", shape=[4096, 4096])
    if not all(panel[1] for panel in panels) or not iterations:
        return None
    with rc_context(RC):
        figure = Figure(figsize=(10, 3.6))
        axes = figure.subplots(1, 4)
        for axis, (name, chosen, size, title) in zip(axes, panels, strict=False):
            _grow(axis, chosen, size, ("auto K=1", "factored", "Listing 1 K=1", "auto K=8", "Listing 1 K=8"))
            axis.set(xlabel=name, title=title)
            if name != "m + n":
                _ticks_at(axis, {size(Case.of(record["config"])) for record in chosen})
        _against_iterations(axes[3], iterations[0]["results"])
        axes[0].set_ylabel("time of a call, s")
        return _finished(figure, axes, "Hollow: K = 8; filled: K = 1.  float32, one thread, medians.")


def accuracy_figure(records: list[dict]) -> bytes | None:
    """Excess against time for some shapes as a PNG, or None where there is no record of one."""
    chosen = having(records, task="grid", rank=8, gradient_rank=64, dtype="float64")
    shown = {tuple(record["config"]["shape"]): record["results"] for record in chosen}
    if not all(shape in shown for shape in _SHOWN):
        return None
    with rc_context(RC):
        figure = Figure(figsize=(10, 3.6))
        axes = figure.subplots(1, len(_SHOWN), sharey=True)
        for axis, shape in zip(axes, _SHOWN, strict=True):
            _accuracy(axis, shown[shape])
            axis.set(title=f"{shape[0]} × {shape[1]}", xlabel="time of a call, s")
        axes[0].set_ylabel("excess ‖W − X‖ / ‖W − W_r‖ − 1")
        note = (
            f"Numbers: K. Below {_SMALLEST_EXCESS:g}, at the lower edge: rounding.  r = 8, R = 64, float64, one thread."
        )
        return _finished(figure, axes, note)


def _grow(axis, records, size, names):
    """Time against a size; K = 8 with hollow markers."""
    cases = [(size(Case.of(record["config"])), record["results"]["seconds"]) for record in records]
    cases.sort(key=lambda case: case[0])
    for name in names:
        if points := [(x, median(seconds[name])) for x, seconds in cases if name in seconds]:
            axis.plot(*np.transpose(points), **_look(name), fillstyle="none" if name.endswith("K=8") else "full")
    axis.set(xscale="log", yscale="log")


def _against_iterations(axis, results):
    curves: dict[str, list] = {}
    for name, seconds in results["seconds"].items():
        kind, iters = parsed(name)
        curves.setdefault(kind, []).append((iters, median(seconds)))
    for kind, points in curves.items():
        axis.plot(*np.transpose(sorted(points)), **_look(kind))
    axis.set(xscale="log", yscale="log", xlabel="K", title="4096², r = 8, R = 64")
    _ticks_at(axis, {x for points in curves.values() for x, _ in points})


def _ticks_at(axis, values):
    """Powers of two, where a logarithmic axis would write powers of ten."""
    axis.set_xticks(sorted(values), [str(value) for value in sorted(values)], minor=False)
    axis.set_xticks([], minor=True)


def _accuracy(axis, results):
    for kind in _LOOKS:
        names = [name for name in results["excess"] if parsed(name)[0] == kind]
        if kind in ("direct", "coefficients") or not names:
            continue
        points = [(median(results["seconds"][name]), max(results["excess"][name], _SMALLEST_EXCESS)) for name in names]
        axis.plot(*np.transpose(points), **_look(kind), clip_on=False)
        for name, point in zip(names, points, strict=True):
            if iters := parsed(name)[1]:
                beside = (-8, 3) if kind == "auto" else (4, 2)
                axis.annotate(str(iters), point, beside, textcoords="offset points", fontsize=6,
                              color=_look(kind)["color"], annotation_clip=False)  # fmt: skip
    axis.margins(x=0.08)
    axis.set(xscale="log", yscale="log", ylim=(_SMALLEST_EXCESS, 1e-2))


def _look(name):
    label, color, dash, marker = _LOOKS[parsed(name)[0]]
    return {"label": label, "color": color, "linestyle": dash, "marker": marker, "markersize": 4}


def _finished(figure, axes, note):
    """One key for all panels, below them."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = -(-len(handles) // 2)
    figure.subplots_adjust(left=0.065, right=0.99, top=0.92, bottom=0.31, wspace=0.22)
    figure.legend(handles.values(), handles.keys(), loc="lower left", ncols=columns, bbox_to_anchor=(0.055, 0.06))
    figure.text(0.063, 0.025, note, fontsize=6.5, color="0.3")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure")
    return buffer.getvalue()

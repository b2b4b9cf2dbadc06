"""Figure 1: the linear task, full-batch, mini-batch, and by the rank of the momentum."""

from itertools import chain

import numpy as np

from analysis.experiments.records import Record
from analysis.studies.linear import RANK
from paper_figures import figure1_table
from paper_figures.curves import BOOTSTRAP, Curve, median_interval, methods
from paper_figures.drawing import Drawing
from paper_figures.figure1_table import NEGLIGIBLE, below_from
from paper_figures.sheet import draw_curve, keys_of, sheet
from paper_figures.studies import stated

__all__ = ["STUDIES", "make", "panels"]

STUDIES = ("linear",)
_BY_RANK = "mini-batch, by momentum rank"
_EARLY = 10  # epochs
_DASHES = {1: "-", 2: (0, (4, 1.2)), 4: (0, (1, 1))}  # by momentum rank / r, in the right panel
_RANK_KEYS = {f"{factor}r".removeprefix("1"): {"color": "0.3", "linestyle": _DASHES[factor]} for factor in _DASHES}


def make(records: dict[str, list[Record]]) -> Drawing:
    """The figure from the linear task's records."""
    runs = records["linear"]
    shown, caption = panels(runs), _caption(runs)
    lowest = NEGLIGIBLE * np.median([record["results"]["best"] for record in runs])
    keys = keys_of(methods(runs)) | {"momentum rank (right)": _RANK_KEYS}
    figure, axes = sheet(1, (0.6, 0.6, 0.6), keys, caption, width=11, panel_height=3.1)
    for (title, curves), axis in zip(shown.items(), axes[0], strict=True):
        _draw(axis, title, curves, lowest)
    axes[0, 0].set_ylabel("excess loss")
    _magnify(axes[0, 2], shown[_BY_RANK])
    return Drawing(figure, caption, figure1_table.table(runs), list(chain(*shown.values())))


def panels(records: list[Record]) -> dict[str, list[Curve]]:
    """Title → curves."""
    full, mini = methods(records, task="full batch"), methods(records, task="mini-batch")
    compared = [method for method in mini if "momentum_rank" not in method.config]
    by_rank = [method for method in mini if method.config["method"] in ("oplora", "svdlora")]
    chosen = {"full batch": full, "mini-batch": compared, _BY_RANK: by_rank}
    return {title: [_curve(title, method) for method in chosen[title]] for title in chosen}


def _curve(title, method):
    excess = method.values("excess")
    return Curve(title, "excess loss", method, np.arange(excess.shape[1]), median_interval(excess))


def _draw(axis, title, curves, lowest):
    last = curves[0].x[-1]
    axis.set(title=title, xlabel="epoch", yscale="log", xlim=(-0.01 * last, last))
    for curve in curves:
        draw_curve(axis, curve, lowest=lowest, **_dash(title, curve))
    visible = np.concatenate([curve.y.median[curve.y.median > lowest] for curve in curves])
    visible = visible[np.isfinite(visible)]
    leaves = any(np.any(np.abs(curve.y.median) <= lowest) for curve in curves)
    axis.set_ylim(lowest if leaves else 0.6 * visible.min(), 1.6 * visible.max())
    notes = filter(None, (_below_best(curve, lowest) for curve in curves))
    axis.text(0.985, 0.985, "\n".join(notes), transform=axis.transAxes, ha="right", va="top", fontsize=7, color="0.4")


def _dash(title, curve):
    """In the right panel dashes tell the momentum's rank."""
    if title != _BY_RANK or curve.method.config["method"] != "oplora":
        return {}
    return {"linestyle": _DASHES[curve.method.config.get("momentum_rank", RANK) // RANK]}


def _below_best(curve, lowest):
    """What a log axis cannot show."""
    epoch = below_from(curve.y.median, lowest)
    return (
        f"{curve.method.name}: below the best loss\nof rank {RANK} from epoch {epoch} on" if epoch is not None else None
    )


def _magnify(axis, curves):
    """The first epochs once more, in the empty corner."""
    inset = axis.inset_axes((0.5, 0.47, 0.49, 0.45))
    for curve in curves:
        draw_curve(inset, curve, band=False, linewidth=1, **_dash(_BY_RANK, curve))
    last = min(_EARLY, curves[0].x[-1])
    early = np.concatenate([curve.y.median[: last + 1] for curve in curves])
    inset.set(yscale="log", xlim=(0, last), ylim=(0.9 * early.min(), 1.1 * early.max()))
    inset.tick_params(labelsize=6.5, which="both")
    inset.set_title(f"the first {last} epochs", fontsize=7, pad=3)


def _caption(records):
    return (
        f"Linear task, 200 × 600, rank {RANK}: loss above the best one of that rank, on synthetic N(0, 1) data. "
        f"{stated(records)}. Lines: median over the seeds; bands: {BOOTSTRAP}. A curve leaves at the bottom (▼) where "
        f"its median falls below {NEGLIGIBLE:g} of the best loss, towards rounding, or below the best loss itself, as "
        "only full training can. Right: OPLoRA by the rank of its momentum, SVDLoRA for comparison."
    )

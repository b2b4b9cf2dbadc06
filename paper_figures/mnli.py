"""MNLI by a pretrained transformer: training loss, and loss and accuracy on the matched development set."""

import numpy as np

from analysis.experiments.records import Record
from analysis.studies.mnli.study import PAPER
from paper_figures import mnli_table
from paper_figures.curves import BOOTSTRAP, Curve, median_interval, methods
from paper_figures.drawing import Drawing
from paper_figures.sheet import draw_curve, keys_of, sheet

__all__ = ["STUDIES", "make"]

STUDIES = ("mnli",)
_WINDOW = 50  # steps that a point of the training loss is the mean of
_CHANCE = {"color": "0.6", "linewidth": 0.8, "linestyle": (0, (2, 2))}


def make(records: dict[str, list[Record]]) -> Drawing:
    """The figure from MNLI's records."""
    runs = records["mnli"]
    compared, caption = methods(runs), _caption(runs)
    panels = [
        [_training(method) for method in compared],
        [_evaluated("development loss", method, method.values("dev_loss")) for method in compared],
        [_evaluated("development accuracy (%)", method, 100 * method.values("dev_accuracy")) for method in compared],
    ]
    keys = keys_of(compared) | {"in grey": {"chance": _CHANCE}}
    figure, axes = sheet(1, (0.5, 0.5, 0.5), keys, caption, width=11, panel_height=2.7)
    for axis, curves, chance in zip(axes[0], panels, (np.log(3), np.log(3), 100 / 3), strict=True):
        axis.axhline(chance, **_CHANCE)
        for curve in curves:
            draw_curve(axis, curve, marker=".")
        axis.set(title=curves[0].quantity, xlabel="step", xlim=(0, None))
    return Drawing(figure, caption, mnli_table.table(runs), [curve for curves in panels for curve in curves])


def _training(method):
    """The loss, averaged over windows of steps that follow each other; what is left over at the end is left out."""
    loss = method.values("loss")
    window = min(_WINDOW, loss.shape[1])
    count = loss.shape[1] // window
    means = loss[:, : count * window].reshape(len(loss), count, window).mean(axis=2)
    return _curve(f"training loss, mean of {window} steps", method, window * np.arange(1, count + 1), means)


def _evaluated(quantity, method, values):
    return _curve(quantity, method, method.values("dev_step")[0], values)


def _curve(quantity, method, steps, values):
    return Curve(quantity, quantity, method, steps, median_interval(values))


def _caption(records):
    config, results = records[0]["config"], records[0]["results"]
    seeds = len({record["config"]["seed"] for record in records})
    return (
        f"MNLI by {_named(config['model'])}, {results['parameters'] / 1e6:.1f} million parameters; trained are "
        f"{results['trained']:,}: adapters of rank {config['rank']} on query and value (dropout "
        f"{config['dropout']:g}, no scaling) and a head (AdamW, learning rate {config['head_lr']:g}). "
        f"{_stated(config, seeds)}. Data: {results['data']}. Linear schedule, forward and "
        f"backward in {config['precision']}, gradients clipped at norm "
        f"{config['clip']:g}, λ = 0.01 η. Curves: {config['evaluated']:,} pairs of the development set, the same at "
        f"every evaluation; table: {config['evaluated_last']:,}. "
        + (f"Lines: median over the seeds; bands: {BOOTSTRAP}." if seeds > 1 else "One seed: no bands.")
    )


def _named(model):
    return {"minilm": "MiniLM (6 layers, 384 wide)"}.get(model, model)


def _stated(config, seeds):
    """What was run, in words, and what the paper runs."""
    size = f"{config['steps']:,} steps of {config['batch']} pairs of {config['length']} tokens at most"
    times = f"{seeds} seed{'s' if seeds > 1 else ''}"
    names = ("model", "data", "batch", "length", "steps")
    if all(config[name] == getattr(PAPER, name) for name in names):
        return f"{size}, {times}, as in the paper"
    return (
        f"{size}, {times}, reduced from the paper's {PAPER.model}, {PAPER.steps:,} steps (3 epochs of all pairs) of "
        f"{PAPER.batch} pairs of {PAPER.length} tokens"
    )

"""How figures look: one colour and one dash for a method in all of them, room for a legend and a caption below."""

import textwrap

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.methods import label

__all__ = ["RC", "appearance", "draw_curve", "keys_of", "sheet"]

RC = {
    "figure.dpi": 160,
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,
}
# A family has a hue, K its shade; safe for the colour-blind, and the dashes tell the families apart in grey
_SHADED = {"oplora": ("Blues", "-"), "projected oplora": ("Oranges", (0, (4, 1.2)))}
_SINGLES = {
    "svdlora": ("black", (0, (7, 2))),
    "full": ("0.55", "-"),
    "full adamw": ("0.72", (0, (3, 1))),
    "preconditioned sgd": ("#007a5a", (0, (6, 1.5, 1, 1.5))),
    "preconditioned adamw": ("#3fc79a", (0, (6, 1.5, 1, 1.5, 1, 1.5))),
    "lora sgd": ("#882255", (0, (1, 1))),
    "lora adamw": ("#dd77aa", (0, (1, 2.2))),
}
_FAMILIES = {
    "OPLoRA": ["oplora"],
    "projected OPLoRA": ["projected oplora"],
    "preconditioned LoRA": ["preconditioned sgd", "preconditioned adamw"],
    "LoRA": ["lora sgd", "lora adamw"],
    "with the full matrix": ["svdlora", "full", "full adamw"],
}
_CHARACTERS_AN_INCH = 20  # of the caption
_ROW_GAP = 0.45  # inches


def appearance(config):
    """Colour and dash of a method, as arguments of ``plot``."""
    method = config["method"]
    if method in _SINGLES:
        color, dash = _SINGLES[method]
        return {"color": color, "linestyle": dash}
    colormap, dash = _SHADED[method]
    shade = np.interp(np.log2(config["iters"]), [0, 1, 3, 5, 7], [0.38, 0.55, 0.72, 0.86, 1])
    return {"color": colormaps[colormap](float(shade)), "linestyle": dash}


def sheet(rows, gaps, keys, caption, *, width, panel_height):
    """A figure of panels with keys and a caption below.

    Parameters
    ----------
    rows : int
        Rows of panels.
    gaps : sequence of float
        Inches left of each column of panels, for its labels.
    keys : dict
        Titles of the keys (see `keys_of`) → names → arguments of ``plot``.
    caption : str
        Small print.
    width, panel_height : float
        Inches.

    Returns
    -------
    Figure, array of Axes
    """
    lines = textwrap.wrap(caption, int(width * _CHARACTERS_AN_INCH))
    key_height = 0.2 + 0.165 * max(map(len, keys.values()), default=0)
    caption_height = 0.2 + 0.128 * len(lines)
    below = 0.5 + key_height + caption_height
    height = 0.32 + rows * panel_height + (rows - 1) * _ROW_GAP + below
    panel_width = (width - sum(gaps) - 0.12) / len(gaps)

    figure = Figure(figsize=(width, height))
    axes = np.empty((rows, len(gaps)), object)
    for i, j in np.ndindex(axes.shape):
        left, bottom = sum(gaps[: j + 1]) + j * panel_width, below + (rows - 1 - i) * (panel_height + _ROW_GAP)
        axes[i, j] = figure.add_axes((left / width, bottom / height, panel_width / width, panel_height / height))
    _place_keys(figure, keys, (key_height + caption_height) / height, left=gaps[0] / width)
    figure.text(0.12 / width, 0.1 / height, "\n".join(lines), fontsize=6.5, color="0.3", va="bottom", linespacing=1.35)
    return figure, axes


def keys_of(methods):
    """The keys of methods: title of the family → name → arguments of ``plot``."""
    configs = {label(method.config): method.config for method in methods}
    keys = {
        title: {name: appearance(config) for name, config in configs.items() if config["method"] in members}
        for title, members in _FAMILIES.items()
    }
    return {title: names for title, names in keys.items() if names}


def _place_keys(figure, keys, top, *, left):
    step = (0.99 - left) / max(len(keys), 1)
    for i, (title, names) in enumerate(keys.items()):
        handles = [Line2D([], [], **look) for look in names.values()]
        figure.legend(handles, names, title=title, loc="upper left", alignment="left", borderaxespad=0, borderpad=0,
                      title_fontproperties={"size": 7.5, "weight": "bold"},
                      bbox_to_anchor=(left + i * step, top))  # fmt: skip


def draw_curve(axes, curve, *, floor=0.0, band=True, **look):
    """Draw a median and its interval. On a log axis, what is at the floor or below leaves at the bottom, with a ▼."""
    look = appearance(curve.method.config) | look
    shown = [np.maximum(part, floor * 1e-4) if floor else part for part in curve.y]
    axes.plot(curve.x, shown[0], **look)
    if band:
        axes.fill_between(curve.x, *shown[1:], color=look["color"], alpha=0.13, linewidth=0)
    left = np.flatnonzero(curve.y.median <= floor) if floor else []
    if len(left):
        axes.plot(curve.x[left[0]], 0, "v", transform=axes.get_xaxis_transform(), clip_on=False,
                  color=look["color"], markersize=5, zorder=5)  # fmt: skip

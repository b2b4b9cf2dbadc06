"""A figure's sheet: panels of the same size, keys and a caption below; and how a curve is drawn on it."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.experiments.methods import FAMILIES, label, method_of
from analysis.experiments.style import appearance
from lorsum.typing import Array
from paper_figures.curves import Curve, MethodRuns

__all__ = ["Keys", "draw_curve", "keys_of", "sheet"]

Keys = dict[str, dict[str, dict[str, Any]]]  # title → name → arguments of ``plot``

_CHARACTERS_AN_INCH = 20  # of the caption
_ROW_GAP = 0.45  # inches


def sheet(
    rows: int, gaps: Sequence[float], keys: Keys, caption: str, *, width: float, panel_height: float
) -> tuple[Figure, Array]:
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


def keys_of(methods: Iterable[MethodRuns]) -> Keys:
    """The keys of methods: title of the family → name → arguments of ``plot``."""
    keys: Keys = {title: {} for title in FAMILIES}
    for method in methods:
        keys[method_of(method.config).family][label(method.config)] = appearance(method.config)
    return {title: names for title, names in keys.items() if names}


def _place_keys(figure, keys, top, *, left):
    step = (0.99 - left) / max(len(keys), 1)
    for i, (title, names) in enumerate(keys.items()):
        handles = [Line2D([], [], **look) for look in names.values()]
        figure.legend(handles, names, title=title, loc="upper left", alignment="left", borderaxespad=0, borderpad=0,
                      title_fontproperties={"size": 7.5, "weight": "bold"},
                      bbox_to_anchor=(left + i * step, top))  # fmt: skip


def draw_curve(axes: Axes, curve: Curve, *, lowest: float = 0.0, band: bool = True, **look: Any) -> None:
    """Draw a median and its interval. On a log axis, what is not above ``lowest`` leaves at the bottom, with a ▼."""
    look = appearance(curve.method.config) | look
    shown = [np.maximum(part, lowest * 1e-4) if lowest else part for part in curve.y]
    axes.plot(curve.x, shown[0], **look)
    if band:
        axes.fill_between(curve.x, *shown[1:], color=look["color"], alpha=0.13, linewidth=0)
    left = np.flatnonzero(curve.y.median <= lowest)
    if lowest and len(left):
        axes.plot(curve.x[left[0]], 0, "v", transform=axes.get_xaxis_transform(), clip_on=False,
                  color=look["color"], markersize=5, zorder=5)  # fmt: skip

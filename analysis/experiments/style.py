"""How figures look: lines and letters, and the colour and the dashes that `METHODS` gives each method."""

from typing import Any

import numpy as np
from matplotlib import colormaps

from analysis.experiments.methods import Config, method_of

__all__ = ["RC", "appearance"]

RC: dict[Any, Any] = {
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


def appearance(config: Config) -> dict[str, Any]:
    """Colour and dashes of a method, as arguments of ``plot``; the more iterations, the darker."""
    method = method_of(config)
    if "iters" not in config:
        return {"color": method.color, "linestyle": method.dashes}
    shade = np.interp(np.log2(config["iters"]), [0, 1, 3, 5, 7], [0.38, 0.55, 0.72, 0.86, 1])
    return {"color": colormaps[method.color](float(shade)), "linestyle": method.dashes}

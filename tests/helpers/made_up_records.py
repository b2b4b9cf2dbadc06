"""Made-up records of the studies on the linear task and on MNIST, as `run_study` would return them."""

import numpy as np

from analysis.experiments.sizes import Size
from analysis.studies import linear, mnist

SOURCE = "made-up digits, 7 + 3 images"
BEST = 1e5


def linear_results(config, final=None):
    """The excess falls to a number that the method and the seed fix; full training goes below the best loss."""
    epochs = config["epochs"]
    final = final or 10.0 + len(str(config["method"])) + config["seed"]
    excess = np.geomspace(1e4, final, epochs + 1)
    if config["method"] == "full":
        excess[2:] = -BEST
    if config["method"] == "svdlora" and config["task"] == "full batch":
        excess[1:] = 1e-11
    measured = [] if config["method"] == "full" else list(range(1, epochs + 1))
    return {
        "excess": list(excess),
        "best": BEST,
        "gap_epoch": measured,
        "step_excess": [0.1 / epoch for epoch in measured],
        "step_missed": [0.5 for _ in measured],
    }


def mnist_results(config):
    epochs = config["epochs"]
    measured = [] if config["method"] == "full" else list(range(10, 10 + 3 * epochs))
    return {
        "loss": list(np.geomspace(1, 0.1, epochs)),
        "accuracy": list(np.linspace(0.8, 0.9, epochs) + 0.001 * config["seed"]),
        "seconds": [2.0] * epochs if config["method"] == "svdlora" else [1.0] * epochs,
        "gap_step": measured,
        "step_excess": [0.1] * len(measured),
        "step_missed": [0.5] * len(measured),
    }


def made_up(size):
    """Records of both studies as `run_study` would return them."""
    asked = {
        "linear": (linear.configurations(**size["linear"]._asdict()), linear_results),
        "mnist": (mnist.configurations(**size["mnist"]._asdict(), source=SOURCE), mnist_results),
    }
    return {
        study: [{"config": config, "results": results(config)} for config in configs]
        for study, (configs, results) in asked.items()
    }


SMALL = {"linear": Size(seeds=2, epochs=3), "mnist": Size(seeds=2, epochs=2)}

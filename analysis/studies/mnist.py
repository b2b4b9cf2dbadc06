"""LoRA on MNIST by the autograd-free MLP, LeNet-300-100: frozen random weights, adapters of rank 8 and trained biases.

Does the order of the methods in the paper's Table 1, for LeNet5, hold on a network of linear layers alone, and how far
from the truncated SVD do their steps land?
"""

import time
from collections.abc import Sequence
from functools import cache
from os import PathLike

import numpy as np

from analysis.experiments.command_line import parser
from analysis.experiments.images import standardised
from analysis.experiments.methods import Config, configuration, method_of, rule_of
from analysis.experiments.records import Record, run_study
from analysis.experiments.sizes import Size
from analysis.experiments.step_gap import StepGap, step_gap
from lorsum import LowRank, datasets, nn, optim
from lorsum.typing import Array

__all__ = ["PAPER", "REDUCED", "command", "configurations", "main", "run"]

PAPER, REDUCED = Size(seeds=3, epochs=20), Size(seeds=2, epochs=3)
SIZES, RANK, BATCH = (784, 300, 100, 10), 8, 64
GAPS_AN_EPOCH = 3
_MEASURED = ("loss", "accuracy", "seconds", "gap_step", "step_excess", "step_missed")
# The learning rates are the paper's for LeNet5
METHODS = [
    configuration("svdlora", lr=0.01, momentum=0.9),  # by far the slowest, so that others run beside it
    configuration("lora sgd", lr=0.002, momentum=0.9),
    configuration("lora adamw", lr=0.001),
    configuration("preconditioned sgd", lr=0.02, momentum=0.9),
    configuration("preconditioned adamw", lr=0.02),
    *(configuration("projected oplora", lr=0.02, momentum=0.9, iters=K) for K in (1, 2, 8)),
    *(configuration("oplora", lr=0.02, momentum=0.9, iters=K) for K in (1, 2, 8)),
    configuration("full", lr=0.05, momentum=0.9),
]


def configurations(*, seeds: int = 3, epochs: int = 20, source: str | None = None) -> list[Config]:
    """Configurations of the study. ``source`` is the data set's, so that records of a part of it are not mixed up."""
    source = datasets.mnist().source if source is None else source
    return [
        {"study": "mnist", "data": source, "epochs": epochs, "batch": BATCH, "seed": seed, **method}
        for seed in range(seeds)
        for method in METHODS
    ]


def run(config: Config) -> dict:
    """Train on one configuration.

    Returns
    -------
    dict
        ``loss``, ``accuracy`` and ``seconds``, one an epoch: mean training loss, accuracy on the test images, and the
        time of the epoch's steps alone; ``gap_step``, ``step_excess`` and ``step_missed``: how far from the truncated
        SVD of the full step, with the exact momentum, these steps of the first layer landed (see
        `analysis.experiments.step_gap`).
    """
    images, labels, test_images, test_labels = _data()
    shuffle = np.random.default_rng([config["seed"], 1])
    training = _Training(config)
    steps = len(images) // BATCH
    gap_steps = {round(steps * (i + 0.5) / GAPS_AN_EPOCH) for i in range(GAPS_AN_EPOCH)}
    results: dict[str, list] = {name: [] for name in _MEASURED}

    for epoch in range(config["epochs"]):
        order, losses, seconds = shuffle.permutation(len(images)), [], 0.0
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            start = time.perf_counter()
            loss, G = training.step(images[batch], labels[batch])
            seconds += time.perf_counter() - start
            losses.append(loss)
            gap = training.gap(G, measure=step in gap_steps)
            if gap is not None:
                results["gap_step"].append(epoch * steps + step)
                results["step_excess"].append(gap.excess)
                results["step_missed"].append(gap.missed)
        results["loss"].append(float(np.mean(losses)))
        results["accuracy"].append(nn.accuracy(training.layers, test_images, test_labels))
        results["seconds"].append(seconds)
    return results


class _Training:
    """The network, the state of its rules and, to measure against, the first layer's exact momentum."""

    def __init__(self, config):
        rng = np.random.default_rng([config["seed"], 0])
        self.config, self.rule = config, rule_of(config)
        lr, alpha = config["lr"], config.get("momentum", 0.0)
        self.bias_rule = optim.SGD(lr=lr, momentum=alpha) if method_of(config).beside == "sgd" else optim.AdamW(lr=lr)
        self.layers = nn.mlp(SIZES, rank=RANK, rng=rng)
        self.states = tuple((self.rule.init(W, rng=rng), self.bias_rule.init(b)) for _, W, b in self.layers)
        self.alpha, self.M, self.before = alpha, 0.0, self.layers[0].adapter

    def step(self, X: Array, labels: Array) -> tuple[float, LowRank]:
        """One step; the loss before it, and the gradient of the first layer."""
        logits, inputs = nn.forward(self.layers, X)
        loss, S = nn.cross_entropy(logits, labels)
        gradients = nn.gradients(nn.backward(self.layers, inputs, S))
        self.before = self.layers[0].adapter
        updated = [
            self._updated(layer, gradient, state)
            for layer, gradient, state in zip(self.layers, gradients, self.states, strict=True)
        ]
        self.layers, self.states = map(tuple, zip(*updated, strict=True))
        return loss, gradients[0][0]

    def _updated(self, layer, gradient, states):
        (G, g), (state, bias_state) = gradient, states
        adapter, state = self.rule.step(layer.adapter, G, state)
        bias, bias_state = self.bias_rule.step(layer.bias, g, bias_state)
        return layer._replace(adapter=adapter, bias=bias), (state, bias_state)

    def gap(self, G: LowRank, *, measure: bool) -> StepGap | None:
        """Add G to the exact momentum; if asked to, where the step just made has landed."""
        if self.config["method"] == "full":
            return None
        self.M = self.alpha * self.M + G.to_dense()
        if not measure:
            return None
        target = self.before.to_dense() - np.float32(self.config["lr"]) * self.M
        return step_gap(self.layers[0].adapter, target, self.before)


@cache
def _data():
    digits = datasets.mnist()
    return _inputs(digits.train_images), digits.train_labels, _inputs(digits.test_images), digits.test_labels


def _inputs(images):
    return standardised(images.reshape(len(images), -1).astype(np.float32) / 255)


def main(
    folder: str | PathLike = "records/mnist", *, seeds: int = 3, epochs: int = 20, workers: int | None = None
) -> list[Record]:
    """Run the study and return its records."""
    return run_study(run, configurations(seeds=seeds, epochs=epochs), folder, workers=workers)


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the study as from the command line."""
    options = parser("analysis mnist", __doc__, folder="records/mnist", workers=None, **PAPER._asdict())
    main(**vars(options.parse_args(arguments)))

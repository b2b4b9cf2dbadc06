"""The paper's linear task (Figure 1): min ‖X Wᵀ − X Aᵀ‖² over W of rank 8, by full-batch and by mini-batch steps.

How close does OPLoRA come to SVDLoRA, and to the best loss of that rank, as K and the rank of its momentum grow?
"""

from collections.abc import Sequence
from os import PathLike

import numpy as np

from analysis.experiments.command_line import parser
from analysis.experiments.methods import Config, configuration, rule_of
from analysis.experiments.records import Record, run_study
from analysis.experiments.sizes import Size
from analysis.experiments.step_gap import step_gap
from lorsum import LowRank, truncated_svd

__all__ = ["PAPER", "REDUCED", "command", "configurations", "main", "run"]

PAPER = REDUCED = Size(seeds=5, epochs=100)
D_OUT, D_IN, RANK = 600, 200, 8
FULL_BATCH = [
    configuration("full", lr=0.5),
    configuration("svdlora", lr=0.5),
    *(configuration("oplora", lr=0.5, iters=K) for K in (1, 2, 8, 32, 128)),
    configuration("preconditioned sgd", lr=0.48),
    configuration("preconditioned adamw", lr=0.5),
    configuration("lora sgd", lr=0.01),
    configuration("lora adamw", lr=0.5),
]
MINI_BATCH = [
    configuration("full", lr=0.1, momentum=0.75),
    configuration("svdlora", lr=0.1, momentum=0.75),
    *(configuration("oplora", lr=0.1, momentum=0.75, iters=K) for K in (1, 2, 8)),
    *(configuration("projected oplora", lr=0.1, momentum=0.75, iters=K) for K in (1, 2, 8)),
    configuration("preconditioned sgd", lr=0.1, momentum=0.75),
    configuration("preconditioned adamw", lr=0.05),
    configuration("lora sgd", lr=0.002, momentum=0.75),
    configuration("lora adamw", lr=0.05),
]
MOMENTUM_RANK = [
    configuration("oplora", lr=0.1, momentum=0.75, iters=K, momentum_rank=factor * RANK)
    for factor in (2, 4)
    for K in (1, 2, 8)
]


def configurations(*, seeds: int = 5, epochs: int = 100) -> list[Config]:
    """Configurations of Figure 1's three panels; the third one's base case, momentum rank r, is in the second."""
    tasks = [("full batch", D_IN, FULL_BATCH), ("mini-batch", 64, MINI_BATCH + MOMENTUM_RANK)]
    return [
        {"study": "linear", "task": task, "batch": batch, "epochs": epochs, "seed": seed, **method}
        for task, batch, methods in tasks
        for method in methods
        for seed in range(seeds)
    ]


def run(config: Config) -> dict:
    """Train on one configuration.

    Returns
    -------
    dict
        ``excess``: the loss above the best one of rank 8, before training and after each epoch; ``best``: that loss;
        ``gap_epoch``, ``step_excess`` and ``step_missed``: how far from the truncated SVD of the full step, with
        the exact momentum, the last step of these epochs landed (see `analysis.experiments.step_gap`).
    """
    rng, shuffle = (np.random.default_rng([config["seed"], stream]) for stream in (0, 1))
    A = rng.standard_normal((D_IN, D_OUT)).T
    best = float(np.sum(np.linalg.svd(A, compute_uv=False)[RANK:] ** 2))
    W = truncated_svd(rng.uniform(-(D_IN**-0.5), D_IN**-0.5, (D_OUT, D_IN)), RANK).to_lowrank()
    rule, alpha = rule_of(config), config.get("momentum", 0.0)
    state, M = rule.init(W, rng=rng), np.zeros((D_OUT, D_IN))

    excess, gap_epochs, gaps = [_loss(W, A) - best], [], []
    for epoch in range(1, config["epochs"] + 1):
        order = shuffle.permutation(D_IN) if config["batch"] < D_IN else np.arange(D_IN)
        for first in range(0, D_IN, config["batch"]):
            G = _gradient(W, A, order[first : first + config["batch"]])
            M = alpha * M + G.to_dense()
            before, (W, state) = W, rule.step(W, G, state)
        excess.append(_loss(W, A) - best)
        if config["method"] != "full" and (epoch <= 10 or epoch % 10 == 0):
            gap_epochs.append(epoch)
            gaps.append(step_gap(W, before.to_dense() - config["lr"] * M, before))
    return {
        "excess": excess,
        "best": best,
        "gap_epoch": gap_epochs,
        "step_excess": [gap.excess for gap in gaps],
        "step_missed": [gap.missed for gap in gaps],
    }


def main(
    folder: str | PathLike = "records/linear", *, seeds: int = 5, epochs: int = 100, workers: int | None = None
) -> list[Record]:
    """Run the study and return its records."""
    return run_study(run, configurations(seeds=seeds, epochs=epochs), folder, workers=workers)


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the study as from the command line."""
    options = parser("analysis linear", __doc__, folder="records/linear", workers=None, **PAPER._asdict())
    main(**vars(options.parse_args(arguments)))


def _gradient(W, A, rows):
    """Gradient of the batch's loss, the inputs being rows of the identity: Sᵀ X with S = 2 (X Wᵀ − X Aᵀ)."""
    X = np.eye(D_IN)[rows]
    S = 2 * (X @ W.T - X @ A.T)
    return LowRank(S.T, X.T)


def _loss(W, A):
    return float(np.sum((np.eye(D_IN) @ W.T - A.T) ** 2))

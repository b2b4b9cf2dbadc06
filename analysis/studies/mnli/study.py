"""LoRA on MNLI by a pretrained transformer: does OPLoRA come near SVDLoRA, and either near AdamW?

Adapters on query and value projections, and a head. Without options: a MiniLM of 22.7 million parameters on a part of
the training pairs, in shorter and fewer batches than the paper's, about an hour on one core; short runs choose
the learning rates. ``--paper`` is the paper's protocol, for a machine that reaches Hugging Face.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis.experiments.command_line import parser
from analysis.experiments.methods import Config, configuration
from analysis.experiments.records import Record, run_study

__all__ = ["PAPER", "REDUCED", "Protocol", "best", "command", "configurations", "main", "rates", "run"]

RANK, DROPOUT, CLIP, HEAD_LR = 8, 0.1, 1.0, 1e-3
METHODS = [
    configuration("lora adamw", lr=2e-4),
    configuration("preconditioned sgd", lr=2e-3, momentum=0.9, reg=1e-2),
    configuration("projected oplora", lr=5e-3, momentum=0.9, reg=1e-2, iters=2),
    configuration("oplora", lr=5e-3, momentum=0.9, reg=1e-2, iters=2),
    configuration("svdlora", lr=5e-3, momentum=0.9),
]
# Learning rates that short runs compare, the paper's for RoBERTa first; OPLoRA's is for the projected one, too. AdamW
# at 5e-3 is ahead of these after 150 steps and stays at chance in 500, as does SVDLoRA at OPLoRA's rate of 0.05.
SWEPT = {
    "oplora": (5e-3, 5e-2, 2e-1),
    "preconditioned sgd": (2e-3, 2e-2, 1e-1),
    "lora adamw": (2e-4, 1e-3, 2e-3),
    "svdlora": (5e-3, 1e-2, 2e-2),
}
SWEPT_STEPS, JUDGED_STEPS = 150, 50
FOLLOWERS = ("oplora", "projected oplora")


class Protocol(NamedTuple):
    """What is trained on what, and how much of it: see `_OPTIONS`."""

    model: str
    data: str
    batch: int
    length: int
    steps: int
    seeds: int
    every: int
    evaluated: int
    evaluated_last: int
    precision: str
    tuned: bool


PAPER = Protocol(
    "roberta-base", "glue", batch=32, length=128, steps=36_813, seeds=1, every=1000, evaluated=1000,
    evaluated_last=9815, precision="float32", tuned=False,
)  # fmt: skip
REDUCED = Protocol(
    "minilm", "mnli-23k", batch=16, length=48, steps=500, seeds=1, every=100, evaluated=1000,
    evaluated_last=2000, precision="bfloat16", tuned=True,
)  # fmt: skip

_OPTIONS = {
    "model": "the pretrained model",
    "data": "the training pairs",
    "batch": "pairs in a step",
    "length": "tokens that longer pairs are cut to",
    "steps": "steps of training",
    "seeds": "repetitions with other random numbers",
    "every": "steps between evaluations on the development set",
    "evaluated": "pairs of it at an evaluation",
    "evaluated_last": "pairs of it at the last one",
    "precision": "of the forward and backward passes: float32 or bfloat16",
    "tuned": "let short runs choose the learning rates",
}


def configurations(protocol: Protocol = REDUCED, lrs: dict[str, float] | None = None) -> list[Config]:
    """Configurations of the study, with the learning rates of `METHODS` but for those given, by method."""
    methods = [method | {"lr": (lrs or {}).get(method["method"], method["lr"])} for method in METHODS]
    return [_configuration(protocol, method, seed) for seed in range(protocol.seeds) for method in methods]


def rates(protocol: Protocol = REDUCED) -> list[Config]:
    """Configurations of short runs that compare learning rates, the schedule being as short as they are."""
    short = protocol._replace(steps=SWEPT_STEPS, every=SWEPT_STEPS, evaluated=500, evaluated_last=500)
    methods = [method for method in METHODS if method["method"] in SWEPT]
    return [
        _configuration(short, method | {"lr": lr}, 0) | {"study": "mnli-rates"}
        for lrs in zip(*(SWEPT[method["method"]] for method in methods), strict=True)
        for method, lr in zip(methods, lrs, strict=True)
    ]


def best(records: Sequence[Record]) -> dict[str, float]:
    """The learning rates, by method, that leave the least training loss at the end of the short runs."""
    losses: dict = {}
    for record in records:
        loss = float(np.mean(record["results"]["loss"][-JUDGED_STEPS:]))
        losses.setdefault(record["config"]["method"], {})[record["config"]["lr"]] = loss if loss == loss else math.inf
    lrs = {method: min(of_lr, key=of_lr.get) for method, of_lr in losses.items()}
    return lrs | dict.fromkeys(FOLLOWERS, lrs["oplora"])


def _configuration(protocol, method, seed):
    task = protocol._asdict()
    del task["seeds"], task["tuned"]
    adapters = {"rank": RANK, "alpha": RANK, "dropout": DROPOUT}
    return {"study": "mnli", **task, **adapters, "clip": CLIP, "head_lr": HEAD_LR, "seed": seed, **method}


def run(config: Config, *, checkpoints: str | PathLike | None = None) -> dict:
    """Train on one configuration: see `analysis.studies.mnli.fine_tuning.run`."""
    from analysis.studies.mnli import fine_tuning  # imports torch, which drawing the records does without

    return fine_tuning.run(config, checkpoints=checkpoints)


def main(folder: str | PathLike = "records/mnli", *, workers: int | None = None, **protocol: Any) -> list[Record]:
    """Run the study, first the short runs if they are to choose, and return its records.

    Keywords are entries of `REDUCED` to change.
    """
    asked = REDUCED._replace(**protocol)
    lrs = best(_recorded(rates(asked), Path(folder, "rates"), workers)) if asked.tuned else {}
    return _recorded(configurations(asked, lrs), Path(folder), workers)


def _recorded(configs, folder, workers):
    return run_study(partial(run, checkpoints=folder / "checkpoints"), configs, folder, workers=workers)


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the study as from the command line."""
    options = parser("analysis mnli", __doc__, folder="records/mnli", workers=None)
    options.add_argument("--paper", action="store_true", help="start from the paper's protocol, not the reduced one")
    for name, value in REDUCED._asdict().items():
        kind = {"action": argparse.BooleanOptionalAction} if isinstance(value, bool) else {"type": type(value)}
        said = f"{_OPTIONS[name]} (default: {value}; the paper's: {getattr(PAPER, name)})"
        options.add_argument(f"--{name.replace('_', '-')}", **kind, default=argparse.SUPPRESS, help=said)
    asked = vars(options.parse_args(arguments))
    given = {name: asked[name] for name in Protocol._fields if name in asked}
    protocol = PAPER if asked["paper"] else REDUCED
    main(asked["folder"], workers=asked["workers"], **protocol._asdict() | given)

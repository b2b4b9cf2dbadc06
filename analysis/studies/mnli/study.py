"""LoRA on MNLI by a pretrained transformer: adapters on its query and value projections, and a head.

Without options: a MiniLM of 22.7 million parameters on a part of the training pairs, in shorter and fewer batches than
the paper's, about half an hour on one core; short runs choose the learning rates. ``--paper`` is the paper's protocol,
for a machine that reaches the hub.
"""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis.methods import configuration
from analysis.records import record_path, run_study

__all__ = ["PAPER", "REDUCED", "Protocol", "best", "configurations", "main", "rates", "run"]

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
    """What is trained on what, and how much of it.

    ``length`` is in tokens; every so many steps, and at the end, so many pairs of the development set are evaluated;
    ``precision``, of the forward and backward passes, is "float32" or "bfloat16" (by autocast); ``tuned``: learning
    rates are chosen by short runs.
    """

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


def configurations(protocol=REDUCED, lrs=None):
    """Configurations of the study, with the learning rates of `METHODS` but for those given, by method."""
    methods = [method | {"lr": (lrs or {}).get(method["method"], method["lr"])} for method in METHODS]
    return [_configuration(protocol, method, seed) for seed in range(protocol.seeds) for method in methods]


def rates(protocol=REDUCED):
    """Configurations of short runs that compare learning rates, the schedule being as short as they are."""
    short = protocol._replace(steps=SWEPT_STEPS, every=SWEPT_STEPS, evaluated=500, evaluated_last=500)
    methods = [method for method in METHODS if method["method"] in SWEPT]
    return [
        _configuration(short, method | {"lr": lr}, 0) | {"study": "mnli-rates"}
        for lrs in zip(*(SWEPT[method["method"]] for method in methods), strict=True)
        for method, lr in zip(methods, lrs, strict=True)
    ]


def best(records):
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


def run(config, *, checkpoints=None):
    """Train on one configuration.

    Parameters
    ----------
    config : dict
        One of `configurations`.
    checkpoints : path-like, optional
        Folder in which the run saves its state at every evaluation, and from which it goes on.

    Returns
    -------
    dict
        ``loss``, ``seconds`` and ``update_seconds``, one a step: training loss, processor time, the optimizer's part;
        ``dev_step``, ``dev_loss`` and ``dev_accuracy``, after so many steps; ``last_loss`` and ``last_accuracy``, at
        the end; ``diverged``, the step that has no finite loss, or None; ``data``, in words; the numbers of
        ``parameters``, without adapters, and of those ``trained``, with them.
    """
    from analysis import finetuning  # imports torch, which drawing the records does without
    from analysis.pairs import pairs

    training = finetuning.Training(config, pairs(config["data"], config["model"], config["length"]))
    path = Path(checkpoints, record_path("", config).stem + ".pt") if checkpoints else None
    if path and path.exists():
        finetuning.load(training, path)
    results = training.results
    for key in ("dev_step", "dev_loss", "dev_accuracy"):
        results.setdefault(key, [])
    while training.done < config["steps"] and all(map(math.isfinite, results["loss"][-1:])):
        training.step()
        if training.done % config["every"] == 0:
            _evaluate(training)
            if path:
                finetuning.save(training, path)
    diverged = not math.isfinite(results["loss"][-1])
    last_loss, last_accuracy = (math.nan, math.nan) if diverged else training.evaluate(config["evaluated_last"])
    whole, trained = (
        sum(p.numel() for p in part) for part in (training.model.parameters(), training.trained().values())
    )
    return results | {
        "diverged": training.done if diverged else None,
        "last_loss": last_loss,
        "last_accuracy": last_accuracy,
        "data": training.data.source,
        "parameters": whole - trained,  # PEFT keeps what the head was, frozen, beside its copy that is trained
        "trained": trained,
    }


def _evaluate(training):
    loss, accuracy = training.evaluate(training.config["evaluated"])
    for key, value in (("dev_step", training.done), ("dev_loss", loss), ("dev_accuracy", accuracy)):
        training.results[key].append(value)
    print(
        f"{training.config['method']}, lr {training.config['lr']:g}, step {training.done}: "
        f"development loss {loss:.4f}, accuracy {accuracy:.3f}",
        flush=True,
    )


def main(folder="records/mnli", *, workers=1, **protocol):
    """Run the study, first the short runs if they are to choose, and return its records.

    Keywords are entries of `REDUCED` to change.
    """
    protocol = REDUCED._replace(**protocol)
    lrs = best(_recorded(rates(protocol), Path(folder, "rates"), workers)) if protocol.tuned else {}
    return _recorded(configurations(protocol, lrs), Path(folder), workers)


def _recorded(configs, folder, workers):
    return run_study(partial(run, checkpoints=folder / "checkpoints"), configs, folder, workers=workers)


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("records/mnli"), help="where the records go")
    parser.add_argument("--paper", action="store_true", help="start from the paper's protocol, not the reduced one")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    for name, value in REDUCED._asdict().items():
        kind = {"action": argparse.BooleanOptionalAction} if isinstance(value, bool) else {"type": type(value)}
        parser.add_argument(f"--{name}", **kind, default=argparse.SUPPRESS, help=f"default: {value}")
    return parser


if __name__ == "__main__":
    options = vars(_parser().parse_args())
    given = {name: options[name] for name in Protocol._fields if name in options}
    asked = (PAPER if options["paper"] else REDUCED)._replace(**given)
    main(options["folder"], workers=options["workers"], **asked._asdict())

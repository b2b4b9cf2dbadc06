"""LeNet5 on MNIST: does the MNIST column of the paper's Table 1 come out, in PyTorch and in JAX?

The weights of the three linear layers are frozen and have adapters of rank 8 with trained biases; the convolutions are
trained by SGD with momentum, or by AdamW beside an AdamW, with the adapters' learning rate.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Literal

from analysis.experiments.command_line import parser
from analysis.experiments.methods import Config, configuration
from analysis.experiments.records import Record, record_path, run_study
from analysis.experiments.sizes import Size
from lorsum import datasets

__all__ = ["PAPER", "REDUCED", "command", "configurations", "main", "run"]

PAPER, REDUCED = Size(seeds=3, epochs=20), Size(seeds=1, epochs=1)
METHODS = [
    *(configuration("oplora", lr=0.02, momentum=0.9, iters=K) for K in (1, 2, 8)),
    *(configuration("projected oplora", lr=0.02, momentum=0.9, iters=K) for K in (1, 2, 8)),
    configuration("svdlora", lr=0.01, momentum=0.9),
    configuration("preconditioned sgd", lr=0.02, momentum=0.9),
    configuration("full", lr=0.05, momentum=0.9),
    configuration("lora sgd", lr=0.002, momentum=0.9),
    configuration("lora adamw", lr=0.001),
    configuration("preconditioned adamw", lr=0.02),
    configuration("full adamw", lr=0.001),
]
# Steps on the factors and AdamW's depend on the scale of A, which the paper does not tell; OPLoRA's do not, but for λ
OTHER_INIT, SCALE_DEPENDENT = "uniform", ("lora sgd", "lora adamw", "preconditioned adamw")

Framework = Literal["torch", "jax"]


def configurations(
    *, seeds: int = 3, epochs: int = 20, source: str | None = None, framework: Framework = "torch"
) -> list[Config]:
    """Configurations of the study, those with the other start of A at the end.

    ``source`` is the data set's, so that records of a part of it are not mixed up. Of the framework PyTorch, in which
    the study began, they say nothing.
    """
    source = datasets.mnist().source if source is None else source
    task = {"study": "lenet5", "data": source, "epochs": epochs, "batch": 64, "rank": 8, "init": "normal"}
    if framework != "torch":
        task["framework"] = framework
    compared = [{**task, "seed": seed, **method} for seed in range(seeds) for method in METHODS]
    return compared + [{**c, "init": OTHER_INIT} for c in compared if c["method"] in SCALE_DEPENDENT]


def run(config: Config, *, checkpoints: str | PathLike | None = None) -> dict:
    """Train on one configuration, in its framework, the only one that is imported: see its ``run``."""
    if config.get("framework") == "jax":
        from analysis.studies.lenet5 import in_jax

        return in_jax.run(config, checkpoints=checkpoints)
    from analysis.studies.lenet5 import in_torch

    return in_torch.run(config, checkpoints=checkpoints)


def main(
    folder: str | PathLike = "records/lenet5",
    *,
    seeds: int = 3,
    epochs: int = 20,
    workers: int | None = None,
    framework: Framework = "torch",
) -> list[Record]:
    """Run the study and return its records; killed and called again, it repeats what it did since an epoch's end."""
    checkpoints = Path(folder) / "checkpoints"
    configs = configurations(seeds=seeds, epochs=epochs, framework=framework)
    records = run_study(partial(run, checkpoints=checkpoints), configs, folder, workers=workers)
    for config, suffix in product(configs, (".pt", ".npz")):
        record_path(checkpoints, config).with_suffix(suffix).unlink(missing_ok=True)
    return records


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the study as from the command line."""
    options = parser("analysis lenet5", __doc__, folder="records/lenet5", workers=None, **PAPER._asdict())
    options.add_argument(
        "--framework", choices=("torch", "jax"), default="torch", help="what trains (default: %(default)s)"
    )
    main(**vars(options.parse_args(arguments)))

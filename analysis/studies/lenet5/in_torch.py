"""LeNet5 on MNIST: the MNIST column of the paper's Table 1, in PyTorch, or in JAX by a flag.

The weights of the three linear layers are frozen and have adapters of rank 8 with trained biases; the convolutions are
trained by SGD with momentum, or by AdamW beside an AdamW, with the adapters' learning rate.
``python -m analysis.lenet5`` runs the paper's protocol, ``--framework jax`` the same by `analysis.lenet5_jax`.
"""

import argparse
import os
import time
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import lorsum.torch
from analysis.methods import configuration
from analysis.records import record_path, run_study
from lorsum import datasets

__all__ = ["configurations", "data", "main", "network", "optimizer_of", "resized", "run", "train"]

SIDE, RANK, BATCH, INIT = 32, 8, 64, "normal"
MEAN, STD = 0.1307, 0.3081
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
_OPTIMIZERS = {
    "lora sgd": torch.optim.SGD,
    "lora adamw": torch.optim.AdamW,
    "preconditioned sgd": lorsum.torch.PreconditionedSGD,
    "preconditioned adamw": lorsum.torch.PreconditionedAdamW,
    "projected oplora": lorsum.torch.ProjectedOPLoRA,
    "oplora": lorsum.torch.OPLoRA,
    "svdlora": lorsum.torch.SVDLoRA,
    "full": torch.optim.SGD,
    "full adamw": torch.optim.AdamW,
}
_OPTIONS = ("lr", "momentum", "iters", "reg", "start", "weight_decay")
_TESTED_AT_ONCE = 500


def configurations(*, seeds=3, epochs=20, source=None, framework="torch"):
    """Configurations of the study, those with the other start of A at the end.

    ``source`` is the data set's, so that records of a part of it are not mixed up. Of the framework PyTorch, in which
    the study began, they say nothing.
    """
    source = datasets.mnist().source if source is None else source
    task = {"study": "lenet5", "data": source, "epochs": epochs, "batch": BATCH, "rank": RANK, "init": INIT}
    if framework != "torch":
        task["framework"] = framework
    compared = [{**task, "seed": seed, **method} for seed in range(seeds) for method in METHODS]
    return compared + [{**c, "init": OTHER_INIT} for c in compared if c["method"] in SCALE_DEPENDENT]


def run(config, *, checkpoints=None):
    """Train on one configuration.

    Parameters
    ----------
    config : dict
        One of `configurations`. Equal seeds give all methods the same network and the same order of the images.
    checkpoints : path-like, optional
        Folder where each epoch's end is kept. A run that was killed goes on from there, bit for bit.

    Returns
    -------
    dict
        ``loss``, ``accuracy`` and ``seconds``, one an epoch: mean training loss, accuracy on the test images, and the
        time of the epoch's steps alone.
    """
    images, labels, test_images, test_labels = data()
    model = network(config["seed"], init=None if config["method"].startswith("full") else config["init"])
    optimizer = optimizer_of(config, model)
    path = None if checkpoints is None else record_path(checkpoints, config).with_suffix(".pt")
    results = _resumed(path, model, optimizer)
    for epoch in range(len(results["loss"]), config["epochs"]):
        order = np.random.default_rng([config["seed"], epoch]).permutation(len(images))
        start = time.perf_counter()
        loss = train(model, optimizer, images, labels, torch.from_numpy(order))
        results["seconds"].append(time.perf_counter() - start)
        results["loss"].append(loss)
        results["accuracy"].append(_accuracy(model, test_images, test_labels))
        _keep(path, model, optimizer, results)
    return results


def network(seed, *, init=INIT):
    """LeNet5, the same for every method where the seeds are equal: an adapter starts as zero.

    tanh is monotone, so that after the pooling it gives the same as before, of a quarter of the numbers.

    Parameters
    ----------
    seed : int
        Of weights, biases and adapters.
    init : {"normal", "uniform", None}
        How A starts, B being zero: N(0, 1), as one factor of the paper's momentum; uniform on ±1/√d_in, as in PEFT; or
        no adapters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.Tanh(),
            nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(),
            nn.Linear(400, 120), nn.Tanh(),
            nn.Linear(120, 84), nn.Tanh(),
            nn.Linear(84, 10),
        )  # fmt: skip
        model = model.to(memory_format=torch.channels_last)  # in which pooling is fastest
        if init is None:
            return model
        lorsum.torch.add_lora(model, RANK)
        if init == "normal":
            for layer in model:
                if isinstance(layer, lorsum.torch.LoRALinear):
                    nn.init.normal_(layer.lora_A.weight)
        return model


def optimizer_of(config, model):
    """The optimizer of a configuration, of all that is trained in the model."""
    make, options = _OPTIMIZERS[config["method"]], {name: config[name] for name in _OPTIONS if name in config}
    if issubclass(make, lorsum.torch.AdapterOptimizer):
        return make(model, rng=config["seed"], **options)
    return make([p for p in model.parameters() if p.requires_grad], **options)


def train(model, optimizer, images, labels, order):
    """Train once on all images, in this order; the mean loss before the steps."""
    total = torch.zeros(())
    for batch in order.split(BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        total += len(batch) * loss.detach()
    return total.item() / len(order)


@torch.no_grad()
def _accuracy(model, images, labels):
    parts = zip(images.split(_TESTED_AT_ONCE), labels.split(_TESTED_AT_ONCE), strict=True)
    return sum((model(x).argmax(dim=1) == y).sum().item() for x, y in parts) / len(labels)


def _resumed(path, model, optimizer):
    """The results so far, and the model and the optimizer as they were then."""
    if path is None or not path.exists():
        return {"loss": [], "accuracy": [], "seconds": []}
    kept = torch.load(path, weights_only=True)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return kept["results"]


def _keep(path, model, optimizer, results):
    """Write a checkpoint, whole or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "results": results}
    torch.save(kept, temporary)
    os.replace(temporary, path)


@cache
def data():
    """Training and test images and labels, as tensors."""
    digits = datasets.mnist()
    return (
        resized(digits.train_images),
        torch.from_numpy(digits.train_labels),
        resized(digits.test_images),
        torch.from_numpy(digits.test_labels),
    )


def resized(images):
    """Pixels at 32 × 32, normalised."""
    pixels = torch.from_numpy(images)[:, None].float() / 255
    return (F.interpolate(pixels, (SIDE, SIDE), mode="bilinear") - MEAN) / STD


def main(folder="records/lenet5", *, seeds=3, epochs=20, workers=None, framework="torch"):
    """Run the study and return its records; killed and called again, it repeats what it did since an epoch's end."""
    checkpoints = Path(folder) / "checkpoints"
    configs = configurations(seeds=seeds, epochs=epochs, framework=framework)
    records = run_study(partial(_runner(framework), checkpoints=checkpoints), configs, folder, workers=workers)
    for config, suffix in product(configs, (".pt", ".npz")):
        record_path(checkpoints, config).with_suffix(suffix).unlink(missing_ok=True)
    return records


def _runner(framework):
    if framework == "torch":
        return run
    from analysis import lenet5_jax  # which needs JAX, as PyTorch's study does not

    return lenet5_jax.run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("records/lenet5"), help="where the records go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, help="processes (default: one for each CPU)")
    parser.add_argument("--framework", choices=("torch", "jax"), default="torch")
    main(**vars(parser.parse_args()))

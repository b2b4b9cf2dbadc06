"""The runs of LeNet5 in PyTorch."""

import time
from os import PathLike

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from analysis.experiments.methods import Config, method_of, optimizer_class, options_of
from analysis.experiments.output import replacing
from analysis.experiments.records import record_path
from analysis.studies.lenet5.network import data, network_of

__all__ = ["optimizer_of", "run", "train"]

_TESTED_AT_ONCE = 500


def run(config: Config, *, checkpoints: str | PathLike | None = None) -> dict:
    """Train on one configuration.

    Parameters
    ----------
    config : dict
        Equal seeds give all methods the same network and the same order of the images.
    checkpoints : path-like, optional
        Folder where each epoch's end is kept. A run that was killed goes on from there, bit for bit.

    Returns
    -------
    dict
        ``loss``, ``accuracy`` and ``seconds``, one an epoch: mean training loss, accuracy on the test images, and the
        time of the epoch's steps alone.
    """
    images, labels, test_images, test_labels = data()
    model = network_of(config)
    optimizer = optimizer_of(config, model)
    path = None if checkpoints is None else record_path(checkpoints, config).with_suffix(".pt")
    results = _resumed(path, model, optimizer)
    for epoch in range(len(results["loss"]), config["epochs"]):
        order = np.random.default_rng([config["seed"], epoch]).permutation(len(images))
        start = time.perf_counter()
        loss = train(model, optimizer, images, labels, torch.from_numpy(order), batch=config["batch"])
        results["seconds"].append(time.perf_counter() - start)
        results["loss"].append(loss)
        results["accuracy"].append(_accuracy(model, test_images, test_labels))
        _save(path, model, optimizer, results)
    return results


def optimizer_of(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a configuration, of all that is trained in the model."""
    make, options = optimizer_class(config), options_of(config)
    if method_of(config).plain:
        return make([p for p in model.parameters() if p.requires_grad], **options)
    return make(model, rng=config["seed"], **options)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    order: torch.Tensor,
    *,
    batch: int,
) -> float:
    """Train once on all images, in this order; the mean loss before the steps."""
    total = torch.zeros(())
    for chosen in order.split(batch):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        total += len(chosen) * loss.detach()
    return total.item() / len(order)


@torch.no_grad()
def _accuracy(model, images, labels):
    parts = zip(images.split(_TESTED_AT_ONCE), labels.split(_TESTED_AT_ONCE), strict=True)
    return sum((model(x).argmax(dim=1) == y).sum().item() for x, y in parts) / len(labels)


def _resumed(path, model, optimizer):
    """The results so far, and the model and the optimizer as they were then."""
    if path is None or not path.exists():
        return {"loss": [], "accuracy": [], "seconds": []}
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["results"]


def _save(path, model, optimizer, results):
    if path is not None:
        with replacing(path) as file:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "results": results}, file)

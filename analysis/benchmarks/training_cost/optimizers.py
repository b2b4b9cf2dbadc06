"""What is trained, and by what: two models with adapters, and for each optimizer a copy of one of them."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import peft.optimizers
import torch
from torch import nn
from torch.nn import functional as F

import lorsum.torch
from analysis.studies.lenet5.network import network, resized
from analysis.studies.mnli import fine_tuning
from analysis.studies.mnli.sentence_pairs import sentence_pairs
from analysis.studies.mnli.study import REDUCED, configurations
from lorsum import datasets, optim

__all__ = ["AGAIN", "BASELINE", "OPTIMIZERS", "Setup", "Training", "setup"]

LR = 1e-3
OTHERS = optim.AdamW(lr=LR, weight_decay=0.0)  # outside the adapters, so that rows differ in what trains these alone
OPLORA = {"lr": 5e-3, "momentum": 0.9, "reg": 1e-3, "first": "V"}
BATCHES = 16  # different ones, which come again


def _adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)


def _by_peft(make, **options):
    return lambda model: make(model, torch.optim.AdamW, lr=LR, **options)


def _ours(optimizer, **options):
    return lambda model: optimizer(model, others=OTHERS, **options)


BASELINE, AGAIN = "AdamW", "AdamW again"
OPTIMIZERS = {
    BASELINE: _adamw,
    AGAIN: _adamw,  # what it differs by is noise
    "PEFT's LoRA+": _by_peft(peft.optimizers.create_loraplus_optimizer, loraplus_lr_ratio=16),
    **(
        {"PEFT's Riemannian AdamW": _by_peft(peft.optimizers.create_riemannian_optimizer)}
        if hasattr(peft.optimizers, "create_riemannian_optimizer")  # from PEFT 0.21 on
        else {}
    ),
    "PreconditionedAdamW": _ours(lorsum.torch.PreconditionedAdamW, lr=LR),
    "PreconditionedSGD": _ours(lorsum.torch.PreconditionedSGD, lr=LR, momentum=0.9),
    "OPLoRA K=1": _ours(lorsum.torch.OPLoRA, iters=1, **OPLORA),
    "OPLoRA K=1, pairs": _ours(lorsum.torch.OPLoRA, iters=1, gradient="pairs", **OPLORA),
    "OPLoRA K=1, dense": _ours(lorsum.torch.OPLoRA, iters=1, gradient="dense", **OPLORA),
    "OPLoRA K=1, overlap": _ours(lorsum.torch.OPLoRA, iters=1, overlap=True, **OPLORA),
    "OPLoRA K=8": _ours(lorsum.torch.OPLoRA, iters=8, **OPLORA),
    "OPLoRA K=8, overlap": _ours(lorsum.torch.OPLoRA, iters=8, overlap=True, **OPLORA),
    "ProjectedOPLoRA K=1": _ours(lorsum.torch.ProjectedOPLoRA, iters=1, **OPLORA),
    "SVDLoRA": _ours(lorsum.torch.SVDLoRA, lr=5e-3, momentum=0.9),
}


class Setup(NamedTuple):
    """A model with adapters, ``loss(model, batch)``, and batches."""

    model: nn.Module
    loss: Callable
    batches: list


class Training:
    """A model's copy and the optimizer that trains it. The frozen weights are shared, so that many fit into memory."""

    def __init__(self, setup: "Setup", make: Callable[[nn.Module], torch.optim.Optimizer]):
        frozen = {id(p): p for p in setup.model.parameters() if not p.requires_grad}
        self.model, self.loss = copy.deepcopy(setup.model, frozen), setup.loss
        self.optimizer = make(self.model)

    def gradients(self, batch: Any) -> None:
        """Forward and backward."""
        self.optimizer.zero_grad()
        self.loss(self.model, batch).backward()

    def step(self, batch: Any) -> None:
        """A whole step."""
        self.gradients(batch)
        self.optimizer.step()


def setup(config: dict) -> Setup:
    """What a configuration trains: LeNet5 on MNIST, or an encoder with adapters by PEFT on pairs of sentences."""
    return _network(config) if config["model"] == "lenet5" else _encoder(config)


def _network(config):
    digits, count = datasets.mnist(), BATCHES * config["batch"]
    images, labels = resized(digits.train_images[:count]), torch.from_numpy(digits.train_labels[:count])
    batches = list(zip(images.split(config["batch"]), labels.split(config["batch"]), strict=True))
    return Setup(network(config["seed"]), _network_loss, batches)


def _network_loss(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def _encoder(config):
    given = {name: config[name] for name in ("model", "data", "batch", "length")}
    asked = configurations(REDUCED._replace(precision="float32", **given))[0]  # of any method: the model is the same
    data = sentence_pairs(config["data"], config["model"], config["length"])
    training = fine_tuning.Training(asked | {"seed": config["seed"]}, data)
    batches = [{key: x.cpu() for key, x in training.batch(step).items()} for step in range(BATCHES)]
    return Setup(training.model.cpu(), _encoder_loss, batches)


def _encoder_loss(model, batch):
    return model(**batch).loss

"""LeNet5 with adapters in PyTorch, and its images; in JAX the first weights and the images are the same."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

import lorsum.torch
from analysis.experiments.images import standardised
from analysis.experiments.methods import Config
from lorsum import datasets
from lorsum.typing import Array

__all__ = ["SIDE", "data", "network", "network_of", "resized"]

SIDE = 32  # pixels


def network_of(config: Config) -> nn.Sequential:
    """The network that a configuration trains, without adapters where it trains all of it."""
    init = None if config["method"].startswith("full") else config["init"]
    return network(config["seed"], rank=config["rank"], init=init)


def network(seed: int, *, rank: int = 8, init: str | None = "normal") -> nn.Sequential:
    """LeNet5, the same for every method where the seeds are equal: an adapter starts as zero.

    tanh is monotone, so that after the pooling it gives the same as before, of a quarter of the numbers.

    Parameters
    ----------
    seed : int
        Of weights, biases and adapters.
    rank : int
        Of the adapters.
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
        lorsum.torch.add_lora(model, rank)
        if init == "normal":
            for layer in model:
                if isinstance(layer, lorsum.torch.LoRALinear):
                    nn.init.normal_(layer.lora_A.weight)
        return model


@cache
def data() -> tuple[torch.Tensor, ...]:
    """Training and test images and labels, as tensors."""
    digits = datasets.mnist()
    return (
        resized(digits.train_images),
        torch.from_numpy(digits.train_labels),
        resized(digits.test_images),
        torch.from_numpy(digits.test_labels),
    )


def resized(images: Array) -> torch.Tensor:
    """Pixels at 32 × 32, standardised."""
    pixels = torch.from_numpy(images)[:, None].float() / 255
    return standardised(F.interpolate(pixels, (SIDE, SIDE), mode="bilinear"))

"""PyTorch: OPLoRA and its siblings as optimizers of plain modules and of Hugging Face PEFT models.

>>> import torch
>>> import lorsum.torch
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
>>> model = lorsum.torch.add_lora(model, rank=2)  # or peft.get_peft_model
>>> optimizer = lorsum.torch.OPLoRA(model, lr=0.02, momentum=0.9)
>>> optimizer.adapters
[Adapter(0: 6 × 8, rank 2), Adapter(2: 3 × 6, rank 2)]
>>> model(torch.ones(4, 8)).square().mean().backward()
>>> optimizer.step()
"""

from lorsum.torch._adapters import Adapter, adapters
from lorsum.torch._optimizer import AdapterOptimizer
from lorsum.torch.layers import LoRAConv2d, LoRALinear, add_lora
from lorsum.torch.optimizers import (
    OPLoRA,
    PreconditionedAdamW,
    PreconditionedSGD,
    ProjectedOPLoRA,
    ScaledOPLoRA,
    SVDLoRA,
)

__all__ = [
    "Adapter",
    "AdapterOptimizer",
    "LoRAConv2d",
    "LoRALinear",
    "OPLoRA",
    "PreconditionedAdamW",
    "PreconditionedSGD",
    "ProjectedOPLoRA",
    "SVDLoRA",
    "ScaledOPLoRA",
    "adapters",
    "add_lora",
]

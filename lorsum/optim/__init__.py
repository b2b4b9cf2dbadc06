"""Floor 3: update rules for LoRA. One rule, three frameworks: each is a pure function of arrays.

A rule is a frozen dataclass of its options. ``state = rule.init(W)``, then ``W, state = rule.step(W, G, state)`` with
the adapter W and G, the gradient with respect to the matrix W (not to its factors): a :class:`lorsum.LowRank` (Sᵀ,
Xᵀ) or a dense array. ``lr`` is a number or a callable of the step, counted from 0; λ is ``reg`` times the learning
rate. With PyTorch, step under ``torch.no_grad()``.

>>> import numpy as np
>>> from lorsum import LowRank, optim
>>> rng = np.random.default_rng(0)
>>> A = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 30))
>>> W = LowRank(np.zeros((20, 2)), rng.normal(size=(30, 2)))
>>> rule = optim.OPLoRA(lr=0.5, iters=2)
>>> state = rule.init(W)
>>> for _ in range(5):
...     G = 2 * (W.to_dense() - A)  # the gradient of the squared distance to A
...     W, state = rule.step(W, G, state)
>>> bool(np.linalg.norm(W.to_dense() - A) < 1e-3 * np.linalg.norm(A))
True
"""

from lorsum.optim.factors import SGD, AdamW
from lorsum.optim.matrices import Full, SVDLoRA
from lorsum.optim.oplora import OPLoRA, ProjectedOPLoRA
from lorsum.optim.preconditioned import PreconditionedAdamW, PreconditionedSGD
from lorsum.optim.scaled import KFAC, DiagonalScale, ScaledOPLoRA, Shampoo

__all__ = [
    "KFAC",
    "SGD",
    "AdamW",
    "DiagonalScale",
    "Full",
    "OPLoRA",
    "PreconditionedAdamW",
    "PreconditionedSGD",
    "ProjectedOPLoRA",
    "SVDLoRA",
    "ScaledOPLoRA",
    "Shampoo",
]

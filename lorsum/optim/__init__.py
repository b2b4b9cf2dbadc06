"""Update rules for LoRA: pure functions of arrays, the same in NumPy, PyTorch and JAX.

A rule is a frozen dataclass of its options. ``state = rule.init(W)``, then ``W, state = rule.step(W, G, state)`` with
the adapter W and G, the gradient with respect to the matrix W (not to its factors): a :class:`lorsum.LowRank` (Sᵀ,
Xᵀ), a sum of such, or a dense array. ``lr`` is a number or a callable of the step, counted from 0; λ is ``reg`` times
the learning rate. With PyTorch, step under ``torch.no_grad()``.

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

How to write a rule
-------------------
Any class with ``init`` and ``step`` is a rule (:class:`Rule`), here gradient descent with momentum on U alone. It
computes with operators and :func:`lorsum.lorsum`, so that arrays may be NumPy's, PyTorch's or JAX's; changes nothing in
place; and keeps in its state, a named tuple, the steps done as ``count``. JAX steps adapters of one shape as one batch,
in the leading dimensions.

>>> from dataclasses import dataclass
>>> from typing import Any, NamedTuple
>>> class State(NamedTuple):
...     count: Any
...     M: Any
>>> @dataclass(frozen=True, kw_only=True)
... class OneSided:
...     lr: float
...     momentum: float = 0.9
...     def init(self, W, *, rng=0):
...         return State(0, 0 * W.U)
...     def step(self, W, G, state):
...         M = self.momentum * state.M + G @ W.V
...         return LowRank(W.U - self.lr * M, W.V), State(state.count + 1, M)
...     def reads(self, rank):  # of G one product with as many columns: processes send no more than that
...         return optim.Reads("products", rank)

``reads`` is optional. Without it a rule gets all of G, in PyTorch averaged over processes: a ``LowRank``, or a dense
array where that is smaller; both have ``@``, ``.T`` and ``.shape``. With ``Reads("rows")`` it is always a ``LowRank``.
In PyTorch ``class MyOptimizer(lorsum.torch.AdapterOptimizer): Rule = OneSided`` makes an optimizer of it; in JAX
``lorsum.jax.transformation(OneSided(lr=0.1))`` a gradient transformation. ``tests/lorsum/optim/test_contract.py`` says
what a rule must do.
"""

from lorsum.optim.factors import SGD, AdamW
from lorsum.optim.matrices import Full, SVDLoRA
from lorsum.optim.oplora import OPLoRA, ProjectedOPLoRA
from lorsum.optim.preconditioned import PreconditionedAdamW, PreconditionedSGD
from lorsum.optim.rule import Reads, Rule, reads
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
    "Reads",
    "Rule",
    "SVDLoRA",
    "ScaledOPLoRA",
    "Shampoo",
    "reads",
]

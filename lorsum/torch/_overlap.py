"""Steps that begin as soon as a layer's gradient is there, in a thread beside the rest of the backward pass."""

from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch

from lorsum.lowrank import LowRank
from lorsum.optim import Rule
from lorsum.torch._arrays import leaves_of, mapped
from lorsum.torch._step import stepped


class BegunStep:
    """A step that a thread computes. It is good as long as nothing that it is computed from has changed.

    Weights and state are copied: both may be changed while the thread reads them, through ``.data`` without a trace.
    """

    def __init__(self, thread: Executor, rule: Rule, W: LowRank, G: Any, state: Any):
        self.rule = rule
        self.W, self.state = mapped((W, state), _copied)
        self.future = thread.submit(torch.no_grad()(stepped), rule, self.W, G, self.state)

    def result(self, rule: Rule, W: LowRank, state: Any) -> tuple[Any, Any] | None:
        """The new matrix and state, or None if they must be computed anew with these."""
        then, now = (list(leaves_of(x)) for x in ((self.W, self.state), (W, state)))
        if self.rule == rule and len(then) == len(now) and all(map(_equal, then, now)):
            return self.future.result()
        self.future.cancel()
        return None


def _copied(_: str, leaf: Any) -> Any:
    """A copy in the same layout, with which the results are the same bit for bit."""
    if isinstance(leaf, int):
        return leaf
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf.copy(order="K")


def _equal(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else np.array_equal(x, y)

"""Steps that start as soon as a layer's gradient is there, beside the rest of the backward pass."""

from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import torch

from lorsum.lowrank import LowRank
from lorsum.torch import _bridge as bridge

__all__ = ["Ahead", "stepped"]


def stepped(rule, W, G, state):
    """The rule's new matrix and state.

    BLAS kernels set flags for numbers beside the matrices, which NumPy warns of; what is not finite the rule refuses.
    """
    with np.errstate(all="ignore"):
        return rule.step(W, G, state)


class Basis(NamedTuple):
    """What a step is computed from beside the gradient, each change of which begins it anew.

    Weights and state are copies: both may be changed while the thread reads them, through ``.data`` without a trace.
    """

    rule: Any
    W: LowRank
    state: Any

    def is_still(self, rule, W, state):
        """True if nothing has changed."""
        then, now = (bridge.leaves_of((x, y)) for x, y in ((self.W, self.state), (W, state)))
        return self.rule == rule and len(then) == len(now) and all(map(_equal, then, now))


class Ahead:
    """Steps in a thread of their own. A step is good as long as nothing that it was computed from has changed."""

    def __init__(self):
        self.thread = futures.ThreadPoolExecutor(1, thread_name_prefix="lorsum")
        self.started: dict = {}  # by B: what the step was computed from, and its future

    def start(self, rule, capture, W, held):
        """Begin the step of an adapter whose gradient has arrived."""
        B = capture.adapter.B
        if B in self.started:
            self.started[B][1].cancel()
        G = bridge.to_arrays(capture.gradient.times(1.0))
        basis = Basis(rule, *bridge.mapped((W, held.state), _copied))
        self.started[B] = basis, self.thread.submit(_stepped, rule, basis.W, G, basis.state)

    def wait(self):
        """Return when all that was started is done."""
        futures.wait([future for _, future in self.started.values()])

    def take(self, rule, capture, c, W, held):
        """The new matrix and state, or None if they must be computed anew."""
        basis, future = self.started.pop(capture.adapter.B, (None, None))
        if future is None:
            return None
        if c != 1 or not capture.gradient or not basis.is_still(rule, W, held.state):
            future.cancel()
            return None
        return future.result()


@torch.no_grad()
def _stepped(rule, W, G, state):
    return stepped(rule, W, G, state)


def _copied(_, leaf):
    """A copy in the same layout, with which the results are the same bit for bit."""
    if isinstance(leaf, int):
        return leaf
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf.copy(order="K")


def _equal(x, y):
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else np.array_equal(x, y)

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
    """What a step is computed from beside the gradient, each change of which begins it anew."""

    rule: Any
    W: LowRank
    state: Any
    versions: tuple[int, ...]

    def is_still(self, rule, W, held):
        """True if nothing has changed: of the weights the values count, since ``.data`` keeps their version."""
        same = self.rule == rule and self.state is held.state and self.versions == held.versions()
        return same and _equal(self.W.U, W.U) and _equal(self.W.V, W.V)


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
        W = LowRank._of(_copied(W.U), _copied(W.V))  # the weights may be changed while the thread reads them
        G = bridge.to_arrays(capture.gradient.times(1.0))
        basis = Basis(rule, W, held.state, held.versions())
        self.started[B] = basis, self.thread.submit(_stepped, rule, W, G, held.state)

    def wait(self):
        """Return when all that was started is done."""
        futures.wait([future for _, future in self.started.values()])

    def take(self, rule, capture, c, W, held):
        """The new matrix and state, or None if they must be computed anew."""
        basis, future = self.started.pop(capture.adapter.B, (None, None))
        if future is None:
            return None
        if c != 1 or not capture.gradient or not basis.is_still(rule, W, held):
            future.cancel()
            return None
        return future.result()


@torch.no_grad()
def _stepped(rule, W, G, state):
    return stepped(rule, W, G, state)


def _copied(x):
    """A copy in the same layout, with which the results are the same bit for bit."""
    return x.clone() if isinstance(x, torch.Tensor) else x.copy(order="K")


def _equal(x, y):
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else np.array_equal(x, y)

"""Steps that start as soon as a layer's gradient is there, beside the rest of the backward pass."""

from concurrent import futures

import numpy as np
import torch

from lorsum.torch import _bridge as bridge

__all__ = ["Ahead", "stepped"]


def stepped(rule, W, G, state):
    """The rule's new matrix and state.

    BLAS kernels set flags for numbers beside the matrices, which NumPy warns of; what is not finite the rule refuses.
    """
    with np.errstate(all="ignore"):
        return rule.step(W, G, state)


class Ahead:
    """Steps in a thread of their own. A step is good as long as nothing that it was computed from has changed."""

    def __init__(self):
        self.thread = futures.ThreadPoolExecutor(1, thread_name_prefix="lorsum")
        self.started: dict = {}  # by B: what the step was computed from, and its future

    def start(self, rule, capture, W, state):
        """Begin the step of an adapter whose gradient has arrived."""
        B = capture.adapter.B
        if B in self.started:
            self.started[B][1].cancel()
        G = bridge.to_arrays(capture.gradient.times(1.0))
        self.started[B] = _basis(rule, capture), self.thread.submit(_stepped, rule, W, G, state)

    def wait(self):
        """Return when all that was started is done."""
        futures.wait([future for _, future in self.started.values()])

    def take(self, rule, capture, c):
        """The new matrix and state, or None if they must be computed anew."""
        basis, future = self.started.pop(capture.adapter.B, (None, None))
        if future is None:
            return None
        if c != 1 or basis != _basis(rule, capture):
            future.cancel()
            return None
        return future.result()


@torch.no_grad()
def _stepped(rule, W, G, state):
    return stepped(rule, W, G, state)


def _basis(rule, capture):
    """What a step depends on beside the gradient, each change of which begins it anew: the options and the weights."""
    return rule, capture.adapter.A._version, capture.adapter.B._version

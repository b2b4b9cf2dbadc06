"""The number c by which ``.grad`` was multiplied since a backward pass: unscaling, clipping, ascent."""

import math

import numpy as np
import torch

from lorsum.torch import _bridge as bridge

__all__ = ["Snapshot", "common_factor", "tolerance"]


class Snapshot:
    """``.grad`` of a parameter as a backward pass has left it.

    Values are compared, since ``.grad.data`` and communication leave autograd's version counter alone.
    """

    def __init__(self, grad):
        self.values = grad.detach().clone()
        self.place = grad.data_ptr(), grad._version

    def is_written_to(self, grad):
        """True if this is another tensor, or an operation has changed it since."""
        return self.place != (grad.data_ptr(), grad._version)

    def is_untouched(self, grad):
        """True if the tensor is as it was."""
        return not self.is_written_to(grad) and torch.equal(self.values, grad)

    def factor(self, grad):
        """c with grad = c × what it was: None if both are zero, so that any would do, nan if there is none."""
        if grad.shape != self.values.shape or grad.dtype != self.values.dtype:
            return math.nan
        after, before = (bridge.to_arrays(x).reshape(-1) for x in (grad, self.values))
        with np.errstate(all="ignore"):
            square = float(before @ before)
            if not 1e-30 < square < 1e30:  # squares leave the range of single precision before the numbers do
                size = float(abs(before).max())
                if not bool((after != 0).any()):
                    return None if size == 0 else 0.0
                if not 0 < size < math.inf:
                    return math.nan
                after, before = after / size, before / size
                square = float(before @ before)
            c = float(after @ before) / square
            rest = after - c * before
            return c if float(rest @ rest) <= (tolerance(grad) * c) ** 2 * square else math.nan


def tolerance(grad):
    """How far rounding may carry a multiple of a gradient from it, relatively."""
    return 1e-2 if grad.dtype in (torch.float16, torch.bfloat16) else 1e-4


def common_factor(adapter, snapshots):
    """c by which A.grad and B.grad were both multiplied since the snapshots; None if they were and are zero.

    Raises
    ------
    RuntimeError
        If there is none, because they were changed in different ways.
    """
    grads = adapter.A.grad, adapter.B.grad
    if snapshots[0].is_untouched(grads[0]) and snapshots[1].is_untouched(grads[1]):
        return 1.0
    factors = [snapshot.factor(grad) for snapshot, grad in zip(snapshots, grads, strict=True)]
    known = [c for c in factors if c is not None]
    if not all(map(math.isfinite, known)):
        if not all(bool(torch.isfinite(grad).all()) for grad in grads):
            raise RuntimeError(f"`{adapter.name}`: its gradient is not finite.")
        letter = "A" if factors[0] is not None and math.isnan(factors[0]) else "B"
        raise RuntimeError(
            f"`{adapter.name}`: after the backward pass lora_{letter}.grad was multiplied by more than one number. "
            "Unscaling, and clipping by the norm of all gradients, have one factor for all; clipping by value, and "
            "gradients set by hand, do not."
        )
    if len(known) == 2 and abs(known[0] - known[1]) > tolerance(grads[0]) * max(map(abs, known)):
        raise RuntimeError(
            f"`{adapter.name}`: after the backward pass lora_A.grad was multiplied by {known[0]:.4g} and "
            f"lora_B.grad by {known[1]:.4g}. One factor for both is needed, as unscaling and clipping by the "
            "norm of all gradients have it."
        )
    return known[-1] if known else None

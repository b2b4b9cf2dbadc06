"""A captured gradient G beside ``.grad``: A.grad = c Bᵀ G and B.grad = c G Aᵀ, with one number c.

c is what ``.grad`` was multiplied by since the backward pass: by unscaling, clipping, ascent.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorsum._arrays import frobenius
from lorsum.lowrank import LowRank
from lorsum.torch._adapters import Adapter
from lorsum.torch._arrays import to_arrays


class Snapshot:
    """``.grad`` of a parameter as a backward pass has left it.

    Values are compared, since ``.grad.data`` and communication leave autograd's version counter alone.
    """

    def __init__(self, grad: Tensor):
        self.values = grad.detach().clone()
        self.place = grad.data_ptr(), grad._version

    def is_written_to(self, grad: Tensor) -> bool:
        """True if this is another tensor, or an operation has changed it since."""
        return self.place != (grad.data_ptr(), grad._version)

    def is_untouched(self, grad: Tensor) -> bool:
        return not self.is_written_to(grad) and torch.equal(self.values, grad)

    def factor(self, grad: Tensor) -> float | None:
        """c with grad = c × what it was: None if both are zero, so that any would do, nan if there is none."""
        if grad.shape != self.values.shape or grad.dtype != self.values.dtype:
            return math.nan
        after, before = (to_arrays(x).reshape(-1) for x in (grad, self.values))
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


def tolerance(grad: Tensor) -> float:
    """How far rounding may carry a multiple of a gradient from it, relatively."""
    return 1e-2 if grad.dtype in (torch.float16, torch.bfloat16) else 1e-4


def common_factor(adapter: Adapter, snapshots: tuple[Snapshot, Snapshot]) -> float | None:
    """c by which A.grad and B.grad were both multiplied since the snapshots; None if they were and are zero.

    It is an error if there is none, because they were changed in different ways.
    """
    grads: Any = (adapter.A.grad, adapter.B.grad)
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


def check_against_autograd(adapter: Adapter, W: LowRank, G: Any, rounding: float) -> None:
    """An error that names the adapter if G, the captured gradient times c, is not the one that ``.grad`` comes from.

    W is the adapter's matrix in the backward pass, ``rounding`` bounds the rounding errors of G.
    """
    for letter, actual, expected, other in _both(adapter, W, G):
        difference, norm = float(frobenius(actual - expected)), float(frobenius(actual))
        slack = max(1e-3, tolerance(adapter.A))  # .grad of half precision is rounded each time it is multiplied
        if not difference <= slack * norm + 100 * float(rounding) * float(frobenius(other)):
            raise RuntimeError(
                f"`{adapter.name}`: lora_{letter}.grad differs by {difference:.3g}, of {norm:.3g}, from what was "
                "captured. Its weights take part in the loss in another way than lora_B(lora_A(x)), a call was missed, "
                ".grad was changed by more than one common factor, or it was not averaged over the processes."
            )


def multiple_of_captured(adapter: Adapter, W: LowRank, G: Any) -> float:
    """The number c for which ``.grad`` is nearest to c Bᵀ G and c G Aᵀ; 1 where these are zero."""
    squares = inner = 0.0
    for _, actual, expected, _ in _both(adapter, W, G):
        size = float(abs(expected).max()) or 1.0
        squares += size**2 * float(((expected / size) ** 2).sum())
        inner += size**2 * float(((actual / size) * (expected / size)).sum())
    return inner / squares if squares > 0 else 1.0


def _both(adapter: Adapter, W: LowRank, G: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """For A and B: the letter, ``.grad``, the product of G with the other factor that it should be, and that factor."""
    U, V = to_arrays(W)
    with np.errstate(all="ignore"):  # BLAS kernels set flags for numbers beside the matrices
        products = (("A", adapter.A, (G.T @ U).T, U), ("B", adapter.B, G @ V, V))
    p: Any
    for letter, p, expected, other in products:
        yield letter, to_arrays(p.grad.reshape(expected.shape)), expected, other

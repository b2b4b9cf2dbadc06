"""The invariant of an exact gradient: A.grad = c Bᵀ G and B.grad = c G Aᵀ, with one number c."""

import numpy as np

from lorsum._arrays import frobenius
from lorsum.torch import _bridge as bridge
from lorsum.torch._common_factor import tolerance

__all__ = ["check_against_autograd", "multiple_of_captured"]


def check_against_autograd(adapter, W, G, rounding):
    """An error that names the adapter if G is not the gradient whose factors autograd has in ``.grad``.

    Parameters
    ----------
    adapter : Adapter
        After a backward pass.
    W : LowRank
        Its matrix in the backward pass.
    G : LowRank or array
        The captured gradient, times c.
    rounding : float
        How much of it rounding errors may be.

    Raises
    ------
    RuntimeError
        If they differ by more than rounding explains.
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


def multiple_of_captured(adapter, W, G):
    """The number c for which ``.grad`` is nearest to c Bᵀ G and c G Aᵀ; 1 where these are zero."""
    squares = inner = 0.0
    for _, actual, expected, _ in _both(adapter, W, G):
        size = float(abs(expected).max()) or 1.0
        squares += size**2 * float(((expected / size) ** 2).sum())
        inner += size**2 * float(((actual / size) * (expected / size)).sum())
    return inner / squares if squares > 0 else 1.0


def _both(adapter, W, G):
    """For A and B: the letter, ``.grad``, the product of G with the other factor that it should be, and that factor."""
    U, V = bridge.to_arrays(W)
    with np.errstate(all="ignore"):  # BLAS kernels set flags for numbers beside the matrices
        products = (("A", adapter.A, (G.T @ U).T, U), ("B", adapter.B, G @ V, V))
    for letter, p, expected, other in products:
        yield letter, bridge.to_arrays(p.grad.reshape(expected.shape)), expected, other

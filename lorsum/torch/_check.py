"""The invariant of an exact gradient: A.grad = c Bᵀ G and B.grad = c G Aᵀ, with one number c."""

from lorsum._arrays import frobenius
from lorsum.torch import _bridge as bridge

__all__ = ["check_against_autograd"]


def check_against_autograd(adapter, G, rounding):
    """An error that names the adapter if G is not the gradient whose factors autograd has in ``.grad``.

    Parameters
    ----------
    adapter : Adapter
        After a backward pass.
    G : LowRank or array
        The captured gradient, times c.
    rounding : float
        How much of it rounding errors may be.

    Raises
    ------
    RuntimeError
        If they differ by more than rounding explains.
    """
    U, V = bridge.to_arrays(adapter.matrix())
    for letter, p, expected, other in (("A", adapter.A, (G.T @ U).T, U), ("B", adapter.B, G @ V, V)):
        actual = bridge.to_arrays(p.grad.reshape(expected.shape))
        difference, norm = float(frobenius(actual - expected)), float(frobenius(actual))
        if not difference <= 1e-3 * norm + 100 * float(rounding) * float(frobenius(other)):
            raise RuntimeError(
                f"`{adapter.name}`: lora_{letter}.grad differs by {difference:.3g}, of {norm:.3g}, from what was "
                "captured. Its weights take part in the loss in another way than lora_B(lora_A(x)), a call was missed, "
                ".grad was changed by more than one common factor, or it was not averaged over the processes."
            )

"""The invariant of an exact gradient: A.grad = c Bᵀ G and B.grad = c G Aᵀ, with one number c."""

import torch

from lorsum.torch._gradient import half_to_single

__all__ = ["check_against_autograd"]


def check_against_autograd(adapter, gradient, c):
    """An error that names the adapter if c G is not the gradient whose factors autograd has in ``.grad``.

    Parameters
    ----------
    adapter : Adapter
        After a backward pass.
    gradient : Gradient
        G.
    c : float
        What ``.grad`` was multiplied by since.

    Raises
    ------
    RuntimeError
        If they differ by more than rounding explains.
    """
    U, V = map(half_to_single, adapter.matrix())
    G = gradient.times(c)
    tolerance, noise = 1e-3, abs(c) * float(gradient.rounding())
    for letter, grad, expected, other in (
        ("A", adapter.A.grad, (G.T @ U).T, U),
        ("B", adapter.B.grad, G @ V, V),
    ):
        actual = half_to_single(grad).reshape(expected.shape)
        difference, norm = (float(torch.linalg.vector_norm(x)) for x in (actual - expected, actual))
        if not difference <= tolerance * norm + 100 * noise * float(torch.linalg.vector_norm(other)):
            raise RuntimeError(
                f"`{adapter.name}`: lora_{letter}.grad differs by {difference:.3g}, of {norm:.3g}, from what was "
                "captured. Its weights take part in the loss in another way than lora_B(lora_A(x)), a call was missed, "
                ".grad was changed by more than one common factor, or it was not averaged over the processes."
            )

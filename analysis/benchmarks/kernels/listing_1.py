"""The paper's LoRSum (section 3 and Listing 1) in PyTorch as a user runs it: term by term, Gram matrix and `solve`."""

from typing import Literal

import torch

__all__ = ["listing_1"]


@torch.no_grad()
def listing_1(
    factors: list[tuple[torch.Tensor, torch.Tensor]],
    coefficients: list[float],
    iters: int = 1,
    reg: float = 0.0,
    start: Literal["in", "out"] = "in",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Alternating updates of the first pair on the sum of all of them.

    Parameters
    ----------
    factors : list of pairs of tensors
        (Vᵢᵀ, Uᵢ), "in" of shape (rᵢ, n) and "out" of shape (m, rᵢ).
    coefficients : list of float
        The cᵢ.
    iters : int
        K; each iteration updates both factors.
    reg : float
        λ.
    start : {"in", "out"}
        The factor that is updated first.

    Returns
    -------
    pair of tensors
        Vᵀ and U.
    """
    Vt0, U0 = factors[0]
    Vt, U = Vt0, U0
    ridge = reg * torch.eye(len(Vt0), dtype=Vt0.dtype)
    order = (_update_in, _update_out) if start == "in" else (_update_out, _update_in)
    for _ in range(iters):
        for update in order:
            Vt, U = update(factors, coefficients, Vt, U, Vt0, U0, reg, ridge)
    return Vt, U


def _update_in(factors, coefficients, Vt, U, Vt0, U0, reg, ridge):
    right = reg * Vt0
    for c, (Vt_i, U_i) in zip(coefficients, factors, strict=True):
        right.add_((U.T @ U_i) @ Vt_i, alpha=c)
    return torch.linalg.solve(U.T @ U + ridge, right), U


def _update_out(factors, coefficients, Vt, U, Vt0, U0, reg, ridge):
    right = reg * U0
    for c, (Vt_i, U_i) in zip(coefficients, factors, strict=True):
        right.add_(U_i @ (Vt_i @ Vt.T), alpha=c)
    return Vt, torch.linalg.solve(Vt @ Vt.T + ridge, right.T).T

"""Half a step of LoRSum: the least-squares solution for one factor, the other being fixed."""

from contextlib import nullcontext

import numpy as np
from array_api_compat import is_numpy_array

from lorsum._arrays import column_sizes, conj, eps, eye_like, namespace_of
from lorsum._decompositions import qr, solve, svd
from lorsum.lowrank import LowRank

__all__ = ["column_space", "gram_half_step", "in_the_papers_gauge", "qr_half_step", "solved"]


def qr_half_step(W, V, T, S, U0, reg):
    """U from V by orthogonalisation: returns U, S, V, T, where U S and V T are the factors of the formula.

    Where λ = 0 the pair (U S, V T), T = S⁻ᵀ, is the same matrix as (U, V), and the iteration goes on with a V that is
    orthonormal and U = W V. It never multiplies by S and T, which may be badly conditioned: that is where digits go.
    """
    if reg is None:
        B, _, C, C_inverse_T, lost = _orthogonalised(V, None)
        xp = namespace_of(B)
        B = xp.where(lost, xp.zeros_like(B), B)
        T, S = _after(C, T), _after(C_inverse_T, S)
        return xp.where(lost, U0 @ T.mT, W.dot(conj(B))), S, B, T
    B, B_reg, C, C_inverse_T, lost = _orthogonalised(V, reg)
    xp = namespace_of(B)
    U = xp.where(lost, U0 @ C.mT, W.dot(conj(B)) + reg**0.5 * (U0 @ conj(B_reg)))
    return U @ C_inverse_T, None, V, None


def gram_half_step(W, V, T, S, U0, reg):
    """The same with the Gram matrix, as the paper and its Listing 1 solve it.

    V's columns are scaled by their sizes, or √λ where that is larger, so that no square leaves the range.
    """
    xp, size = namespace_of(V), column_sizes(V)
    if reg is not None:
        size = xp.clip(size, min=reg**0.5)
    B = V / size
    gram, right = B.mT @ conj(B), W.dot(conj(B))
    if reg is not None:
        weight = reg**0.5 / size
        gram, right = gram + weight**2 * eye_like(V.shape[-1], V), right + reg**0.5 * weight * U0
    return solve(gram.mT, right.mT).mT / size, None, V, None


def solved(half_step, W, V, U0, reg):
    """The U of the formula itself, half a step from V."""
    U, S, *_ = half_step(W, V, None, None, U0, reg)
    return U if S is None else U @ S


def in_the_papers_gauge(U, S, V, T):
    """(U S, V T) where rounding these costs at most two digits; else (U, V), the same matrix without the loss.

    The rounding error of the product is at most ε |U| (|S| |T|ᵀ) |V|ᵀ: a Skeel condition number, blind to column
    scaling. Nor is anything lost where the formula's factors leave the range of their dtype.
    """
    if S is None:
        return LowRank._of(U, V)
    xp = namespace_of(T)
    skeel = xp.max(xp.sum(xp.abs(S) @ xp.abs(T).mT, axis=-1, keepdims=True), axis=-2, keepdims=True)
    # Only NumPy warns; torch.compile follows no errstate
    with np.errstate(over="ignore", invalid="ignore") if is_numpy_array(T) else nullcontext():
        US, VT = U @ S, V @ T
    finite = [xp.all(xp.all(xp.isfinite(X), axis=-1, keepdims=True), axis=-2, keepdims=True) for X in (US, VT)]
    harmless = (skeel <= 100) & finite[0] & finite[1]
    return LowRank._of(xp.where(harmless, US, U), xp.where(harmless, VT, V))


def column_space(V):
    """An orthonormal basis of V's columns, with zeros in place of directions that V does not have."""
    B, _, _, _, lost = _orthogonalised(V, None)
    xp = namespace_of(B)
    return xp.where(lost, xp.zeros_like(B), B)


def _orthogonalised(V, reg):
    """[V; √λI] = [B; B_reg] C with orthonormal columns on the left: B, B_reg, C, C⁻ᵀ, and which columns are lost.

    QR, then the SVD of the small triangle with its columns scaled to 1, so that graded columns keep their digits.
    Columns of B whose singular value is rounding error carry no information about V: they are marked lost, their
    value set to 1.
    """
    xp = namespace_of(V)
    n, r = V.shape[-2:]
    if reg is not None:
        ridge = xp.broadcast_to(reg**0.5 * eye_like(r, V), (*V.shape[:-2], r, r))
        V = xp.concat([V, ridge], axis=-2)
    Q, R = qr(V)
    size = column_sizes(R)
    P, s, Zh = svd(R / size)
    lost = s <= r**0.5 * eps(xp, s.dtype) * s[..., :1]
    s = xp.where(lost, xp.ones_like(s), s)[..., None]
    B = Q @ P
    return B[..., :n, :], B[..., n:, :], s * Zh * size, conj(Zh) / (s * size), lost[..., None, :]


def _after(C, T):
    return C if T is None else C @ T

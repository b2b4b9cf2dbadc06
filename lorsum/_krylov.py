"""Block Krylov acceleration: the best low-rank approximation in the span of all iterates of LoRSum."""

from lorsum._arrays import conj, namespace_of
from lorsum._decompositions import qr
from lorsum._half_steps import qr_half_step
from lorsum.lowrank import LowRank
from lorsum.svd import truncated_svd

__all__ = ["krylov"]


def krylov(W, X0, iters, reg, first, half_step, observe):
    """Block Golub–Kahan bidiagonalisation with full reorthogonalisation, as a sweep of :func:`lorsum.lorsum`.

    Q is an orthonormal basis of all left iterates. Each of its blocks is multiplied by Wᵀ anyway, so that P = Wᵀ Q̄
    comes at no cost, and the best approximation in the span is the truncated SVD of Q Qᴴ W = Q Pᵀ.
    """
    if first == "V":
        return krylov(W.T, X0.T, iters, reg, "U", half_step, lambda k, X: observe(k, X.T)).T
    observe(0, X0)
    X, Q, P, B = X0, X0.U[..., :0], X0.V[..., :0], X0.V[..., :0]
    U = qr_half_step(W, X0.V, None, None, X0.U, None)[0]  # as in LoRSum, with its answer for zero columns
    for k in range(iters):
        Q, new = _extended(Q, U)
        P = _beside(P, W.T.dot(conj(new)))
        X = truncated_svd(LowRank._of(Q, P), X0.rank).to_lowrank()
        observe(k + 1, X)
        if k + 1 < iters:
            B, new = _extended(B, P[..., -new.shape[-1] :])
            U = W.dot(conj(new))
    return X


def _extended(Q, X):
    """An orthonormal basis of Q's and X's columns, and its new part; columns that bring nothing new become zero."""
    xp = namespace_of(Q)
    X = X[..., : min(X.shape[-1], Q.shape[-2] - Q.shape[-1])]  # no more directions than there are
    for _ in range(3):  # a pass leaves what cancelled in it, and dependent columns magnify what is left
        X = qr(X - Q @ (conj(Q).mT @ X))[0]
    if Q.shape[-1]:
        overlap = xp.max(xp.abs(conj(Q).mT @ X), axis=-2, keepdims=True)
        X = xp.where(overlap < 1e-6, X, xp.zeros_like(X))
    return _beside(Q, X), X


def _beside(A, B):
    return namespace_of(A).concat([A, B], axis=-1)

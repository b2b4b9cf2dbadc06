"""LoRSum in any array library: the readable reference, of which the Numba kernels are a fast version.

All sweeps start with U; :func:`by_array_code` hands them the transposed problem where V comes first.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TypeAlias

import numpy as np
from array_api_compat import is_numpy_array

from lorsum._arrays import column_sizes, conj, eye_like, namespace_of
from lorsum._decompositions import orthogonalised, qr, solve
from lorsum.alternating.plan import Plan
from lorsum.alternating.problem import Problem, is_zero
from lorsum.lowrank import LowRank, LowRankSum
from lorsum.svd import truncated_svd
from lorsum.typing import Array, Scalar

Observer: TypeAlias = Callable[[int, LowRank], None]
HalfStep: TypeAlias = Callable[[LowRankSum, Array, Array, Scalar], Array]


def by_array_code(problem: Problem, plan: Plan, observe: Observer) -> LowRank:
    """The solution of a problem; ``observe`` is called with k and the k-th iterate."""
    W, X0, reg = problem.target, problem.init, problem.reg
    if plan.way == "QR coefficients":
        W, X0, expanded = compressed(W, X0)
        observe = _after(expanded, observe)
    sweep = _sweep(problem)
    if problem.first == "U":
        X = sweep(W, X0, problem.iters, reg, observe)
    else:
        X = sweep(W.T, X0.T, problem.iters, reg, _after(_transposed, observe)).T
    return expanded(X) if plan.way == "QR coefficients" else X


def _sweep(problem: Problem) -> Callable[[LowRankSum, LowRank, int, Scalar, Observer], LowRank]:
    """The one of the four sweeps below that the options ask for."""
    if problem.accelerate == "krylov":
        return krylov
    half_step = gram_half_step if problem.solver == "gram" else qr_half_step
    if problem.simultaneous:
        return partial(simultaneous, half_step=half_step)
    if is_zero(problem.reg) and problem.solver != "gram":
        return orthogonal
    return partial(alternating, half_step=half_step)


# --- sweeps ---


def alternating(W: LowRankSum, X0: LowRank, iters: int, reg: Scalar, observe: Observer, half_step: HalfStep) -> LowRank:
    """Equations 4 and 5: each factor from the newest other one."""
    (U, V), (U0, V0) = X0, X0
    observe(0, X0)
    for k in range(iters):
        U = half_step(W, V, U0, reg)
        V = half_step(W.T, U, V0, reg)
        observe(k + 1, LowRank._of(U, V))
    return LowRank._of(U, V)


def simultaneous(
    W: LowRankSum, X0: LowRank, iters: int, reg: Scalar, observe: Observer, half_step: HalfStep
) -> LowRank:
    """Algorithm 2 as printed: both factors from the last iterate."""
    (U, V), (U0, V0) = X0, X0
    observe(0, X0)
    for k in range(iters):
        U, V = half_step(W, V, U0, reg), half_step(W.T, U, V0, reg)
        observe(k + 1, LowRank._of(U, V))
    return LowRank._of(U, V)


def orthogonal(W: LowRankSum, X0: LowRank, iters: int, reg: Scalar, observe: Observer) -> LowRank:
    """Equations 4 and 5 with λ = 0, as orthogonal iteration: U ← W V for orthonormal columns of V, and so on.

    The factors of the equations are U S and V T with T = S⁻ᵀ, the same matrix. The iteration never multiplies by S and
    T, which may be badly conditioned: that is where digits go.
    """
    (U, V), (U0, V0) = X0, X0
    S = T = eye_like(X0.rank, U)
    observe(0, X0)
    for k in range(iters):
        U, S, V, T = _orthogonal_half_step(W, V, T, S, U0)
        V, T, U, S = _orthogonal_half_step(W.T, U, S, T, V0)
        observe(k + 1, _factors_of_the_formula(U, S, V, T))
    return _factors_of_the_formula(U, S, V, T)


def krylov(W: LowRankSum, X0: LowRank, iters: int, reg: Scalar, observe: Observer) -> LowRank:
    """Block Golub–Kahan bidiagonalisation: the best low-rank approximation in the span of all iterates.

    Q is an orthonormal basis of all left iterates. Each of its blocks is multiplied by Wᵀ anyway, so that P = Wᵀ Q̄
    comes at no cost, and the best approximation in the span is the truncated SVD of Q Qᴴ W = Q Pᵀ.
    """
    observe(0, X0)
    X, Q, P, B = X0, X0.U[..., :0], X0.V[..., :0], X0.V[..., :0]
    identity = eye_like(X0.rank, X0.U)
    U = _orthogonal_half_step(W, X0.V, identity, identity, X0.U)[0]  # with LoRSum's answer for zero columns
    for k in range(iters):
        Q, new = _extended(Q, U)
        P = _beside(P, W.T.dot(conj(new)))
        X = truncated_svd(LowRank._of(Q, P), X0.rank).to_lowrank()
        observe(k + 1, X)
        if k + 1 < iters:
            B, new = _extended(B, P[..., -new.shape[-1] :])
            U = W.dot(conj(new))
    return X


def _extended(Q: Array, X: Array) -> tuple[Array, Array]:
    """An orthonormal basis of Q's and X's columns, and its new part; columns that bring nothing new become zero."""
    xp = namespace_of(Q)
    X = X[..., : min(X.shape[-1], Q.shape[-2] - Q.shape[-1])]  # no more directions than there are
    for _ in range(3):  # a pass leaves what cancelled in it, and dependent columns magnify what is left
        X = qr(X - Q @ (conj(Q).mT @ X))[0]
    if Q.shape[-1]:
        overlap = xp.max(xp.abs(conj(Q).mT @ X), axis=-2, keepdims=True)
        X = xp.where(overlap < 1e-6, X, xp.zeros_like(X))
    return _beside(Q, X), X


def _beside(A: Array, B: Array) -> Array:
    return namespace_of(A).concat([A, B], axis=-1)


# --- half-steps: argmin ‖U Vᵀ − W‖² + λ‖U − U₀‖² over U ---


def gram_half_step(W: LowRankSum, V: Array, U0: Array, reg: Scalar) -> Array:
    """U = (W V + λU₀) (VᵀV + λI)⁻¹ by the Gram matrix, as the paper and its Listing 1 solve it.

    V's columns are scaled by their sizes, or √λ where that is larger, so that no square leaves the range.
    """
    size = namespace_of(V).clip(column_sizes(V), min=reg**0.5)
    B, weight = V / size, reg**0.5 / size
    gram = B.mT @ conj(B) + weight**2 * eye_like(V.shape[-1], V)
    right = W.dot(conj(B)) + reg**0.5 * weight * U0
    return solve(gram.mT, right.mT).mT / size


def qr_half_step(W: LowRankSum, V: Array, U0: Array, reg: Scalar) -> Array:
    """The same by orthogonalising [V; √λI], which loses no digits to the conditioning of V."""
    if is_zero(reg):
        identity = eye_like(V.shape[-1], V)
        U, S, *_ = _orthogonal_half_step(W, V, identity, identity, U0)
        return U @ S
    xp, (n, r) = namespace_of(V), V.shape[-2:]
    ridge = xp.broadcast_to(reg**0.5 * eye_like(r, V), (*V.shape[:-2], r, r))
    B, C, C_inverse_T, lost = orthogonalised(xp.concat([V, ridge], axis=-2))
    B, B_ridge = B[..., :n, :], B[..., n:, :]
    return xp.where(lost, U0 @ C.mT, W.dot(conj(B)) + reg**0.5 * (U0 @ conj(B_ridge))) @ C_inverse_T


def _orthogonal_half_step(W: LowRankSum, V: Array, T: Array, S: Array, U0: Array) -> tuple[Array, ...]:
    """The U, S, V and T after half a step from V and T; what V's null space leaves open is taken from U₀."""
    B, C, C_inverse_T, lost = orthogonalised(V)
    xp = namespace_of(B)
    B = xp.where(lost, xp.zeros_like(B), B)
    T, S = C @ T, C_inverse_T @ S
    return xp.where(lost, U0 @ T.mT, W.dot(conj(B))), S, B, T


def _factors_of_the_formula(U: Array, S: Array, V: Array, T: Array) -> LowRank:
    """(U S, V T) where rounding these costs at most two digits; else (U, V), the same matrix without the loss.

    The rounding error of the product is at most ε |U| (|S| |T|ᵀ) |V|ᵀ: a Skeel condition number, blind to column
    scaling. Nor is anything lost where the formula's factors leave the range of their dtype.
    """
    xp = namespace_of(T)
    skeel = xp.max(xp.sum(xp.abs(S) @ xp.abs(T).mT, axis=-1, keepdims=True), axis=-2, keepdims=True)
    # Only NumPy warns; torch.compile follows no errstate
    with np.errstate(over="ignore", invalid="ignore") if is_numpy_array(T) else nullcontext():
        US, VT = U @ S, V @ T
    finite = [xp.all(xp.all(xp.isfinite(X), axis=-1, keepdims=True), axis=-2, keepdims=True) for X in (US, VT)]
    harmless = (skeel <= 100) & finite[0] & finite[1]
    return LowRank._of(xp.where(harmless, US, U), xp.where(harmless, VT, V))


# --- coefficients ---


def compressed(W: LowRankSum, X0: LowRank) -> tuple[LowRankSum, LowRank, Callable[[LowRank], LowRank]]:
    """W and X₀ in orthonormal bases of all their factors: small matrices, and the way back.

    X₀ comes first in the QR, so that its triangle is what the QR of X₀ alone would give: no rounding error comes
    between the compressed start and the span of the one that was given.
    """
    terms = W.terms if X0 is W.terms[0] else (X0, *W.terms)
    concat = namespace_of(X0.U).concat
    (Qu, Ru), (Qv, Rv) = (qr(concat([tuple(A)[side] for A in terms], axis=-1)) for side in (0, 1))
    cores, first = [], 0
    for A in terms:
        cores.append(LowRank._of(*(R[..., first : first + A.rank] for R in (Ru, Rv))))
        first += A.rank
    core = LowRankSum._of(tuple(cores[-len(W.terms) :]), W.coefficients).to_dense()
    return LowRankSum._of((core,), (1,)), cores[0], lambda X: LowRank._of(Qu @ X.U, Qv @ X.V)


def _after(change: Callable[[LowRank], LowRank], observe: Observer) -> Observer:
    """What observes iterates after a change of each."""
    return lambda k, X: observe(k, change(X))


def _transposed(X: LowRank) -> LowRank:
    return X.T

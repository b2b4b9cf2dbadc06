"""What the tests compare with: dense textbook formulas that share no line with lorsum."""

import numpy as np
import scipy.linalg

EPS = np.finfo(np.float64).eps


def dense(A):
    """A low-rank matrix, a sum, an operator or an array as a NumPy array, multiplied out from its parts."""
    if hasattr(A, "terms"):
        return sum(c * dense(term) for term, c in zip(A.terms, A.coefficients, strict=True))
    if hasattr(A, "matmat"):
        return A.matmat(np.eye(A.shape[1]))
    return np.asarray(A.U) @ np.asarray(A.V).mT if hasattr(A, "U") else np.asarray(A)


def distance(A, B):
    """‖A − B‖ / ‖B‖ in the Frobenius norm, of anything that has a dense form (0 for two zero matrices)."""
    A, B = dense(A), dense(B)
    assert A.shape == B.shape
    size = np.abs(B).max(initial=0) or 1  # the squares of 1e200 overflow
    return scipy.linalg.norm((A / size - B / size).ravel()) / (scipy.linalg.norm((B / size).ravel()) or 1)


def truncated(W, rank):
    """The best approximation of a dense matrix, by LAPACK."""
    U, s, Vh = scipy.linalg.svd(dense(W), full_matrices=False)
    return U[:, :rank] * s[:rank] @ Vh[:rank]


def half_step(W, V, U0=0, reg=0, solve=np.linalg.solve):
    """argmin ‖U Vᵀ − W‖² + λ‖U − U₀‖² by the normal equations."""
    eye = np.eye(V.shape[1], dtype=int)
    return solve(V.conj().T @ V + reg * eye, (W @ V.conj() + reg * U0).T).T


def alternating(W, U0, V0, iters, reg=0, first="U", solve=np.linalg.solve):
    """The factors after equations 4 and 5, with λ as in Listing 1."""
    U, V = U0, V0
    for side in ("UV" if first == "U" else "VU") * iters:
        if side == "U":
            U = half_step(W, V, U0, reg, solve)
        else:
            V = half_step(W.T, U, V0, reg, solve)
    return U, V


def simultaneous(W, U0, V0, iters, reg=0):
    """The factors after Algorithm 2 as printed, with the λI that its line 5 lacks."""
    U, V = U0, V0
    for _ in range(iters):
        U, V = half_step(W, V, U0, reg), half_step(W.T, U, V0, reg)
    return U, V


def solve_exactly(A, B):
    """A⁻¹ B by Gauss–Jordan elimination, for arrays of fractions (no rounding, so no pivots for size)."""
    A, B = A.copy(), B.copy()
    for i in range(len(A)):
        pivot = next(k for k in range(i, len(A)) if A[k, i] != 0)
        for X in (A, B):
            X[[i, pivot]] = X[[pivot, i]]
        B[i], A[i] = B[i] / A[i, i], A[i] / A[i, i]
        for k in range(len(A)):
            if k != i:
                B[k], A[k] = B[k] - A[k, i] * B[i], A[k] - A[k, i] * A[i]
    return B


def nearest_least_squares(W, V, U0):
    """Of all minimisers of ‖U Vᵀ − W‖ the nearest to U₀, for V of any rank, V's columns being scaled to one size."""
    size = scipy.linalg.norm(V, axis=0)
    V, U0 = V / size, U0 * size
    return (U0 + (W - U0 @ V.T) @ scipy.linalg.pinv(V.T, rtol=1e-10)) / size


def orthogonal_iteration(W, V, iters):
    """The matrix that orthogonal (subspace) iteration by QR leads to, started on V's columns."""
    for _ in range(iters):
        Q = scipy.linalg.qr(V, mode="economic")[0]
        Q = scipy.linalg.qr(W @ Q, mode="economic")[0]
        V = W.T @ Q
    return Q @ V.T


def listing_1(factors, coefficients, num_iters=1, lmbd=0.0, start_turn="in"):
    """The paper's Listing 1: pairs (Vᵀ, U), coefficients; the pair after ``num_iters`` iterations."""
    turns = ["in", "out"] if start_turn == "in" else ["out", "in"]
    anchor_in, anchor_out = weight_in, weight_out = factors[0]
    ridge = lmbd * np.eye(len(weight_in))
    for turn in turns * num_iters:
        if turn == "in":
            right = lmbd * anchor_in + sum(
                c * (weight_out.T @ out) @ in_ for c, (in_, out) in zip(coefficients, factors, strict=True)
            )
            weight_in = np.linalg.solve(weight_out.T @ weight_out + ridge, right)
        else:
            right = lmbd * anchor_out + sum(
                c * out @ (in_ @ weight_in.T) for c, (in_, out) in zip(coefficients, factors, strict=True)
            )
            weight_out = np.linalg.solve(weight_in @ weight_in.T + ridge, right.T).T
    return weight_in, weight_out

"""Numba kernels for small problems, where Python between the operations would cost more than the operations.

Factors are kept as rows, shapes (r, m) and (r, n), which is how a layer's S and X come. Work of size r × r is in
float64. The kernels orthogonalise by Cholesky factors of Gram matrices, in two passes, where the conditioning allows
it without a loss, and by QR where it does not. They give up where columns are dependent to rounding: the caller then
takes the general path, which has an answer for that too.
"""

import numpy as np
from numba import njit

__all__ = ["alternating", "balanced"]

# Condition numbers up to which Gram matrices leave no error above the rounding of the factors themselves
TWO_PASSES_IN_DOUBLE = 30.0
TWO_PASSES_IN_SINGLE = 1e5
DEPENDENT = 1e13  # condition number from which columns are dependent to rounding
HARMLESS_GAUGE = 100.0  # what the change to the paper's factors may cost, see lorsum.alternating


@njit(cache=True)
def alternating(Us, Vs, c, U0, V0, iters, reg, v_first, balance):
    """Success, U and V after ``iters`` iterations on Σ cᵢ Uᵢ Vᵢᵀ from (U₀, V₀); all factors as rows, in two tuples."""
    if reg == 0 and not _is_finite(V0 if v_first else U0):  # the factor that nothing below reads
        return False, U0, V0
    U, V = U0, V0
    S, T = np.eye(len(U)), np.eye(len(V))
    for half in range(2 * iters):
        if (half % 2 == 0) == v_first:
            ok, V, T, U, S = _half_step(Vs, Us, c, U, S, T, V0, reg)
        else:
            ok, U, S, V, T = _half_step(Us, Vs, c, V, T, S, U0, reg)
        if not ok:
            return False, U0, V0
    if balance:
        return balanced(U, V)
    if reg == 0 and np.max(np.sum(np.abs(S) @ np.abs(T).T, axis=1)) <= HARMLESS_GAUGE:
        U, V = _times(S, U), _times(T, V)
    return _is_finite(U) and _is_finite(V), U, V


@njit(cache=True)
def balanced(U, V):
    """Success and the rows of U√s and V√s, from the singular value decomposition of U Vᵀ."""
    ok, Bu, Cu, _ = _orthonormal(U, 0.0)
    if not ok:
        return False, U, V
    ok, Bv, Cv, _ = _orthonormal(V, 0.0)
    if not ok:
        return False, U, V
    core = Cu @ np.ascontiguousarray(Cv.T)
    if not _is_finite(core):
        return False, U, V
    P, s, Qt = np.linalg.svd(core)
    return True, _times(P * np.sqrt(s), Bu), _times(Qt.T * np.sqrt(s), Bv)


@njit(cache=True)
def _half_step(Us, Vs, c, V, T, S, U0, reg):
    """Success, U, S, V, T of lorsum.alternating's half-step by QR."""
    ok, B, C, K = _orthonormal(V, reg)
    if not ok:
        return False, U0, S, V, T
    if reg == 0:  # W B, and the changes of gauge
        return True, _product(Us, Vs, c, B), np.ascontiguousarray(K.T) @ S, B, C @ T
    # (W B + λ U₀ K) Kᵀ
    U = _times(K.T, _product(Us, Vs, c, B)) + (reg * (K @ K.T)).astype(U0.dtype) @ U0
    return True, U, S, V, T


@njit(cache=True)
def _product(Us, Vs, c, B):
    """The rows of W B."""
    U = (c[0] * (B @ Vs[0].T)) @ Us[0]
    for i in range(1, len(c)):
        U += (c[i] * (B @ Vs[i].T)) @ Us[i]
    return U


@njit(cache=True)
def _orthonormal(V, reg):
    """Success, B, C and K = C⁻¹ with V = B C, where the columns of [B; √λ K] are orthonormal."""
    X = V.astype(np.float64)
    ok, C, K, condition = _inverse_root(X @ X.T + reg * np.eye(len(X)))
    if not ok or condition > (TWO_PASSES_IN_DOUBLE if V.itemsize > 4 else TWO_PASSES_IN_SINGLE):
        return _orthonormal_by_qr(V, reg)
    X = np.ascontiguousarray(K.T) @ X
    if condition**2 * 2e-15 > np.finfo(V.dtype).eps:
        ok, C2, K2, _ = _inverse_root(X @ X.T + reg * (np.ascontiguousarray(K.T) @ K))
        X, C, K = np.ascontiguousarray(K2.T) @ X, C2 @ C, K @ K2
    return ok, X.astype(V.dtype), C, K


@njit(cache=True)
def _orthonormal_by_qr(V, reg):
    """The same by Householder QR, which does not square the condition number and costs three times as much."""
    r, n = V.shape
    X = np.zeros((r, n + r))
    X[:, :n] = V
    for i in range(r):
        X[i, n + i] = np.sqrt(reg)
    if not _is_finite(X):
        return False, V, X, X
    Q, R = np.linalg.qr(X.T)
    C = np.ascontiguousarray(R)
    ok, K, condition = _inverse(C)
    return ok and condition < DEPENDENT, np.ascontiguousarray(Q[:n].T).astype(V.dtype), C, K


@njit(cache=True)
def _inverse_root(gram):
    """Success, C and K = C⁻¹ with CᵀC the Gram matrix, and a bound of the condition number of C, its columns scaled."""
    r = len(gram)
    C = np.zeros((r, r))  # Cholesky, a row of the upper triangle at a time
    for i in range(r):
        for j in range(i, r):
            x = gram[i, j]
            for k in range(i):
                x -= C[k, i] * C[k, j]
            if i == j:
                if not (x > 0 and np.isfinite(x)):
                    return False, C, C, np.inf
                C[i, i] = np.sqrt(x)
            else:
                C[i, j] = x / C[i, i]
    ok, K, condition = _inverse(C)
    return ok, C, K, condition


@njit(cache=True)
def _inverse(C):
    """Success, the inverse of an upper triangle, and a bound of its condition number with columns scaled to 1."""
    r = len(C)
    K = np.zeros((r, r))
    bound = 0.0
    for i in range(r):
        if C[i, i] == 0:
            return False, K, np.inf
    for j in range(r):
        K[j, j] = 1 / C[j, j]
        for i in range(j - 1, -1, -1):
            x = 0.0
            for k in range(i + 1, j + 1):
                x += C[i, k] * K[k, j]
            K[i, j] = -x / C[i, i]
    for i in range(r):  # ‖C D⁻¹‖² ‖D K‖², Frobenius norms, D the column norms of C
        bound += np.sum(C[:, i] ** 2) * np.sum(K[i] ** 2)
    return np.isfinite(bound), K, np.sqrt(r * bound)


@njit(cache=True)
def _times(A, X):
    """The rows of X A for X given as rows, in X's dtype."""
    return (np.ascontiguousarray(A.T) @ X.astype(np.float64)).astype(X.dtype)


@njit(cache=True)
def _is_finite(X):
    return np.isfinite(X).all()

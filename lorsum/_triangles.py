"""Numba kernels for narrow matrices kept as rows: orthonormal bases, triangles and their inverses, small products.

Work of size r × r is in float64. A basis comes from the Cholesky factor of the Gram matrix where the conditioning
allows that, in two passes where one would cost digits, and from a QR where two would too.
"""

import numpy as np

from lorsum._blas import gemm
from lorsum._cache import kernel

__all__ = ["BLOCK", "balanced", "balanced_with_basis", "inverse_root", "is_finite", "orthonormal", "times", "turned"]

BLOCK = 1024  # columns that are worked on at a time: with all terms they fit into the second-level cache
ROTATED = 12  # columns up to which rotations cost less than LAPACK's SVD, and much less where its code is not in cache
SWEEPS = 30  # at the most: eight are the most that was seen
# Condition numbers up to which ...
TWO_PASSES_IN_DOUBLE = 30.0  # two Cholesky factors cost nothing
TWO_PASSES_IN_SINGLE = 1e4
DEPENDENT = 1e13  # columns are independent
SMALLEST_SQUARE = 1e-280  # in float64: what is smaller has lost digits to underflow, or its inverse's squares overflow


@kernel
def orthonormal(V, reg):
    """Success, B, C and K = C⁻¹ with V = B C, where the columns of [B; √λ K] are orthonormal."""
    X = V.astype(np.float64)
    ok, C, K, condition = inverse_root(X @ X.T, reg)
    if not ok or condition > (TWO_PASSES_IN_DOUBLE if V.itemsize > 4 else TWO_PASSES_IN_SINGLE):
        return _by_qr(V, reg)
    X = turned(K) @ X
    if condition**2 * 2e-15 > np.finfo(V.dtype).eps:
        ok, C2, K2, _ = inverse_root(X @ X.T + reg * (turned(K) @ K), 0.0)
        X, C, K = turned(K2) @ X, C2 @ C, K @ K2
    return ok, X.astype(V.dtype), C, K


@kernel
def _by_qr(V, reg):
    """The same by Householder QR, which does not square the condition number and costs three times as much."""
    r, n = V.shape
    X = np.zeros((r, n + r))
    X[:, :n] = V
    for i in range(r):
        X[i, n + i] = np.sqrt(reg)
    if not is_finite(X):
        return False, V, X, X
    Q, R = np.linalg.qr(X.T)
    C = np.ascontiguousarray(R)
    for i in range(r):
        if C[i, i] == 0:
            return False, V, C, C
    K, condition = _inverse(C)
    return condition < DEPENDENT / r, np.ascontiguousarray(Q[:n].T).astype(V.dtype), C, K


@kernel
def inverse_root(gram, reg):
    """Success, C and K = C⁻¹ with CᵀC = G + λI, and the condition number of C with its columns scaled to one size."""
    r = len(gram)
    C = np.zeros((r, r))
    for i in range(r):  # Cholesky's triangle, row by row, so that the inner loops run along rows
        for j in range(i, r):
            C[i, j] = gram[i, j]
        C[i, i] += reg
        for k in range(i):
            x = C[k, i]
            for j in range(i, r):
                C[i, j] -= x * C[k, j]
        if not (C[i, i] > SMALLEST_SQUARE and C[i, i] < np.inf):
            return False, C, C, np.inf
        x = 1 / np.sqrt(C[i, i])
        for j in range(i, r):
            C[i, j] *= x
    K, condition = _inverse(C)
    return condition < np.inf, C, K, condition


@kernel
def _inverse(C):
    """The inverse K of an upper triangle, and ‖C D⁻¹‖ ‖D K‖ / r with D the column norms of C: 1 if orthogonal."""
    r = len(C)
    K = np.zeros((r, r))
    squares = np.zeros(r)
    total = 0.0
    for i in range(r):
        for j in range(i, r):
            squares[j] += C[i, j] ** 2
    for i in range(r - 1, -1, -1):
        for k in range(i + 1, r):
            x = C[i, k]
            for j in range(k, r):
                K[i, j] -= x * K[k, j]
        x = 1 / C[i, i]
        K[i, i] = 1.0
        for j in range(i, r):
            K[i, j] *= x
            total += squares[i] * K[i, j] ** 2
    return K, np.sqrt(total / r)


@kernel
def balanced(U, V, blas):
    """Success and the rows of U√s and V√s, from the singular value decomposition of U Vᵀ."""
    ok, B, C, _ = orthonormal(V, 0.0)
    if not ok:
        return False, U, V
    return balanced_with_basis(times(C.T, U, blas), B, blas)


@kernel
def balanced_with_basis(U, B, blas):
    """The same for U Bᵀ with orthonormal columns of B."""
    ok, A, C, _ = orthonormal(U, 0.0)
    if not ok:
        return False, U, B
    P, s, Q = _singular(C)
    return True, times(P * np.sqrt(s), A, blas), times(Q * np.sqrt(s), B, blas)


@kernel
def _singular(C):
    """P, s and Q with C = P diag(s) Qᵀ, for an invertible C: small ones by Jacobi's rotations of pairs of columns."""
    r = len(C)
    if r > ROTATED:
        P, s, Qt = np.linalg.svd(C)
        return P, s, turned(Qt)
    size = np.max(np.abs(C))
    X, Qt = turned(C) / size, np.eye(r)  # the columns of C Q, as rows, until they are orthogonal
    for _ in range(SWEEPS):
        if not _rotated(X, Qt):
            break
    s = np.sqrt(np.sum(X * X, axis=1))
    order = np.argsort(-s)
    return turned(X[order]) / s[order], size * s[order], turned(Qt[order])


@kernel
def _rotated(X, Qt):
    """True if a sweep over all pairs of rows of X found any that were not orthogonal; Q is rotated with them."""
    r, any_ = len(X), False
    for i in range(r):
        for j in range(i + 1, r):
            a, b, c = 0.0, 0.0, 0.0
            for k in range(r):
                a, b, c = a + X[i, k] ** 2, b + X[i, k] * X[j, k], c + X[j, k] ** 2
            if abs(b) <= 1e-15 * np.sqrt(a * c):
                continue
            any_ = True
            z = (c - a) / (2 * b)
            t = (1.0 if z >= 0 else -1.0) / (abs(z) + np.sqrt(1 + z * z))
            cos = 1 / np.sqrt(1 + t * t)
            for A in (X, Qt):
                for k in range(r):
                    x, y = A[i, k], A[j, k]
                    A[i, k], A[j, k] = cos * (x - t * y), cos * (t * x + y)
    return any_


@kernel
def times(A, X, blas):
    """The rows of X A for X given as rows, in X's dtype."""
    A, Y = np.ascontiguousarray(A).astype(X.dtype), np.empty((A.shape[1], X.shape[1]), X.dtype)
    for x in range(0, X.shape[1], BLOCK):
        gemm(blas[0], True, False, A, X[:, x : x + BLOCK], 0.0, Y[:, x : x + BLOCK])
    return Y


@kernel
def turned(A):
    return np.ascontiguousarray(A.T)


@kernel
def is_finite(X):
    """True if nothing is a NaN or an infinity; no way out inside a row, so that the loop over it vectorises."""
    for i in range(len(X)):
        bad = False
        for j in range(X.shape[1]):
            bad |= not abs(X[i, j]) < np.inf
        if bad:
            return False
    return True

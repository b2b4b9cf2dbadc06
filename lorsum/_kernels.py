"""Numba kernels: the iteration of :func:`lorsum.lorsum` with no Python between the operations.

Factors are kept as rows, shapes (r, m) and (r, n), which is how a layer's S and X come. A half-step from the factor X,
which is fixed, to the other one, Y, is

    Z = (X₁ᵀX; X₂ᵀX; …),   K with (X K)ᵀ(X K) = I,   P = diag(c) Z K,   Y = Y₁P₁ + Y₂P₂ + … = W (X K),

where W = Σ Yⱼ diag(cⱼ) Xⱼᵀ; a dense term D adds D X K. What is small, R × r or r × r, is in float64. Y is made in
blocks of columns that stay in cache, and the next half-step's Z with it, so that a half-step reads each factor once.
Where that is cheaper, Z comes from the Gram matrices of both sides instead, as Z = G P, and Y is formed at the end.

K is the inverse of a Cholesky factor of XᵀX where the conditioning of X allows that at a loss of less than two digits;
else X is orthogonalised first, at no loss. The kernels give up where columns are dependent to rounding: array code then
takes over, which has an answer for that too.
"""

import numpy as np

from lorsum._blas import gemm
from lorsum._cache import kernel

BLOCK = 1024  # columns that are worked on at a time: with all terms they fit into the second-level cache
ROWS = 32  # rows that are multiplied at a time, at the least: as many streams as a processor fetches ahead
UNTHREADED = 2**18  # multiplications up to which OpenBLAS stays in one thread; above r = 8 the least of rows exceeds it
STACKED = 2**16  # numbers in all terms up to which a copy of them costs less than products with each
SMALL = 2**13  # numbers in one of more up to which this holds for it
ROTATED = 12  # columns up to which rotations cost less than LAPACK's SVD, and much less where its code is not in cache
SWEEPS = 30  # at the most: eight are the most that was seen
# Condition numbers up to which ...
HARMLESS = 10.0  # one Cholesky factor costs less than two digits
ORTHONORMAL = 3.0  # one Cholesky factor in float64 costs less than one digit
HARMLESS_FACTORS = 100.0  # the factors of the formula cost less than two digits, see lorsum.alternating.array_api
TWO_PASSES_IN_DOUBLE = 30.0  # two Cholesky factors cost nothing
TWO_PASSES_IN_SINGLE = 1e4
DEPENDENT = 1e13  # columns are independent
SMALLEST_SQUARE = 1e-280  # in float64: what is smaller has lost digits to underflow, or its inverse's squares overflow


@kernel(nogil=True)
def alternating(Us, Vs, dense, weights, problems, iters, v_first, by_gram, blas, first, last):
    """Success of the iterations on sums Σ cⱼ Uⱼ Vⱼᵀ + c D of the same terms, for ``first`` to ``last`` of a batch.

    ``Us`` and ``Vs`` have pairs of an array and False where it has the rows of a factor, (batch, rⱼ, m), or True where
    it has its columns. ``dense`` is D, (batch, m, n), with m = 0 where there is none. A sum has a row of ``weights``,
    the cⱼ and c, and one of the ``problems``: the number of the term that it starts from, λ, whether the result is to
    be balanced, and where it goes, U (batch, r, m) and V. ``blas``: the addresses of ?gemm for them and for float64.
    """
    m, n, zero = problems[0][3].shape[2], problems[0][4].shape[2], dense.dtype.type(0)
    starts = [problem[0] for problem in problems]
    for i in range(first, last):
        left, right, owner = _sides(i, Us, Vs, starts, m, n)
        D, grams = dense[i], (np.empty((0, 0)), np.empty((0, 0)))
        if by_gram:
            grams = _gram(left, m, len(owner), zero, blas), _gram(right, n, len(owner), zero, blas)
            if _squares_underflow(grams[0], left) or _squares_underflow(grams[1], right):
                return False
        for p in range(len(problems)):
            start, reg, balance, U, V = problems[p]
            c, first_row = weights[p][owner], np.argmax(owner == start)
            if v_first:
                ends = (left, grams[0], U[i]), (right, grams[1], V[i])
            else:
                ends = (right, grams[1], V[i]), (left, grams[0], U[i])
            if not _iterate(ends, c, first_row, (D, weights[p, -1], not v_first), iters, reg, balance, blas):
                return False
    return True


@kernel(nogil=True)
def compressed(Us, Vs, weights, m, n, blas):
    """Success, Σ cⱼ Uⱼ Vⱼᵀ in orthonormal bases U K and V L of all factors side by side; U, K, V, L."""
    left, right, owner = _sides(0, Us, Vs, [0], m, n)
    c, R, exact = weights[owner], len(owner), (blas[1], blas[1])
    core = np.empty((R, R))
    ok, C, K, condition = inverse_root(_gram(left, m, R, np.float64(0), exact), 0.0)
    if not ok or condition > ORTHONORMAL:
        return False, core, left, core, right, core
    ok, D, L, condition = inverse_root(_gram(right, n, R, np.float64(0), exact), 0.0)
    if not ok or condition > ORTHONORMAL:
        return False, core, left, core, right, core
    for a in range(R):
        for j in range(a, R):
            C[a, j] *= c[j]
    gemm(blas[1], False, True, C, D, 0.0, core)
    return True, core, left, K, right, L


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
def _sides(i, Us, Vs, starts, m, n):
    """The factors of the i-th matrix, pairs as before, small ones stacked before the others; the term of each row.

    Terms that an iteration starts from are in the stack, the first of all terms among them.
    """
    count = len(Us)
    ranks, stacked = np.empty(count, np.int64), np.empty(count, np.bool_)
    for j in range(count):
        ranks[j] = _rank(*Us[j])
    R = np.sum(ranks)
    small = STACKED if R * (m + n) <= STACKED else SMALL
    for j in range(count):
        stacked[j] = j in starts or ranks[j] * (m + n) <= small
    owner, row = np.empty(R, np.int64), 0
    for in_stack in (True, False):
        for j in range(count):
            if stacked[j] == in_stack:
                owner[row : row + ranks[j]] = j
                row += ranks[j]
    height = np.sum(ranks[stacked])
    left, right = np.empty((height, m), Us[0][0].dtype), np.empty((height, n), Us[0][0].dtype)
    return _side(i, Us, ranks, stacked, left), _side(i, Vs, ranks, stacked, right), owner


@kernel
def _side(i, Us, ranks, stacked, stack):
    row = 0
    for j in range(len(stacked)):
        if stacked[j]:
            _copy_rows(Us[j][0][i], Us[j][1], 0, stack[row : row + ranks[j]])
            row += ranks[j]
    _, (B, b), (C, c), (D, d) = Us
    nothing = stack[:0]
    return (
        (stack, False),
        (nothing if stacked[1] else B[i], b and not stacked[1]),
        (nothing if stacked[2] else C[i], c and not stacked[2]),
        (nothing if stacked[3] else D[i], d and not stacked[3]),
    )


@kernel
def _rank(A, by_columns):
    return A.shape[-1] if by_columns else A.shape[-2]


@kernel
def _iterate(ends, c, first_row, dense, iters, reg, balance, blas):
    """Success of the iteration that finds Y from X first.

    ``ends`` are the factors of all terms on the side of X, their Gram matrix or one without numbers, and where X goes;
    the same of Y. X starts from the rows after ``first_row``. ``dense`` is D, its coefficient, and whether D or its
    transpose has the shape of Y Xᵀ.
    """
    (Xs, G, X), (Ys, H, Y) = ends
    R, r, one, by_gram = len(c), len(X), np.eye(len(X)), len(G) > 0
    D, weight, upright = dense
    # X T is the formula's factor, N = T⁻ᵀ, and in the end Y has to be multiplied by ``last``
    T, N, last = one, one, one
    X[:], P = Xs[0][0][first_row : first_row + r], np.eye(R, r, -first_row)
    Z, gram, spread = _products_by_gram(G, P) if by_gram else (_products(Xs, X, R, blas), _gram_of(X, blas), 1.0)
    for half in range(2 * iters):
        final = half == 2 * iters - 1
        ok, C, K, condition = inverse_root(gram, reg)
        B, Q = X, K
        if not ok or condition * spread > HARMLESS or (not by_gram and _underflows(Z, Xs, X)):
            if by_gram:
                return False  # the Gram matrices have lost what an orthogonalisation would need
            ok, B, C, K = orthonormal(X, reg)
            if not ok:
                return False
            Z, Q = _products(Xs, B, R, blas), one
            if reg > 0 and _underflows(Z, Xs, B):
                return False
            if reg == 0:
                X[:], T, N, C, K = B, C @ T, transposed(K) @ N, one, one
        before, P = P, _weighted(c, Z @ Q)
        if reg > 0:
            P[first_row : first_row + r] += reg * K  # (W B Q + λ Y₀ K) Kᵀ
            P, Q = P @ transposed(K), Q @ transposed(K)
        else:
            other, T, N, last = T, transposed(K) @ N, C @ T, K
            if final and not balance and _cost_of_factors(T, N) <= HARMLESS_FACTORS:
                PT = P @ T
                if _underflow_left(PT, P, T, X):
                    return False
                P, Q, last = PT, Q @ T, other
        if by_gram:
            Z, gram, spread = _products_by_gram(H, P)
        else:
            A = times(weight * Q, B, blas) if D.size else B
            Z, gram, spread = _combine_and_multiply(Ys, P, D, upright, A, Y, not final, blas)
        X, Y, Xs, Ys, G, H, upright = Y, X, Ys, Xs, H, G, not upright
    if by_gram:
        if not _combined(Xs, P, X, Ys, before, last, Y, blas):
            return False
    elif reg == 0:
        Y[:] = times(last, Y, blas)
    if balance:
        ok, X[:], Y[:] = balanced_with_basis(X, Y, blas) if reg == 0 else balanced(X, Y, blas)
        return ok
    return is_finite(X) and is_finite(Y)


@kernel
def _combined(Xs, P, X, Ys, before, last, Y, blas):
    """Success of X = Σ Xⱼ Pⱼ and Y = Σ Yⱼ Bⱼ L, where ``before`` is B and ``last`` L."""
    BL = before @ last
    combine(Xs, P, X, blas)
    combine(Ys, BL, Y, blas)
    return not _underflow_left(BL, before, last, X)


# --- Z, P and Y ---


@kernel
def _products(Xs, X, R, blas):
    """The rows of XⱼᵀX for all terms."""
    Z = np.zeros((R, len(X)))
    part = np.empty(Z.shape, X.dtype)
    for x in range(0, X.shape[1], BLOCK):
        _add_products(Xs, x, X[:, x : x + BLOCK], part, Z, blas)
    return Z


@kernel
def combine(Ys, P, Y, blas):
    """Y = Σ Yⱼ Pⱼ."""
    P = P.astype(Y.dtype)
    for x in range(0, Y.shape[1], BLOCK):
        _combine_block(Ys, x, P, Y[:, x : x + BLOCK], blas)


@kernel
def _combine_and_multiply(Ys, P, D, upright, A, Y, multiply, blas):
    """Y = Σ Yⱼ Pⱼ + D A, and where wanted its products, its Gram matrix and 1, as _products_by_gram has them."""
    r = len(Y)
    Z, gram = np.zeros(P.shape), np.zeros((r, r))
    P = P.astype(Y.dtype)
    part, copy = np.empty(P.shape, Y.dtype), np.empty((r, min(Y.shape[1], BLOCK)))
    for x in range(0, Y.shape[1], BLOCK):
        block = Y[:, x : x + BLOCK]
        _combine_block(Ys, x, P, block, blas)
        _add_dense(D, upright, A, x, block, blas)
        if multiply:
            _add_products(Ys, x, block, part, Z, blas)
            _add_gram(Y, x, copy, gram, blas)
    return Z, gram, 1.0


@kernel
def _combine_block(Ys, x, P, Y, blas):
    row, beta, width = 0, 0.0, Y.shape[1]
    for j in range(len(Ys)):
        A, by_columns = Ys[j]
        rank = _rank(A, by_columns)
        if by_columns:
            step = max(UNTHREADED // (rank * len(Y)), 1)
            for y in range(0, width, step):
                part = A[x + y : x + min(y + step, width)]
                gemm(blas[0], True, True, P[row : row + rank], part, beta, Y[:, y : y + step])
        else:
            step = max(UNTHREADED // (width * len(Y)), ROWS)
            for first in range(0, rank, step):
                part = A[first : first + step, x : x + width]
                gemm(blas[0], True, False, P[row + first : row + first + len(part)], part, beta, Y)
                beta = 1.0
        row, beta = row + rank, 1.0


@kernel
def _add_dense(D, upright, A, x, Y, blas):
    """Y += D A, or Dᵀ A where D is not upright, for the columns of Y from x on."""
    if D.size == 0:
        return
    width = min(D.shape[1], BLOCK)
    height = max(UNTHREADED // (width * len(A)), 1)
    down, across = (height, width) if upright else (width, height)
    for y in range(0, Y.shape[1], down):
        for a in range(0, A.shape[1], across):
            part, block = A[:, a : a + across], Y[:, y : y + down]
            if upright:
                gemm(blas[0], False, True, part, D[x + y : x + y + block.shape[1], a : a + across], 1.0, block)
            else:
                gemm(blas[0], False, False, part, D[a : a + across, x + y : x + y + block.shape[1]], 1.0, block)


@kernel
def _add_products(Xs, x, X, part, Z, blas):
    row, width = 0, X.shape[1]
    for j in range(len(Xs)):
        A, by_columns = Xs[j]
        rank = _rank(A, by_columns)
        if by_columns:
            step = max(UNTHREADED // (rank * len(X)), 1)
            for y in range(0, width, step):
                columns = A[x + y : x + min(y + step, width)]
                gemm(blas[0], True, True, columns, X[:, y : y + step], 1.0 if y > 0 else 0.0, part[row : row + rank])
        else:
            step = max(UNTHREADED // (width * len(X)), ROWS)
            for first in range(0, rank, step):
                rows = A[first : first + step, x : x + width]
                gemm(blas[0], False, True, rows, X, 0.0, part[row + first : row + first + len(rows)])
        row += rank
    Z += part


# --- what underflows ---


@kernel
def _underflows(Z, Xs, X):
    """True if a number in Z is what underflow has left of the product of a column of X and one of a factor."""
    row, sizes = 0, np.empty(0)
    for j in range(len(Xs)):
        A, by_columns = Xs[j]
        for k in range(_rank(A, by_columns)):
            size = -1.0
            for a in range(len(X)):
                if not abs(Z[row, a]) < _normal(X):
                    continue
                if len(sizes) == 0:
                    sizes = np.array([_largest(X, False, b) for b in range(len(X))])
                if size < 0:
                    size = _largest(A, by_columns, k)
                if size > 0 and sizes[a] > 0 and size * sizes[a] < _normal(X):
                    return True
            row += 1
    return False


@kernel
def _squares_underflow(G, Xs):
    """True if a column's square in the Gram matrix G is what underflow has left of it: so may be its other products."""
    row = 0
    for j in range(len(Xs)):
        A, by_columns = Xs[j]
        for k in range(_rank(A, by_columns)):
            if not G[row, row] >= _normal(A) and _largest(A, by_columns, k) > 0:
                return True
            row += 1
    return False


@kernel
def _underflow_left(PT, P, T, X):
    """True if a number of P T is what underflow has left of it, in the dtype of X; what cancels is no less exact."""
    for j in range(len(P)):
        for a in range(len(T)):
            if abs(PT[j, a]) < _normal(X):
                largest, any_ = 0.0, False
                for b in range(len(T)):
                    largest = max(largest, abs(P[j, b] * T[b, a]))
                    any_ |= P[j, b] != 0 and T[b, a] != 0
                if any_ and largest < _normal(X):
                    return True
    return False


@kernel
def _normal(X):
    """The size below which sums of products begin to lose digits to underflow."""
    return np.finfo(X.dtype).tiny / np.finfo(X.dtype).eps


@kernel
def _largest(A, by_columns, k):
    """The largest number, without its sign, in the k-th row of a factor."""
    largest = 0.0
    for x in range(A.shape[-2] if by_columns else A.shape[-1]):
        largest = max(largest, abs(A[x, k] if by_columns else A[k, x]))
    return largest


# --- Gram matrices ---


@kernel
def _gram_of(X, blas):
    """XᵀX in float64."""
    gram, block = np.zeros((len(X), len(X))), np.empty((len(X), min(X.shape[1], BLOCK)))
    for x in range(0, X.shape[1], BLOCK):
        _add_gram(X, x, block, gram, blas)
    return gram


@kernel
def _add_gram(X, x, block, gram, blas):
    block = block[:, : X.shape[1] - x]
    block[:] = X[:, x : x + block.shape[1]]
    gemm(blas[1], False, True, block, block, 1.0, gram)


@kernel
def _gram(Xs, n, R, zero, blas):
    """The Gram matrix of all terms' columns, from products in the precision of ``zero``."""
    G, block = np.full((R, R), zero), np.full((R, min(n, BLOCK)), zero)
    for x in range(0, n, BLOCK):
        row, block = 0, block[:, : n - x]
        for j in range(len(Xs)):
            A, by_columns = Xs[j]
            rank = _rank(A, by_columns)
            _copy_rows(A, by_columns, x, block[row : row + rank])
            row += rank
        _add_lower_triangle(block, G, blas)
    for j in range(R):
        for k in range(j + 1, R):
            G[j, k] = G[k, j]
    return G.astype(np.float64)


@kernel
def _add_lower_triangle(X, G, blas):
    """The inner products of the rows of X, all but some above the diagonal."""
    width = UNTHREADED // ROWS**2
    for a in range(0, len(X), ROWS):
        for b in range(0, a + 1, ROWS):
            tile = G[a : a + ROWS, b : b + ROWS]
            for x in range(0, X.shape[1], width):
                gemm(blas[0], False, True, X[a : a + ROWS, x : x + width], X[b : b + ROWS, x : x + width], 1.0, tile)


@kernel
def _copy_rows(A, by_columns, x, block):
    """The rows of a factor from x on, as many columns as the block has."""
    rank, width = block.shape
    if not by_columns:
        for j in range(rank):  # none of a term that is not there, whose length is 0
            block[j] = A[j, x : x + width]
        return
    for first in range(0, width, 16):  # in tiles, so that lines of the cache are used whole
        last = min(first + 16, width)
        for j in range(rank):
            for k in range(first, last):
                block[j, k] = A[x + k, j]


@kernel
def _products_by_gram(G, P):
    """Z = G P, Pᵀ G P, and by how much the columns of the terms, weighted by P, exceed their sums."""
    Z = G @ P
    gram = transposed(P) @ Z
    spread = 1.0
    for a in range(P.shape[1]):
        energy = 0.0
        for j in range(P.shape[0]):
            energy += P[j, a] ** 2 * G[j, j]
        if energy > spread * gram[a, a]:
            spread = energy / gram[a, a] if gram[a, a] > 0 else np.inf
    return Z, gram, np.sqrt(spread)


@kernel
def _weighted(c, Z):
    P = np.empty_like(Z)
    for j in range(P.shape[0]):
        for a in range(P.shape[1]):
            P[j, a] = c[j] * Z[j, a]
    return P


@kernel(fastmath={"reassoc"})
def _cost_of_factors(T, N):
    """The largest row sum of |T| |N|ᵀ."""
    largest = 0.0
    for a in range(len(T)):
        total = 0.0
        for b in range(len(N)):
            for k in range(len(T)):
                total += abs(T[a, k] * N[b, k])
        largest = max(largest, total)
    return largest


# --- narrow matrices: orthonormal bases, triangles and their inverses, in float64 where they are r × r ---


@kernel
def orthonormal(V, reg):
    """Success, B, C and K = C⁻¹ with V = B C, where the columns of [B; √λ K] are orthonormal."""
    X = V.astype(np.float64)
    ok, C, K, condition = inverse_root(X @ X.T, reg)
    if not ok or condition > (TWO_PASSES_IN_DOUBLE if V.itemsize > 4 else TWO_PASSES_IN_SINGLE):
        return _by_qr(V, reg)
    X = transposed(K) @ X
    if condition**2 * 2e-15 > np.finfo(V.dtype).eps:
        ok, C2, K2, _ = inverse_root(X @ X.T + reg * (transposed(K) @ K), 0.0)
        X, C, K = transposed(K2) @ X, C2 @ C, K @ K2
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
def _singular(C):
    """P, s and Q with C = P diag(s) Qᵀ, for an invertible C: small ones by Jacobi's rotations of pairs of columns."""
    r = len(C)
    if r > ROTATED:
        P, s, Qt = np.linalg.svd(C)
        return P, s, transposed(Qt)
    size = np.max(np.abs(C))
    X, Qt = transposed(C) / size, np.eye(r)  # the columns of C Q, as rows, until they are orthogonal
    for _ in range(SWEEPS):
        if not _rotated(X, Qt):
            break
    s = np.sqrt(np.sum(X * X, axis=1))
    order = np.argsort(-s)
    return transposed(X[order]) / s[order], size * s[order], transposed(Qt[order])


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
def transposed(A):
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

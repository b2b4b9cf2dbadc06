"""The decompositions of numerical linear algebra, of one matrix or of a batch, in any array library.

JAX's are in a module of their own, loaded with the first array of JAX: its batched calls of LAPACK may wait for one
another for ever on a CPU, and some of its derivatives are a NaN where ours exist.
"""

from array_api_compat import is_jax_array

from lorsum._arrays import column_sizes, conj, eps, namespace_of


def qr(A):
    """Q and R of the reduced QR decomposition."""
    return _in_jax().qr(A) if is_jax_array(A) else namespace_of(A).linalg.qr(A, mode="reduced")


def triangle(A):
    """R alone, for what does not change when R is rotated: its norms and singular values.

    So is its derivative in JAX, which exists then also where the columns of A are dependent.
    """
    return _in_jax().triangle(A) if is_jax_array(A) else namespace_of(A).linalg.qr(A, mode="reduced")[1]


def svd(A):
    """U, s and Vh of the reduced singular value decomposition."""
    return _in_jax().svd(A) if is_jax_array(A) else namespace_of(A).linalg.svd(A, full_matrices=False)


def best_of_rank(A, rank):
    """All singular values, and the best approximation of that rank; its derivative in JAX needs σ_r > σ_{r+1} only."""
    if is_jax_array(A):
        return _in_jax().best_of_rank(A, rank)
    U, s, Vh = svd(A)
    return s, (U[..., :rank] * s[..., None, :rank]) @ Vh[..., :rank, :]


def svdvals(A):
    """Singular values, descending."""
    return _in_jax().svdvals(A) if is_jax_array(A) else namespace_of(A).linalg.svdvals(A)


def eigh(A):
    """Eigenvalues, ascending, and eigenvectors of a Hermitian matrix."""
    return _in_jax().eigh(A) if is_jax_array(A) else namespace_of(A).linalg.eigh(A)


def cholesky(A):
    """L with A = L Lᴴ."""
    return _in_jax().cholesky(A) if is_jax_array(A) else namespace_of(A).linalg.cholesky(A)


def solve(A, B):
    """X with A X = B, B a matrix."""
    return _in_jax().solve(A, B) if is_jax_array(A) else namespace_of(A).linalg.solve(A, B)


def orthogonalised(A):
    """A = B C with orthonormal columns of B: returns B, C, C⁻ᵀ, and which columns of B are lost.

    QR, then the SVD of the small triangle with its columns scaled to 1, so that graded columns keep their digits.
    Columns of B whose singular value is rounding error carry no information about A: they are marked lost, their
    value set to 1.
    """
    xp = namespace_of(A)
    Q, R = qr(A)
    size = column_sizes(R)
    P, s, Zh = svd(R / size)
    lost = s <= A.shape[-1] ** 0.5 * eps(xp, s.dtype) * s[..., :1]
    s = xp.where(lost, xp.ones_like(s), s)[..., None]
    return Q @ P, s * Zh * size, conj(Zh) / (s * size), lost[..., None, :]


def column_space(A):
    """An orthonormal basis of A's columns, with zeros in place of directions that A does not have."""
    B, _, _, lost = orthogonalised(A)
    return namespace_of(B).where(lost, namespace_of(B).zeros_like(B), B)


def _in_jax():
    from lorsum import _decompositions_in_jax

    return _decompositions_in_jax

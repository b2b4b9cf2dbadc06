"""Floor 0: the decompositions of numerical linear algebra, of one matrix or of a batch, in any array library."""

from array_api_compat import is_jax_array

from lorsum._arrays import namespace_of

__all__ = ["best_of_rank", "cholesky", "eigh", "qr", "solve", "svd", "svdvals", "triangle"]


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


def _in_jax():
    from lorsum import _decompositions_in_jax

    return _decompositions_in_jax

"""Floor 2: truncated singular value decompositions, the exact answers that LoRSum is measured against."""

from typing import Any, NamedTuple

from lorsum._arrays import as_rank, computing_dtype, namespace_of
from lorsum.lowrank import LowRank, as_sum, require_finite

__all__ = ["TruncatedSVD", "truncated_svd"]


class TruncatedSVD(NamedTuple):
    """A truncated SVD ``U @ diag(s) @ Vh`` in NumPy's convention.

    Attributes
    ----------
    U : array, shape (..., m, r)
        Orthonormal left singular vectors.
    s : array, shape (..., r)
        Singular values, descending.
    Vh : array, shape (..., r, n)
        Orthonormal right singular vectors, conjugate-transposed.
    """

    U: Any
    s: Any
    Vh: Any

    def to_lowrank(self):
        """The matrix as a :class:`LowRank` with the balanced factors U√s and V√s."""
        xp = namespace_of(self.U, self.s, self.Vh)
        root = xp.astype(xp.sqrt(self.s), self.U.dtype)[..., None, :]
        return LowRank._of(self.U * root, self.Vh.mT * root)


def truncated_svd(A, rank, *, method="auto"):
    """Best rank-r approximation of a matrix in the Frobenius and the spectral norm.

    Parameters
    ----------
    A : LowRankSum, LowRank or array, shape (..., m, n)
        A sum of low-rank terms is never formed by ``"factored"``.
    rank : int
        r, between 1 and min(m, n).
    method : {"auto", "factored", "lapack"}
        ``"factored"``: QR of the stacked factors and an SVD of the R × R core, R the sum of the terms' ranks, at
        O((m + n) R²); needs a sum of low-rank terms. ``"lapack"``: SVD of the dense matrix. ``"auto"``: factored where
        all terms are low-rank and R < min(m, n).

    Returns
    -------
    TruncatedSVD
        In ``A``'s dtype; half precision is computed in float32.

    Raises
    ------
    ValueError
        If ``rank`` is out of range, the method is unknown or does not fit ``A``, or ``A`` has a NaN or an infinity.
    TypeError
        If ``A`` is no matrix.

    Notes
    -----
    Optimality is the Eckart–Young–Mirsky theorem. The factored method is the rounding of tensor trains [1]_; its
    singular values are exact to rounding, relative to the sizes of the terms.

    References
    ----------
    .. [1] I. V. Oseledets, Tensor-train decomposition, SIAM J. Sci. Comput. 33(5), 2011, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> A = LowRank(np.eye(5, 2), np.eye(4, 2)) + LowRank(np.eye(5, 1), 2 * np.eye(4, 1))
    >>> truncated_svd(A, 2).s
    array([3., 1.])
    """
    sum_ = as_sum(A, "A")
    rank = as_rank(rank, sum_.shape)
    if method not in ("auto", "factored", "lapack"):
        raise ValueError(f"`method` is {method!r}; it must be one of 'auto', 'factored', 'lapack'.")
    require_finite(A=sum_)
    if method == "factored" and not sum_.is_factored:
        raise ValueError("`method` is 'factored', but a term of `A` is not a LowRank: use 'lapack'.")
    if method == "auto":
        method = "factored" if sum_.is_factored and sum_.rank < min(sum_.shape[-2:]) else "lapack"

    U, s, Vh = (_factored if method == "factored" else _lapack)(sum_, rank)
    xp = namespace_of(U)
    return TruncatedSVD(xp.astype(U, sum_.dtype, copy=False), s, xp.astype(Vh, sum_.dtype, copy=False))


def _factored(A, rank):
    if A.rank < rank:  # zero columns, which QR completes to an orthonormal basis
        xp = A.namespace
        m, n = A.shape[-2:]
        zeros = [xp.zeros((*A.shape[:-2], d, rank), dtype=A.dtype, device=A.terms[0].U.device) for d in (m, n)]
        A = A + LowRank._of(*zeros)
    Qu, core, Qv = A.compressed()
    P, s, Zh = namespace_of(core).linalg.svd(core, full_matrices=False)
    return Qu @ P[..., :rank], s[..., :rank], Zh[..., :rank, :] @ Qv.mT


def _lapack(A, rank):
    dense = A.astype(computing_dtype(A.namespace, A.dtype)).to_dense()
    U, s, Vh = namespace_of(dense).linalg.svd(dense, full_matrices=False)
    return U[..., :rank], s[..., :rank], Vh[..., :rank, :]

"""A thin SVD that follows its matrix through updates, new rows and columns, and removals."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from lorsum._arrays import computing_dtype, conj, eps, is_finite, namespace_of
from lorsum._brand import added, loss_of_orthogonality, orthonormal_to_rounding, padded, recompressed
from lorsum._checks import as_array, as_count, common_namespace, refuse_masked
from lorsum._display import dtype_name, shape_text
from lorsum.lowrank import LowRank
from lorsum.svd import TruncatedSVD, as_tolerance, rank_for, truncated_svd
from lorsum.typing import Array, DType, Matrix

__all__ = ["IncrementalSVD"]


class IncrementalSVD:
    """A thin SVD, X = U diag(s) Vh, that is updated in place as its matrix changes.

    Methods that change it return it, so that calls can be chained.

    Parameters
    ----------
    U : array, shape (m, r)
        Orthonormal left singular vectors, of any array library; r may be 0.
    s : array, shape (r,)
        Singular values, descending and not negative.
    Vh : array, shape (r, n)
        Orthonormal right singular vectors, conjugate-transposed as in NumPy.
    max_rank : int, optional
        Every change is followed by truncation to this rank. Default: the rank grows with what is added.

    Attributes
    ----------
    U, s, Vh : array
        The SVD of the present matrix, each time in arrays of their own: to write into them changes nothing here, nor
        does what becomes of the arrays that were given.
    max_rank : int or None
        As given; it may be set at any time and holds from the next change on.

    Raises
    ------
    ValueError
        If shapes do not agree, numbers are not finite, ``s`` is negative or not descending, or the vectors are not
        orthonormal: ‖UᴴU − I‖ > √(r eps) in the Frobenius norm.
    TypeError
        If an argument is no array, or the arrays belong to different libraries.

    See Also
    --------
    lorsum.lorsum : Tracks the same factors by alternating least squares.

    Notes
    -----
    The updates are Brand's [1]_: with P and Q orthonormal bases of what A and B add to the ranges of U and V, X + ABᵀ =
    [U P] K [V Q]ᴴ has a core K of r + k rows and columns, whose SVD rotates the vectors, at O((m + n)(r + k)²).

    One pass of Gram–Schmidt does not make P orthogonal to U. Here it is projected twice before it is orthonormalised
    and once after, so that neither cancellation nor dependent columns are magnified [2]_. The rotations still cost a
    rounding or two an update: the vectors are re-orthogonalised, by QR and an SVD of the r × r core that is left, when
    ‖UᴴU − I‖ or ‖VᴴV − I‖ exceeds 100 √r eps, so that they stay orthonormal to rounding for ever.

    What rounding alone explains is dropped: directions of A and B below 10 √k eps of their columns, and singular values
    below 32 eps of the norm of s and of the products of the columns' norms. So repeated vectors do not raise the rank,
    and a matrix that is subtracted from itself leaves rank 0. Columns are scaled to length 1 first, so that their
    lengths may be as different as they like. To drop more, call :meth:`truncate`.

    References
    ----------
    .. [1] M. Brand, Fast low-rank modifications of the thin singular value decomposition, Linear Algebra Appl. 415(1),
       2006.
    .. [2] L. Giraud, J. Langou, M. Rozložník, The loss of orthogonality in the Gram–Schmidt orthogonalization process,
       Comput. Math. Appl. 50(7), 2005.

    Examples
    --------
    >>> import numpy as np
    >>> svd = IncrementalSVD.zeros((5, 4))
    >>> svd.update(np.eye(5, 2), np.eye(4, 2)).append_columns(2 * np.ones(5))
    IncrementalSVD(5 × 5, rank 3, float64)
    >>> svd.remove_columns(-1).s
    array([1., 1.])
    """

    def __init__(self, U: Array, s: Array, Vh: Array, *, max_rank: int | None = None) -> None:
        U, s, Vh = (as_array(x, name, ndim=ndim) for x, name, ndim in ((U, "U", 2), (s, "s", 1), (Vh, "Vh", 2)))
        xp = common_namespace(U=U, s=s, Vh=Vh)
        _check_svd(U, s, Vh)
        dtype = computing_dtype(xp, xp.result_type(U.dtype, s.dtype, Vh.dtype))
        U, Vh = xp.astype(U, dtype), xp.astype(Vh, dtype)
        self._U: Array
        self._s: Array
        self._V: Array
        self.max_rank = max_rank
        self._become(U, xp.astype(s, _real_dtype(U)), conj(Vh).mT)

    @classmethod
    def zeros(cls, shape: tuple[int, int], *, dtype: DType = np.float64, max_rank: int | None = None) -> Self:
        """The SVD of a zero NumPy matrix, of rank 0: what sums and streams start from.

        Parameters
        ----------
        shape : pair of int
            (m, n); either may be 0 where rows or columns are to be appended.
        dtype : dtype
            Of the vectors.
        max_rank : int, optional
            As for the class.

        Examples
        --------
        >>> IncrementalSVD.zeros((5, 0)).append_columns(np.ones((5, 3)))
        IncrementalSVD(5 × 3, rank 1, float64)
        """
        if not (isinstance(shape, tuple | list) and len(shape) == 2):
            raise TypeError(f"`shape` is {shape!r}; a pair (m, n) is needed.")
        m, n = (as_count(size, "shape", least=0) for size in shape)
        U, Vh = np.zeros((m, 0), dtype), np.zeros((0, n), dtype)
        return cls(U, np.zeros(0, U.real.dtype), Vh, max_rank=max_rank)

    @classmethod
    def from_matrix(
        cls,
        A: Matrix,
        rank: int | None = None,
        *,
        rtol: float | None = None,
        max_rank: int | None = None,
        **options: Any,
    ) -> Self:
        """The truncated SVD of a matrix, to be updated.

        Parameters
        ----------
        A : array, LowRank, LowRankSum or LinearOperator, shape (m, n)
            The matrix.
        rank : int, optional
            As for :func:`lorsum.truncated_svd`.
        rtol : float, optional
            Instead: the smallest rank with an error of at most rtol ‖A‖ in the Frobenius norm.
        **options
            All other options of :func:`lorsum.truncated_svd`.
        max_rank : int, optional
            As for the class.

        Examples
        --------
        >>> IncrementalSVD.from_matrix(np.eye(5, 4), rtol=0.01).rank
        4
        """
        return cls(*truncated_svd(A, rank, rtol=rtol, **options), max_rank=max_rank)

    @property
    def U(self) -> Array:
        """Left singular vectors, as columns."""
        return _copy(self._U)

    @property
    def s(self) -> Array:
        """Singular values, descending."""
        return _copy(self._s)

    @property
    def Vh(self) -> Array:
        """Right singular vectors, conjugated, as rows."""
        return conj(_copy(self._V)).mT

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix, ``(m, n)``."""
        return self._U.shape[0], self._V.shape[0]

    @property
    def rank(self) -> int:
        """Number of singular values, r."""
        return self._s.shape[0]

    @property
    def dtype(self) -> DType:
        """Dtype of the vectors."""
        return self._U.dtype

    @property
    def max_rank(self) -> int | None:
        """The largest rank that a change leaves, or None."""
        return self._max_rank

    @max_rank.setter
    def max_rank(self, max_rank: int | None) -> None:
        self._max_rank = None if max_rank is None else as_count(max_rank, "max_rank", least=1)

    def update(self, A: Array, B: Array) -> Self:
        """Add ``A @ B.T``; the rank becomes at most r + k.

        Parameters
        ----------
        A : array, shape (m, k) or (m,)
            Left factor.
        B : array, shape (n, k) or (n,)
            Right factor; transposed, not conjugated, as that of a :class:`lorsum.LowRank`.

        Raises
        ------
        ValueError
            If the shapes do not fit, or the numbers are not finite.
        LinAlgError
            If the result overflows its dtype. The object is then as before.

        Examples
        --------
        >>> from lorsum import LowRank
        >>> G = LowRank(np.eye(5, 2), np.eye(4, 2))
        >>> IncrementalSVD.zeros((5, 4)).update(*G).update(*G).s  # a LowRank unpacks
        array([2., 2.])
        """
        m, n = self.shape
        A, B = self._block(A, "A", m), self._block(B, "B", n)
        if A.shape[1] != B.shape[1]:
            raise ValueError(f"`A` has {A.shape[1]} columns and `B` {B.shape[1]}: they must be equal.")
        return self._become(*added(self._U, self._s, self._V, A, conj(B)))

    def append_rows(self, R: Array) -> Self:
        """Append rows below the matrix; the rank becomes at most r + p.

        Parameters
        ----------
        R : array, shape (p, n) or (n,)
            The new rows.
        """
        R = self._block(R, "R", self.shape[1], rows=True)
        U, new = padded(self._U, R.shape[1])
        return self._become(*added(U, self._s, self._V, new, conj(R)))

    def append_columns(self, C: Array) -> Self:
        """Append columns to the right of the matrix; the rank becomes at most r + p.

        Parameters
        ----------
        C : array, shape (m, p) or (m,)
            The new columns.
        """
        C = self._block(C, "C", self.shape[0])
        V, new = padded(self._V, C.shape[1])
        return self._become(*added(self._U, self._s, V, C, new))

    def remove_rows(self, indices: int | Sequence[int] | Array) -> Self:
        """Remove rows.

        Parameters
        ----------
        indices : int or sequence of int
            Which; negative ones count from the end.
        """
        return self._become(*recompressed(_without(self._U, indices), self._s, self._V))

    def remove_columns(self, indices: int | Sequence[int] | Array) -> Self:
        """Remove columns.

        Parameters
        ----------
        indices : int or sequence of int
            Which; negative ones count from the end.
        """
        return self._become(*recompressed(self._U, self._s, _without(self._V, indices)))

    def truncate(self, rank: int | None = None, *, rtol: float | None = None) -> Self:
        """Keep the best approximation of lower rank.

        Parameters
        ----------
        rank : int, optional
            The largest rank that is left.
        rtol : float, optional
            Instead: the smallest rank ≥ 1 with an error of at most rtol ‖X‖ in the Frobenius norm, 0 ≤ rtol < 1.

        Examples
        --------
        >>> IncrementalSVD.from_matrix(np.diag([3.0, 2.0, 0.1]), 3).truncate(rtol=0.1).s
        array([3., 2.])
        """
        if (rank is None) == (rtol is None):
            raise ValueError(f"`rank` is {rank} and `rtol` {rtol}: exactly one of the two is needed.")
        r = rank_for(self._s, as_tolerance(rtol, "rtol")) if rank is None else as_count(rank, "rank", least=1)
        r = min(r, self.rank)
        self._U, self._s, self._V = self._U[:, :r], self._s[:r], self._V[:, :r]
        return self

    def to_lowrank(self) -> LowRank:
        """The matrix as a :class:`lorsum.LowRank` with the balanced factors U√s and V√s."""
        return TruncatedSVD(self._U, self._s, conj(self._V).mT).to_lowrank()

    def __repr__(self) -> str:
        limit = "" if self.max_rank is None else f", max_rank {self.max_rank}"
        return f"IncrementalSVD({shape_text(self)}, rank {self.rank}{limit}, {dtype_name(self)})"

    def _become(self, U: Array, s: Array, V: Array) -> Self:
        """Take over a new SVD, truncated and with orthonormal vectors."""
        if not (orthonormal_to_rounding(U) and orthonormal_to_rounding(V)):
            U, s, V = recompressed(U, s, V)
        r = min(s.shape[0], self.max_rank or s.shape[0])
        self._U, self._s, self._V = U[:, :r], s[:r], V[:, :r]
        return self

    def _block(self, x: Array, name: str, length: int, *, rows: bool = False) -> Array:
        """``x`` as columns of that length."""
        x = as_array(x, name, ndim=1)
        xp = common_namespace(**{"U": self._U, name: x})
        columns = x[:, None] if x.ndim == 1 else x.mT if rows else x
        if x.ndim > 2 or columns.shape[0] != length:
            needed = f"(p, {length})" if rows else f"({length}, k)"
            raise ValueError(f"`{name}` has shape {tuple(x.shape)}; {needed} or ({length},) is needed.")
        if not is_finite(x):
            raise ValueError(f"`{name}` has a NaN or an infinity.")
        return xp.astype(columns, computing_dtype(xp, x.dtype), copy=False)


def _without(Q: Array, indices: int | Sequence[int] | Array) -> Array:
    """The rows of Q that are not in ``indices``."""
    refuse_masked(indices, "indices")
    size, indices = Q.shape[0], np.atleast_1d(np.asarray(indices))
    if indices.ndim > 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise TypeError(
            f"`indices` is an array of {indices.dtype}, shape {indices.shape}; a list of integers is needed."
        )
    outside = indices[(indices < -size) | (indices >= size)]
    if outside.size:
        raise ValueError(f"`indices` has {outside[0]}, which is not between {-size} and {size - 1}.")
    removed, counts = np.unique(indices % max(size, 1), return_counts=True)
    if np.any(counts > 1):
        raise ValueError(f"`indices` has {removed[counts > 1][0]} twice.")
    xp = namespace_of(Q)
    left = np.setdiff1d(np.arange(size), removed)
    return xp.take(Q, xp.asarray(left, device=Q.device), axis=0)


def _copy(x: Array) -> Array:
    return namespace_of(x).asarray(x, copy=True)


def _real_dtype(x: Array) -> DType:
    return namespace_of(x).abs(x[:0, ...]).dtype


def _check_svd(U: Array, s: Array, Vh: Array) -> None:
    for name, x, ndim in (("U", U, 2), ("s", s, 1), ("Vh", Vh, 2)):
        if x.ndim != ndim:
            raise ValueError(f"`{name}` has {x.ndim} dimensions; {ndim} are needed.")
        if not is_finite(x):
            raise ValueError(f"`{name}` has a NaN or an infinity.")
    if not U.shape[1] == s.shape[0] == Vh.shape[0]:
        raise ValueError(
            f"`U` has {U.shape[1]} columns, `s` {s.shape[0]} values and `Vh` {Vh.shape[0]} rows: they must be equal."
        )
    xp = namespace_of(s)
    if xp.isdtype(s.dtype, "complex floating"):
        raise TypeError(f"`s` has dtype {s.dtype}; real numbers are needed.")
    if bool(xp.any(s < 0)) or bool(xp.any(s != xp.sort(s, descending=True))):
        raise ValueError("`s` is not descending, or negative; singular values are s₁ ≥ s₂ ≥ … ≥ 0.")
    for name, Q in (("U", U), ("Vh", Vh.mT)):
        loss = loss_of_orthogonality(xp.astype(Q, computing_dtype(xp, Q.dtype), copy=False))
        allowed = (eps(xp, Q.dtype) * Q.shape[1]) ** 0.5
        if loss > allowed:
            vectors = "columns" if name == "U" else "rows"
            raise ValueError(
                f"`{name}` has {vectors} that are not orthonormal: ‖QᴴQ − I‖ = {loss:.1e} > {allowed:.1e}."
            )

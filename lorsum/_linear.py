"""Arithmetic of matrices that are not formed: sums and products of low-rank matrices, arrays and operators."""

from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from lorsum._arrays import computing_dtype, namespace_of
from lorsum._checks import as_array, as_coefficient, common_namespace, is_scalar
from lorsum._operators import is_operator, is_sparse
from lorsum.typing import Array

_NUMPY_ARRAY = np.empty(0)  # what operators compute with


class Linear:
    """What :class:`lorsum.LowRank` and :class:`lorsum.LowRankSum` have in common: arithmetic that computes nothing.

    It is done by sums: ``_as_sum`` gives any matrix as one, or None for what is no matrix. Of the terms of a sum,
    those of low rank are the ones that are ``Linear``, since no term is a sum itself.
    """

    __slots__ = ()
    U: Any  # of a LowRank alone
    V: Any
    shape: Any
    dtype: Any
    T: Any
    _times: Any
    _of: Any
    _is_low_rank = False
    # NumPy hands `2.0 * W` and `D + W` over to the methods below, pandas too
    __array_ufunc__ = None
    __array_priority__ = 1000
    __pandas_priority__ = 10_000

    @staticmethod
    def _as_sum(x: Any, name: str | None = None) -> Any:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            f"{self!r} is no array, and is not formed by itself: use its operators and methods, `.to_dense()`, or "
            "`(W.T @ A.T).T` for the product of a sparse matrix or an operator A with a low-rank matrix W."
        )

    def __add__(self, other: Any) -> Any:
        return self._plus(other, 1)

    def __radd__(self, other: Any) -> Any:
        if is_scalar(other):
            # sum() starts from the number 0
            return self._as_sum(self) if not is_array_api_obj(other) and other == 0 else NotImplemented
        left = self._as_sum(other)
        return NotImplemented if left is None else left._plus(self, 1)

    def __sub__(self, other: Any) -> Any:
        return self._plus(other, -1)

    def __rsub__(self, other: Any) -> Any:
        left = self._as_sum(other)
        return NotImplemented if left is None else left._plus(self, -1)

    def __neg__(self) -> Any:
        return self * -1

    def __mul__(self, scalar: Any) -> Any:
        if not is_scalar(scalar):
            return NotImplemented
        this = self._as_sum(self)
        scalar = as_coefficient(scalar, an_array(this))
        return this._of(this.terms, tuple([scalar * c for c in this.coefficients]))

    __rmul__ = __mul__

    def __truediv__(self, scalar: Any) -> Any:
        if not is_scalar(scalar):
            return NotImplemented
        return self * (1 / as_coefficient(scalar, an_array(self._as_sum(self)), "divisor"))

    def _plus(self, other: Any, sign: int) -> Any:
        left, right = self._as_sum(self), self._as_sum(other)
        if right is None:
            return NotImplemented
        check_addable(left, right)
        coefficients = right.coefficients if sign == 1 else tuple([-c for c in right.coefficients])
        return left._of(left.terms + right.terms, left.coefficients + coefficients)

    def __matmul__(self, other: Any) -> Any:
        other = _as_factor(other)
        return NotImplemented if other is None else _multiplied(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        other = _as_factor(other)
        if other is None:
            return NotImplemented
        if not is_array_api_obj(other):
            return _multiplied(self._as_sum(other, "left"), self)
        product = _multiplied(self.T, other if other.ndim == 1 else other.mT)
        return product if other.ndim == 1 else product.mT

    def dot(self, other: Any) -> Any:
        """The product ``self @ other``, also inside of ``torch.compile``, which cannot follow that operator.

        Parameters
        ----------
        other : array, LowRank, LowRankSum, LinearOperator or sparse matrix
            What to multiply by; an array of shape (..., n, k) or (n,).

        Returns
        -------
        array, LowRank or LowRankSum
            An array where ``other`` is one; else what is not formed either, of low rank where one of the two is.

        Examples
        --------
        >>> import numpy as np
        >>> from lorsum import LowRank
        >>> W = LowRank(np.ones((4, 1)), np.ones((3, 1)))
        >>> W.dot(np.eye(3)).shape, W.dot(W.T)
        ((4, 3), LowRank(4 × 4, rank 1, float64))
        """
        factor = _as_factor(other)
        if factor is None:
            raise TypeError(f"`other` is a {type(other).__name__}; an array or a matrix is needed.")
        return _multiplied(self, factor)

    def as_linear_operator(self) -> Any:
        """The matrix as a SciPy ``LinearOperator``, for NumPy arrays without batch dimensions; nothing is formed.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse.linalg import svds
        >>> from lorsum import LowRank
        >>> W = LowRank(np.eye(9, 3), np.eye(7, 3) * [1.0, 2.0, 3.0])
        >>> float(svds((W + W).as_linear_operator(), k=1, return_singular_vectors=False)[0].round(10))
        6.0
        """
        from scipy.sparse.linalg import LinearOperator

        if self.ndim != 2 or not isinstance(an_array(self._as_sum(self)), np.ndarray):
            raise TypeError(f"{self!r} is no single matrix of NumPy arrays, which a LinearOperator needs.")
        adjoint = self.T

        def times_adjoint(X: Any) -> Any:
            return (adjoint @ X.conj()).conj()

        return LinearOperator(
            self.shape,
            matvec=self.__matmul__,
            rmatvec=times_adjoint,
            matmat=self.__matmul__,
            rmatmat=times_adjoint,
            dtype=self.dtype,
        )

    @property
    def ndim(self) -> int:
        """Number of dimensions: two, and one for each batch dimension."""
        return len(self.shape)


def check_addable(left: Any, right: Any, names: tuple[str, str] = ("left", "right")) -> None:
    """An error unless two sums have one shape and belong to one array library."""
    if left.shape != right.shape:
        raise ValueError(
            f"the terms of a sum have the shapes {left.shape} and {right.shape}: they must be equal, "
            "batch dimensions included."
        )
    # The terms of either sum agree already, so that one array of each is enough
    one, other = an_array(left), an_array(right)
    if type(one) is not type(other):
        common_namespace(**dict(zip(names, (one, other), strict=True)))


def an_array(A: Any) -> Array:
    """An array of the library that a low-rank matrix or a sum computes with."""
    term = A if A._is_low_rank else A.terms[0]
    if isinstance(term, Linear):
        return term.U
    return _NUMPY_ARRAY if is_operator(term) else term


def _is_low_rank(x: Any) -> bool:
    return isinstance(x, Linear) and x._is_low_rank


def is_array_like(x: Any) -> bool:
    """True for an array of any library, and for tables that NumPy makes arrays of."""
    return is_array_api_obj(x) or (hasattr(x, "__array__") and hasattr(x, "ndim") and not isinstance(x, np.generic))


# --- products ---


def _as_factor(x: Any) -> Any:
    """What a matrix may be multiplied by: an array, or a matrix that is not formed; else None."""
    if type(x) is np.ndarray:
        return as_array(x, "operand", ndim=1) if x.ndim > 0 else None
    if isinstance(x, Linear):
        return x
    if is_sparse(x):
        return x if x.ndim == 2 else as_array(x.toarray(), "operand", ndim=1)
    if is_operator(x):
        return x
    return as_array(x, "operand", ndim=1) if is_array_like(x) and x.ndim > 0 else None


def _multiplied(A: Any, B: Any) -> Any:
    """A B, for what :func:`_as_factor` gives."""
    _check_inner(A, B)
    if type(B) is not np.ndarray and not is_array_api_obj(B):
        return _product(A, B)
    return _times_in_common_dtype(A, B[:, None])[..., 0] if B.ndim == 1 else _times_in_common_dtype(A, B)


def _check_inner(left: Any, right: Any) -> None:
    """An error unless two factors of a product belong to one library, and their shapes fit."""
    if type(right) is np.ndarray or isinstance(right, Linear) or is_array_api_obj(right):
        one, other = an_array(left), an_array(right) if isinstance(right, Linear) else right
        if type(one) is not type(other):
            common_namespace(left=one, right=other)
    inner, rows = left.shape[-1], right.shape[0] if len(right.shape) == 1 else right.shape[-2]
    if inner != rows:
        raise ValueError(f"`@` of shapes {tuple(left.shape)} and {tuple(right.shape)}: {inner} ≠ {rows}.")
    one, other = left.shape[:-2], right.shape[:-2]
    if one != other and any(p != q and 1 not in (p, q) for p, q in zip(one[::-1], other[::-1], strict=False)):
        raise ValueError(
            f"`@` of shapes {tuple(left.shape)} and {tuple(right.shape)}: the batch dimensions are not equal, nor 1."
        )


def _times_in_common_dtype(A: Any, X: Array) -> Array:
    """A X in the dtype that both promote to; half precision is computed in single."""
    xp, own = namespace_of(X), A.dtype
    dtype = own if own == X.dtype else xp.result_type(own, X.dtype)
    computing = computing_dtype(xp, dtype)
    product = A.astype(computing)._times(X if X.dtype == computing else xp.astype(X, computing))
    return product if product.dtype == dtype else xp.astype(product, dtype)


def _product(A: Any, B: Any) -> Any:
    """A B, which is not formed either: of low rank where a factor is, else a sum."""
    if _is_low_rank(B):
        return type(B)(*_in_one_batch(A.dot(B.U), B.V))
    B = A._as_sum(B, "right")
    if A._is_low_rank:
        return type(A)(*_in_one_batch(A.U, B.T.dot(A.V)))
    pairs = [
        (_product_of_terms(left, right, A._as_sum), c * d)
        for right, d in zip(B.terms, B.coefficients, strict=True)
        for left, c in zip(A.terms, A.coefficients, strict=True)
    ]
    return type(B)(*zip(*pairs, strict=True))


def _product_of_terms(A: Any, B: Any, as_sum: Any) -> Any:
    if isinstance(A, Linear) or isinstance(B, Linear):
        return _product(A if isinstance(A, Linear) else as_sum(A), B)
    if is_operator(A) and is_operator(B):
        return A @ B
    return as_sum(B).T._times(A.mT).mT if is_operator(B) else _times_in_common_dtype(as_sum(A), B)


def _in_one_batch(U: Array, V: Array) -> tuple[Array, Array]:
    """Two factors, of which one may lack batch dimensions that the other has."""
    if U.shape[:-2] == V.shape[:-2]:
        return U, V
    xp, batch = namespace_of(U, V), np.broadcast_shapes(U.shape[:-2], V.shape[:-2])
    return tuple([xp.broadcast_to(X, (*batch, *X.shape[-2:])) if X.shape[:-2] != batch else X for X in (U, V)])

"""Floor 1, the nouns: a low-rank matrix, and a sum of them that is never formed."""

from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from lorsum import _numba
from lorsum._arrays import (
    as_array,
    as_coefficient,
    column_sizes,
    common_namespace,
    computing_dtype,
    eps,
    frobenius,
    is_complex,
    is_finite,
    is_scalar,
    namespace_of,
    scale_of,
    zeros_like,
)
from lorsum._decompositions import qr, svd, svdvals, triangle
from lorsum._display import dtype_name, html_table, shape_text, sign_and_size, storage_rows, term_text
from lorsum._operators import as_operator, dense_of, floating_dtype, is_operator, is_sparse, operator_times

__all__ = ["LowRank", "LowRankSum", "as_sum", "check_addable", "require_finite", "require_finite_coefficients"]


_NUMPY_ARRAY = np.empty(0)  # what operators compute with


class _Linear:
    """What a low-rank matrix and a sum have in common: arithmetic that computes nothing."""

    __slots__ = ()
    shape: Any
    dtype: Any
    T: Any
    _times: Any
    # NumPy hands `2.0 * W` and `D + W` over to the methods below, pandas too
    __array_ufunc__ = None
    __array_priority__ = 1000
    __pandas_priority__ = 10_000

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            f"{self!r} is no array, and is not formed by itself: use its operators and methods, `.to_dense()`, or "
            "`(W.T @ A.T).T` for the product of a sparse matrix or an operator A with a low-rank matrix W."
        )

    def __add__(self, other):
        return self._plus(other, 1)

    def __radd__(self, other):
        if is_scalar(other):
            # sum() starts from the number 0
            return as_sum(self) if not is_array_api_obj(other) and other == 0 else NotImplemented
        sum_ = as_sum(other)
        return NotImplemented if sum_ is None else sum_._plus(self, 1)

    def __sub__(self, other):
        return self._plus(other, -1)

    def __rsub__(self, other):
        sum_ = as_sum(other)
        return NotImplemented if sum_ is None else sum_._plus(self, -1)

    def __neg__(self):
        return self * -1

    def __mul__(self, scalar):
        if not is_scalar(scalar):
            return NotImplemented
        sum_ = as_sum(self)
        scalar = as_coefficient(scalar, _an_array(sum_))
        return LowRankSum._of(sum_.terms, tuple(scalar * c for c in sum_.coefficients))

    __rmul__ = __mul__

    def __truediv__(self, scalar):
        if not is_scalar(scalar):
            return NotImplemented
        return self * (1 / as_coefficient(scalar, _an_array(as_sum(self)), "divisor"))

    def _plus(self, other, sign):
        left, right = as_sum(self), as_sum(other)
        if right is None:
            return NotImplemented
        check_addable(left, right)
        coefficients = right.coefficients if sign == 1 else tuple(-c for c in right.coefficients)
        return LowRankSum._of(left.terms + right.terms, left.coefficients + coefficients)

    def __matmul__(self, other):
        other = _as_factor(other)
        return NotImplemented if other is None else _multiplied(self, other)

    def __rmatmul__(self, other):
        other = _as_factor(other)
        if other is None:
            return NotImplemented
        if not is_array_api_obj(other):
            return _multiplied(as_sum(other, "left"), self)
        product = _multiplied(self.T, other if other.ndim == 1 else other.mT)
        return product if other.ndim == 1 else product.mT

    def dot(self, other):
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
        >>> W = LowRank(np.ones((4, 1)), np.ones((3, 1)))
        >>> W.dot(np.eye(3)).shape, W.dot(W.T)
        ((4, 3), LowRank(4 × 4, rank 1, float64))
        """
        factor = _as_factor(other)
        if factor is None:
            raise TypeError(f"`other` is a {type(other).__name__}; an array or a matrix is needed.")
        return _multiplied(self, factor)

    def as_linear_operator(self):
        """The matrix as a SciPy ``LinearOperator``, for NumPy arrays without batch dimensions; nothing is formed.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse.linalg import svds
        >>> W = LowRank(np.eye(9, 3), np.eye(7, 3) * [1.0, 2.0, 3.0])
        >>> float(svds((W + W).as_linear_operator(), k=1, return_singular_vectors=False)[0].round(10))
        6.0
        """
        from scipy.sparse.linalg import LinearOperator

        if self.ndim != 2 or not isinstance(_an_array(as_sum(self)), np.ndarray):
            raise TypeError(f"{self!r} is no single matrix of NumPy arrays, which a LinearOperator needs.")
        adjoint = self.T

        def times_adjoint(X):
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
    def ndim(self):
        """Number of dimensions: two, and one for each batch dimension."""
        return len(self.shape)


class LowRank(_Linear):
    """The matrix ``U @ V.T``, never formed.

    Arithmetic (``+``, ``-``, ``*`` and ``/`` by a number) computes nothing and gives a :class:`LowRankSum`. ``@``
    with an array multiplies through the factors; with another low-rank matrix, a sum, a SciPy operator or sparse matrix
    it gives a :class:`LowRank`. ``U, V = W`` unpacks. NumPy's functions take no low-rank matrix, since it is never
    formed but by :meth:`to_dense`; SciPy's operators and sparse matrices neither, on their right: ``(W.T @ A.T).T``.

    Parameters
    ----------
    U : array, shape (..., m, r)
        Left factor. NumPy, PyTorch, JAX or any library that speaks the array API; leading dimensions are a batch.
    V : array, shape (..., n, r)
        Right factor, with the same batch dimensions. It is transposed, not conjugated, also where it is complex.

    Raises
    ------
    ValueError
        If the shapes do not agree.
    TypeError
        If the factors belong to different array libraries, or are not numbers.

    Notes
    -----
    Shapes and dtypes are checked here; a NaN or an infinity is reported by the verb that meets it, so that making a
    ``LowRank`` costs no pass over its factors. r may exceed min(m, n): the gradient SᵀX of a large batch does.

    A number of another library than the factors' multiplies by its value, without changing the precision. PyTorch's
    tensors may be batched by ``torch.func.vmap``, differentiated, meta or fake, and compiled: inside of
    ``torch.compile`` write :meth:`dot` for ``@``, and ``LowRankSum([W, G], [1, -lr])`` where ``lr`` or a term is a
    tensor, since the compiler does not follow an operator between a tensor and an object.

    Examples
    --------
    >>> import numpy as np
    >>> W = LowRank(np.ones((4, 1)), np.ones((3, 1)))
    >>> W
    LowRank(4 × 3, rank 1, float64)
    >>> W @ np.ones(3)
    array([3., 3., 3., 3.])
    >>> W - 0.5 * W
    LowRankSum(4 × 3: 1·rank 1 - 0.5·rank 1, float64)
    """

    __slots__ = ("U", "V")

    def __init__(self, U, V):
        U, V = as_array(U, "U"), as_array(V, "V")
        xp = common_namespace(U=U, V=V)
        if U.shape[-1] != V.shape[-1]:
            raise ValueError(
                f"`U` has {U.shape[-1]} columns and `V` {V.shape[-1]}: both need one column for each unit of rank."
            )
        if U.shape[:-2] != V.shape[:-2]:
            raise ValueError(
                f"`U` has the batch dimensions {tuple(U.shape[:-2])} and `V` {tuple(V.shape[:-2])}: they must be equal."
            )
        if U.dtype != V.dtype:
            dtype = xp.result_type(U.dtype, V.dtype)
            U, V = xp.astype(U, dtype), xp.astype(V, dtype)
        self.U, self.V = U, V

    @classmethod
    def _of(cls, U, V):
        """The same without checks, for factors that were computed here."""
        self = object.__new__(cls)
        self.U, self.V = U, V
        return self

    @property
    def shape(self):
        """Shape of the matrix, ``(..., m, n)``."""
        return (*tuple(self.U.shape[:-1]), self.V.shape[-2])

    @property
    def rank(self):
        """Number of columns of the factors, r (an upper bound of the numerical rank)."""
        return self.U.shape[-1]

    @property
    def dtype(self):
        """Dtype of the factors."""
        return self.U.dtype

    @property
    def T(self):
        """The transpose, ``LowRank(V, U)``."""
        return LowRank._of(self.V, self.U)

    def __iter__(self):
        return iter((self.U, self.V))

    def _times(self, X):
        return self.U @ (self.V.mT @ X)

    def to_dense(self):
        """The matrix as an array of shape (..., m, n)."""
        xp = namespace_of(self.U)
        dtype = computing_dtype(xp, self.dtype)
        if dtype == self.dtype:
            return self.U @ self.V.mT
        return xp.astype(xp.astype(self.U, dtype) @ xp.astype(self.V, dtype).mT, self.dtype)

    def astype(self, dtype):
        """The same with factors in ``dtype``; itself where nothing changes."""
        return self if self.dtype == dtype else as_sum(self).astype(dtype).terms[0]

    def norm(self):
        """Frobenius norm, from the r × r core (nothing m × n is formed); an array over the batch dimensions."""
        return as_sum(self).norm()

    def singular_values(self):
        """The r largest singular values, descending, shape (..., r); all others are zero.

        Examples
        --------
        >>> import numpy as np
        >>> LowRank(2 * np.eye(4, 2), np.eye(3, 2)).singular_values()
        array([2., 2.])
        """
        return svdvals(as_sum(self).core())

    def balanced(self):
        """The same matrix with the factors U√s and V√s of its singular value decomposition.

        Both factors then have orthogonal columns of equal norms, so that λ weighs both sides alike. Where a singular
        value is zero, the column is zero in U alone, so that alternating updates can fill it again.

        Returns
        -------
        LowRank
            Same shape, rank and dtype.

        Examples
        --------
        >>> import numpy as np
        >>> W = LowRank(1e6 * np.eye(4, 2), 1e-6 * np.eye(3, 2)).balanced()
        >>> float(np.linalg.norm(W.U)) == float(np.linalg.norm(W.V))
        True
        """
        if self.rank == 0:
            return self
        factors = _numba.balanced(self.U, self.V)
        if factors is not None:
            return LowRank._of(*factors)
        Qu, core, Qv = as_sum(self).compressed()
        xp = namespace_of(core)
        P, s, Zh = svd(core)
        # A column whose singular value is zero stays in V: zero in both, no update could bring it back
        s = s[..., None, :]
        zero = s <= s.shape[-1] * eps(xp, s.dtype) * s[..., :1]
        alive = xp.sqrt(xp.where(s[..., :1] > 0, s[..., :1], xp.ones_like(s[..., :1])))
        left, right = xp.where(zero, xp.zeros_like(s), xp.sqrt(s)), xp.where(zero, alive, xp.sqrt(s))
        factors = Qu @ (P * xp.astype(left, core.dtype)), Qv @ (Zh.mT * xp.astype(right, core.dtype))
        U, V = (_padded(factor, self.rank) for factor in factors)
        return LowRank._of(xp.astype(U, self.dtype, copy=False), xp.astype(V, self.dtype, copy=False))

    def __repr__(self):
        if not hasattr(self.U, "shape"):  # as a pytree of JAX it may hold anything
            return f"LowRank({self.U!r}, {self.V!r})"
        return f"LowRank({shape_text(self)}, rank {self.rank}, {dtype_name(self)})"

    def _repr_html_(self):
        rows = [("rank", self.rank), ("dtype", dtype_name(self)), *storage_rows(self, [self])]
        if self.ndim == 2 and is_finite(self.U, self.V):
            s = self.singular_values()
            shown = ", ".join(f"{float(x):.4g}" for x in s[:8]) + (", …" if self.rank > 8 else "")
            rows += [("Frobenius norm", f"{float(self.norm()):.4g}"), ("singular values", shown)]
        return html_table(f"LowRank {shape_text(self)}: U Vᵀ", ("property", "value"), rows)


class LowRankSum(_Linear):
    """An ordered sum Σ cᵢ Aᵢ of matrices of one shape, kept as it is written.

    The first term is the one being updated, as in the paper: :func:`lorsum.lorsum` starts from it.

    Parameters
    ----------
    terms : sequence
        The Aᵢ: each a :class:`LowRank`, a dense array of shape (..., m, n), or a SciPy ``LinearOperator`` or sparse
        matrix (NumPy only).
    coefficients : sequence of numbers, optional
        The cᵢ; default: all 1.

    Raises
    ------
    ValueError
        If the shapes differ, there is no term, or the numbers of terms and coefficients differ.
    TypeError
        If a term or a coefficient is of another kind, or the terms belong to different array libraries.

    Examples
    --------
    >>> import numpy as np
    >>> W, G = LowRank(np.eye(4, 2), np.eye(3, 2)), LowRank(np.ones((4, 1)), np.ones((3, 1)))
    >>> target = W - 0.1 * G
    >>> target.rank, len(target.terms), target.coefficients
    (3, 2, (1, -0.1))
    """

    __slots__ = ("coefficients", "terms")

    def __init__(self, terms, coefficients=None):
        terms = tuple(terms)
        coefficients = (1,) * len(terms) if coefficients is None else tuple(coefficients)
        if not terms:
            raise ValueError("`terms` is empty; a sum needs at least one matrix.")
        if len(terms) != len(coefficients):
            raise ValueError(f"`coefficients` has {len(coefficients)} numbers for {len(terms)} `terms`.")
        sums = [as_sum(term, f"terms[{i}]") for i, term in enumerate(terms)]
        for i, (sum_, c) in enumerate(zip(sums, coefficients, strict=True)):
            if isinstance(terms[i], LowRankSum):
                raise TypeError(
                    f"`terms[{i}]` is a {type(terms[i]).__name__}; a LowRank, an array or a LinearOperator is needed."
                )
            if not is_scalar(c):
                raise TypeError(f"`coefficients[{i}]` is a {type(c).__name__}; a number is needed.")
            check_addable(sums[0], sum_)
        self.terms = tuple(sum_.terms[0] for sum_ in sums)
        like = _an_array(sums[0])
        self.coefficients = tuple(as_coefficient(c, like, f"coefficients[{i}]") for i, c in enumerate(coefficients))

    @classmethod
    def _of(cls, terms, coefficients):
        """The same without checks."""
        self = object.__new__(cls)
        self.terms, self.coefficients = terms, coefficients
        return self

    @classmethod
    def from_factors(cls, factors, coefficients):
        """The sum Σ cᵢ Uᵢ Vᵢᵀ from the lists of the paper's Listing 1.

        Parameters
        ----------
        factors : sequence of pairs ``(weight_in, weight_out)``
            ``weight_in`` = Vᵢᵀ of shape (..., r, n) and ``weight_out`` = Uᵢ of shape (..., m, r), in the listing's
            order.
        coefficients : sequence of numbers
            The cᵢ.

        Returns
        -------
        LowRankSum

        Examples
        --------
        >>> import numpy as np
        >>> LowRankSum.from_factors([(np.ones((1, 3)), np.ones((4, 1)))], [2.0])
        LowRankSum(4 × 3: 2·rank 1, float64)
        """
        pairs = [tuple(pair) for pair in factors]
        for i, pair in enumerate(pairs):
            if len(pair) != 2:
                raise ValueError(f"`factors[{i}]` has {len(pair)} entries; a pair (weight_in, weight_out) is needed.")
        return cls([LowRank(U, as_array(Vt, f"factors[{i}][0]").mT) for i, (Vt, U) in enumerate(pairs)], coefficients)

    @property
    def shape(self):
        """Shape of the matrix, ``(..., m, n)``."""
        return tuple(self.terms[0].shape)

    @property
    def rank(self):
        """Sum of the terms' ranks, at most min(m, n); a dense or operator term counts as full."""
        full = min(self.shape[-2:])
        return min(full, sum(term.rank if isinstance(term, LowRank) else full for term in self.terms))

    @property
    def dtype(self):
        """Floating-point dtype that the terms and complex coefficients promote to; Python's numbers keep precision."""
        xp = self.namespace
        operators = [floating_dtype(term) for term in self.terms if is_operator(term)]
        dtypes = {term.dtype for term in self.terms if not is_operator(term)}.union(operators) - {None}
        dtype = dtypes.pop() if len(dtypes) == 1 else xp.result_type(*(dtypes or (xp.float64,)))
        if operators and xp.isdtype(dtype, ("bool", "integral")):  # of operators alone
            dtype = xp.result_type(xp.float64)
        return xp.result_type(dtype, xp.complex64) if any(map(is_complex, self.coefficients)) else dtype

    @property
    def T(self):
        """The transpose, term by term."""
        terms = tuple(term.mT if is_array_api_obj(term) else term.T for term in self.terms)
        return LowRankSum._of(terms, self.coefficients)

    @property
    def is_factored(self):
        """True if every term is a :class:`LowRank`, so that nothing m × n need ever be formed."""
        return all(isinstance(term, LowRank) for term in self.terms)

    @property
    def namespace(self):
        """The array library of the terms; NumPy where all are operators."""
        arrays = self.arrays()
        if arrays:
            return namespace_of(*arrays)
        import array_api_compat.numpy as xp

        return xp

    def arrays(self):
        """All arrays of the sum, the factors of its low-rank terms among them."""
        return [x for A in self.terms if not is_operator(A) for x in (A if isinstance(A, LowRank) else (A,))]

    def named_arrays(self):
        """The same with the names that error messages use."""
        named: dict[str, Any] = {}
        for i, term in enumerate(self.terms):
            if isinstance(term, LowRank):
                named |= {f"terms[{i}].U": term.U, f"terms[{i}].V": term.V}
            elif not is_operator(term):
                named[f"terms[{i}]"] = term
        return named

    def astype(self, dtype):
        """The sum with all its arrays in ``dtype`` (operators keep their own); itself where nothing changes."""
        xp = self.namespace

        def cast(term):
            if isinstance(term, LowRank):
                return LowRank._of(xp.astype(term.U, dtype), xp.astype(term.V, dtype))
            return term if is_operator(term) else xp.astype(term, dtype)

        if all(is_operator(term) or term.dtype == dtype for term in self.terms):
            return self
        return LowRankSum._of(tuple(map(cast, self.terms)), self.coefficients)

    def stacked(self):
        """Factors (…, m, R) and (…, n, R) whose product is a sum of low-rank terms."""
        pairs = [_with_coefficient(A, c) for A, c in zip(self.terms, self.coefficients, strict=True)]
        if len(pairs) == 1:
            return pairs[0]
        concat = self.namespace.concat
        return concat([U for U, _ in pairs], axis=-1), concat([V for _, V in pairs], axis=-1)

    def compressed(self):
        """Qu, C, Qv with the sum of low-rank terms equal to Qu C Qvᵀ: QR of the stacked factors, C at most R × R."""
        U, V = self.astype(computing_dtype(self.namespace, self.dtype)).stacked()
        (Qu, Ru), (Qv, Rv) = qr(U), qr(V)
        return Qu, Ru @ Rv.mT, Qv

    def core(self):
        """A small matrix with the norm and the singular values of a sum of low-rank terms."""
        U, V = self.astype(computing_dtype(self.namespace, self.dtype)).stacked()
        return triangle(U) @ triangle(V).mT

    def _times(self, X):
        first, *others = zip(self.terms, self.coefficients, strict=True)
        product = _term_times(*first, X)
        for term, c in others:
            product = product + _term_times(term, c, X)
        return product

    def to_dense(self):
        """The sum as an array of shape (..., m, n)."""
        xp, dtype = self.namespace, self.dtype
        computing = computing_dtype(xp, dtype)
        first, *others = zip(self.astype(computing).terms, self.coefficients, strict=True)
        dense = _dense(*first, computing)
        for term, c in others:
            dense = dense + _dense(term, c, computing)
        return dense if dense.dtype == dtype else xp.astype(dense, dtype)

    def norm(self):
        """Frobenius norm; from the R × R core of the stacked factors, R their rank, where all terms are low-rank."""
        if not self.is_factored:
            return frobenius(self.astype(computing_dtype(self.namespace, self.dtype)).to_dense())
        U, V = self.astype(computing_dtype(self.namespace, self.dtype)).stacked()
        if 0 in U.shape or 0 in V.shape:
            return frobenius(U @ V.mT)
        # Sizes are taken out first, so that no product of entries overflows where the norm does not
        xp, columns = namespace_of(U), column_sizes(U)
        V = V * columns
        size = scale_of(V)
        core = LowRankSum._of((LowRank._of(U / columns, V / size),), (1,)).core()
        size = size[..., 0, 0]
        return xp.where(xp.isfinite(size), frobenius(core) * size, size)

    def __repr__(self):
        text = ""
        for term, c in zip(self.terms, self.coefficients, strict=True):
            sign, size = sign_and_size(c)
            text += (f" {sign} " if text else "-" if sign == "-" else "") + f"{size}·{term_text(term)}"
        return f"LowRankSum({shape_text(self)}: {text}, {dtype_name(self)})"

    def _repr_html_(self):
        rows = [
            (f"{sign}{size}", term_text(term))
            for (sign, size), term in zip(map(sign_and_size, self.coefficients), self.terms, strict=True)
        ]
        low_rank = [term for term in self.terms if isinstance(term, LowRank)]
        rows += [("stacked rank", self.rank), ("dtype", dtype_name(self)), *storage_rows(self, low_rank)]
        return html_table(f"LowRankSum {shape_text(self)}: Σ cᵢ Aᵢ", ("cᵢ", "Aᵢ"), rows)


def as_sum(x, name=None):
    """``x`` as a sum; if it is no matrix, an error about the argument ``name``, or None where that is not given."""
    if isinstance(x, LowRankSum):
        return x
    if isinstance(x, LowRank):
        return LowRankSum._of((x,), (1,))
    if is_operator(x) or (is_sparse(x) and x.ndim == 2):
        return LowRankSum._of((as_operator(x, name or "operator"),), (1,))
    if _is_array_like(x) and x.ndim >= 2:
        return LowRankSum._of((as_array(x, name or "array"),), (1,))
    if name is None:
        return None
    kinds = "a LowRank, a LowRankSum, an array or a LinearOperator"
    shape = f" of shape {tuple(x.shape)}" if _is_array_like(x) else ""
    raise TypeError(f"`{name}` is a {type(x).__name__}{shape}; {kinds} is needed.")


def _is_array_like(x):
    """True for an array of any library, and for tables that NumPy makes arrays of."""
    return is_array_api_obj(x) or (hasattr(x, "__array__") and hasattr(x, "ndim") and not isinstance(x, np.generic))


def check_addable(left, right, names=("left", "right")):
    """An error unless two sums have one shape and belong to one array library."""
    if left.shape != right.shape:
        raise ValueError(
            f"the terms of a sum have the shapes {left.shape} and {right.shape}: they must be equal, "
            "batch dimensions included."
        )
    # The terms of either sum agree already, so that one array of each is enough
    one, other = _an_array(left), _an_array(right)
    if type(one) is not type(other):
        common_namespace(**dict(zip(names, (one, other), strict=True)))


def _an_array(sum_):
    """An array of the library that the sum computes with."""
    term = sum_.terms[0]
    if isinstance(term, LowRank):
        return term.U
    return _NUMPY_ARRAY if is_operator(term) else term


def require_finite_coefficients(**sums):
    """An error that names the coefficient that is a NaN or an infinity, if there is one."""
    for argument, sum_ in sums.items():
        for i, c in enumerate(sum_.coefficients):
            if not (c - c == 0 if isinstance(c, (int, float, complex)) else is_finite(c)):  # ∞ − ∞ is a NaN
                raise ValueError(f"`{argument}` has the coefficient {c} at its term {i}; a finite number is needed.")


def require_finite(**sums):
    """An error that names the array or coefficient with a NaN or an infinity, if there is one."""
    require_finite_coefficients(**sums)
    for argument, sum_ in sums.items():
        for name, array in sum_.named_arrays().items():
            if not is_finite(array):
                raise ValueError(f"`{argument}` has a NaN or an infinity in its {name.removeprefix('terms[0].')}.")


def _padded(factor, rank):
    """The factor with zero columns up to ``rank``, for a rank above the dimensions."""
    missing = rank - factor.shape[-1]
    if missing == 0:
        return factor
    return namespace_of(factor).concat([factor, zeros_like((*factor.shape[:-1], missing), factor)], axis=-1)


def _as_factor(x):
    """What a matrix may be multiplied by: an array, or a matrix that is not formed; else None."""
    if is_sparse(x):
        return x if x.ndim == 2 else as_array(x.toarray(), "operand", ndim=1)
    if type(x) is not np.ndarray and (isinstance(x, _Linear) or is_operator(x)):
        return x
    return as_array(x, "operand", ndim=1) if _is_array_like(x) and x.ndim > 0 else None


def _multiplied(A, B):
    """A B, for what :func:`_as_factor` gives."""
    _check_inner(A, B)
    if not is_array_api_obj(B):
        return _product(A, B)
    return _times_in_common_dtype(A, B[:, None])[..., 0] if B.ndim == 1 else _times_in_common_dtype(A, B)


def _check_inner(left, right):
    if is_array_api_obj(right) or isinstance(right, _Linear):
        array = right if is_array_api_obj(right) else _an_array(as_sum(right))
        common_namespace(left=_an_array(as_sum(left)), right=array)
    rows = right.shape[0] if len(right.shape) == 1 else right.shape[-2]
    if left.shape[-1] != rows:
        raise ValueError(f"`@` of shapes {tuple(left.shape)} and {tuple(right.shape)}: {left.shape[-1]} ≠ {rows}.")
    one, other = left.shape[:-2], right.shape[:-2]
    pairs = zip(one[::-1], other[::-1], strict=False)  # a batch may have fewer dimensions
    if one != other and any(p != q and 1 not in (p, q) for p, q in pairs):
        raise ValueError(
            f"`@` of shapes {tuple(left.shape)} and {tuple(right.shape)}: the batch dimensions are not equal, nor 1."
        )


def _times_in_common_dtype(A, X):
    """A X in the dtype that both promote to; half precision is computed in single."""
    xp = namespace_of(X)
    dtype = X.dtype if A.dtype == X.dtype else xp.result_type(A.dtype, X.dtype)
    computing = computing_dtype(xp, dtype)
    product = A.astype(computing)._times(X if X.dtype == computing else xp.astype(X, computing))
    return product if product.dtype == dtype else xp.astype(product, dtype)


def _product(A, B):
    """A B, which is not formed either: of low rank where a factor is, else a sum."""
    if isinstance(B, LowRank):
        return _paired(A.dot(B.U), B.V)
    if isinstance(A, LowRank):
        return _paired(A.U, as_sum(B, "right").T.dot(A.V))
    A, B = as_sum(A, "left"), as_sum(B, "right")
    pairs = [
        (_product_of_terms(left, right), c * d)
        for right, d in zip(B.terms, B.coefficients, strict=True)
        for left, c in zip(A.terms, A.coefficients, strict=True)
    ]
    return LowRankSum(*zip(*pairs, strict=True))


def _product_of_terms(A, B):
    if isinstance(A, LowRank) or isinstance(B, LowRank):
        return _product(A if isinstance(A, LowRank) else as_sum(A), B)
    if is_operator(A) and is_operator(B):
        return A @ B
    return as_sum(B).T._times(A.mT).mT if is_operator(B) else _times_in_common_dtype(as_sum(A), B)


def _paired(U, V):
    """The low-rank matrix of two factors, of which one may lack batch dimensions that the other has."""
    if U.shape[:-2] == V.shape[:-2]:
        return LowRank(U, V)
    xp, batch = namespace_of(U, V), np.broadcast_shapes(U.shape[:-2], V.shape[:-2])
    return LowRank(*(xp.broadcast_to(X, (*batch, *X.shape[-2:])) if X.shape[:-2] != batch else X for X in (U, V)))


def _scaled(x, c):
    """c x; a coefficient that is out of the range of x's dtype, though the product may not be, in two steps."""
    if not _is_extreme(c):
        return x if type(c) in (int, float) and c == 1 else c * x
    root = _size(c) ** 0.5
    return (c / root) * (root * x)


def _with_coefficient(A, c):
    """Factors of c A: c goes to the left, or beside what takes U's columns out, where c U might leave the range."""
    if not _is_extreme(c):
        return _scaled(A.U, c), A.V
    columns, rows = column_sizes(A.U), column_sizes(A.V)
    if _size(c) > 1:
        return A.U / columns, _scaled(A.V * columns, c)
    first = namespace_of(columns).where(columns > rows, _scaled(columns, c), _scaled(rows, c))
    second = namespace_of(columns).where(columns > rows, rows, columns)
    return A.U / columns, (A.V / rows) * (first * second)


def _is_extreme(c):
    """True for a number whose product with another of single precision may leave its range, or be lost in it."""
    if not isinstance(c, (int, float, complex)):
        return False
    return not 1e-15 < _size(c) < 1e15 and c != 0 and c - c == 0


def _size(c):
    """The larger of a number's two parts: the modulus may overflow."""
    return max(abs(c.real), abs(c.imag))


def _term_times(term, c, X):
    """c A X; the coefficient multiplies the smallest array that it can."""
    if isinstance(term, LowRank):
        if not _is_extreme(c):
            return term.U @ _scaled(term.V.mT @ X, c)
        U, V = _with_coefficient(term, c)
        return U @ (V.mT @ X)
    return _scaled(operator_times(term, X) if is_operator(term) else term @ X, c)


def _dense(term, c, dtype):
    """c A as an array."""
    if isinstance(term, LowRank):
        U, V = _with_coefficient(term, c)
        return U @ V.mT
    return _scaled(dense_of(term, dtype) if is_operator(term) else term, c)

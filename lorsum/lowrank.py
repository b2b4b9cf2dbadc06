"""A low-rank matrix, and a sum of matrices: neither is ever formed."""

from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeAlias

from array_api_compat import is_array_api_obj

from lorsum import _numba, _sums
from lorsum._arrays import computing_dtype, is_complex, is_finite, namespace_of
from lorsum._checks import as_array, as_coefficient, common_namespace, is_scalar
from lorsum._decompositions import svdvals
from lorsum._display import dtype_name, html_table, shape_text, sign_and_size, storage_rows, term_text
from lorsum._linear import Linear, an_array, check_addable, is_array_like
from lorsum._operators import as_operator, is_operator, is_sparse
from lorsum.typing import Array, Matrix, Scalar

__all__ = ["LowRank", "LowRankSum", "MatrixLike", "as_sum"]


class LowRank(Linear):
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
    Shapes and dtypes are checked here; a NaN or an infinity is reported by the function that meets it, so that making a
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
    _is_low_rank = True

    def __init__(self, U: Array, V: Array) -> None:
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
    def _of(cls, U: Array, V: Array) -> Self:
        """The same without checks, for factors that were computed here."""
        self = object.__new__(cls)
        self.U, self.V = U, V
        return self

    @staticmethod
    def _as_sum(x: Any, name: str | None = None) -> Any:
        return as_sum(x, name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix, ``(..., m, n)``."""
        return (*tuple(self.U.shape[:-1]), self.V.shape[-2])

    @property
    def rank(self) -> int:
        """Number of columns of the factors, r (an upper bound of the numerical rank)."""
        return self.U.shape[-1]

    @property
    def dtype(self) -> Any:
        """Dtype of the factors."""
        return self.U.dtype

    @property
    def T(self) -> "LowRank":
        """The transpose, ``LowRank(V, U)``."""
        return LowRank._of(self.V, self.U)

    def __iter__(self) -> Iterator[Array]:
        return iter((self.U, self.V))

    def _times(self, X: Array) -> Array:
        return self.U @ (self.V.mT @ X)

    def to_dense(self) -> Array:
        """The matrix as an array of shape (..., m, n)."""
        xp = namespace_of(self.U)
        dtype = computing_dtype(xp, self.dtype)
        if dtype == self.dtype:
            return self.U @ self.V.mT
        return xp.astype(xp.astype(self.U, dtype) @ xp.astype(self.V, dtype).mT, self.dtype)

    def astype(self, dtype: Any) -> "LowRank":
        """The same with factors in ``dtype``; itself where nothing changes."""
        if self.U.dtype == dtype:
            return self
        xp = namespace_of(self.U)
        return LowRank._of(xp.astype(self.U, dtype), xp.astype(self.V, dtype))

    def norm(self) -> Array:
        """Frobenius norm, from the r × r core (nothing m × n is formed); an array over the batch dimensions."""
        return _sums.norm(as_sum(self))

    def singular_values(self) -> Array:
        """The r largest singular values, descending, shape (..., r); all others are zero.

        Examples
        --------
        >>> import numpy as np
        >>> LowRank(2 * np.eye(4, 2), np.eye(3, 2)).singular_values()
        array([2., 2.])
        """
        return svdvals(_sums.core(as_sum(self)))

    def balanced(self) -> "LowRank":
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
        return LowRank._of(*(_numba.balanced(self.U, self.V) or _sums.balanced(as_sum(self))))

    def __repr__(self) -> str:
        if not hasattr(self.U, "shape"):  # as a pytree of JAX it may hold anything
            return f"LowRank({self.U!r}, {self.V!r})"
        return f"LowRank({shape_text(self)}, rank {self.rank}, {dtype_name(self)})"

    def _repr_html_(self) -> str:
        rows = [("rank", self.rank), ("dtype", dtype_name(self)), *storage_rows(self, [self])]
        if self.ndim == 2 and is_finite(self.U, self.V):
            s = self.singular_values()
            shown = ", ".join(f"{float(x):.4g}" for x in s[:8]) + (", …" if self.rank > 8 else "")
            rows += [("Frobenius norm", f"{float(self.norm()):.4g}"), ("singular values", shown)]
        return html_table(f"LowRank {shape_text(self)}: U Vᵀ", ("property", "value"), rows)


class LowRankSum(Linear):
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
    coefficients: tuple[Scalar, ...]
    terms: tuple[Matrix, ...]

    def __init__(self, terms: Sequence[Any], coefficients: Sequence[Scalar] | None = None) -> None:
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
        like = an_array(sums[0])
        checked = [as_coefficient(c, like, f"coefficients[{i}]") for i, c in enumerate(coefficients)]
        self.coefficients = tuple(checked)

    @classmethod
    def _of(cls, terms: tuple[Any, ...], coefficients: tuple[Scalar, ...]) -> "LowRankSum":
        """The same without checks."""
        self = object.__new__(cls)
        self.terms, self.coefficients = terms, coefficients
        return self

    @classmethod
    def from_factors(cls, factors: Sequence[Any], coefficients: Sequence[Scalar]) -> "LowRankSum":
        """The sum Σ cᵢ Uᵢ Vᵢᵀ from the lists of the paper's Listing 1.

        Parameters
        ----------
        factors : sequence of pairs ``(weight_in, weight_out)``
            ``weight_in`` = Vᵢᵀ of shape (..., r, n) and ``weight_out`` = Uᵢ of shape (..., m, r), in the listing's
            order.
        coefficients : sequence of numbers
            The cᵢ.

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

    @staticmethod
    def _as_sum(x: Any, name: str | None = None) -> Any:
        return as_sum(x, name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix, ``(..., m, n)``."""
        return tuple(self.terms[0].shape)

    @property
    def rank(self) -> int:
        """Sum of the terms' ranks, at most min(m, n); a dense or operator term counts as full."""
        full = min(self.shape[-2:])
        return min(full, sum(term.rank if isinstance(term, LowRank) else full for term in self.terms))

    @property
    def dtype(self) -> Any:
        """Floating-point dtype that the terms and complex coefficients promote to; Python's numbers keep precision."""
        dtype = getattr(self.terms[0], "dtype", None)
        for term in self.terms:
            if not (isinstance(term, LowRank) or is_array_api_obj(term)) or term.dtype != dtype:
                return _sums.promoted_dtype(self)
        for c in self.coefficients:
            if type(c) is not float and is_complex(c):
                return _sums.promoted_dtype(self)
        return dtype

    @property
    def T(self) -> "LowRankSum":
        """The transpose, term by term."""
        terms = tuple([term.mT if is_array_api_obj(term) else term.T for term in self.terms])
        return LowRankSum._of(terms, self.coefficients)

    @property
    def is_factored(self) -> bool:
        """True if every term is a :class:`LowRank`, so that nothing m × n need ever be formed."""
        return all([isinstance(term, LowRank) for term in self.terms])

    def astype(self, dtype: Any) -> "LowRankSum":
        """The sum with all its arrays in ``dtype`` (operators keep their own); itself where nothing changes."""
        for term in self.terms:
            if (isinstance(term, LowRank) or not is_operator(term)) and term.dtype != dtype:
                return LowRankSum._of(tuple([_in_dtype(term, dtype) for term in self.terms]), self.coefficients)
        return self

    def _times(self, X: Array) -> Array:
        return _sums.times(self, X)

    def to_dense(self) -> Array:
        """The sum as an array of shape (..., m, n)."""
        return _sums.dense(self)

    def norm(self) -> Array:
        """Frobenius norm; from the R × R core of the stacked factors, R their rank, where all terms are low-rank."""
        return _sums.norm(self)

    def __repr__(self) -> str:
        text = ""
        for term, c in zip(self.terms, self.coefficients, strict=True):
            sign, size = sign_and_size(c)
            text += (f" {sign} " if text else "-" if sign == "-" else "") + f"{size}·{term_text(term)}"
        return f"LowRankSum({shape_text(self)}: {text}, {dtype_name(self)})"

    def _repr_html_(self) -> str:
        rows = [
            (f"{sign}{size}", term_text(term))
            for (sign, size), term in zip(map(sign_and_size, self.coefficients), self.terms, strict=True)
        ]
        low_rank = [term for term in self.terms if isinstance(term, LowRank)]
        rows += [("stacked rank", self.rank), ("dtype", dtype_name(self)), *storage_rows(self, low_rank)]
        return html_table(f"LowRankSum {shape_text(self)}: Σ cᵢ Aᵢ", ("cᵢ", "Aᵢ"), rows)


MatrixLike: TypeAlias = LowRank | LowRankSum | Array
"""What is taken for a matrix: a low-rank one, a sum, an array, or a SciPy operator or sparse matrix."""


def as_sum(x: Any, name: str | None = None) -> Any:
    """``x`` as a sum; if it is no matrix, an error about the argument ``name``, or None where that is not given."""
    if isinstance(x, LowRankSum):
        return x
    if isinstance(x, LowRank):
        return LowRankSum._of((x,), (1,))
    if is_operator(x) or (is_sparse(x) and x.ndim == 2):
        return LowRankSum._of((as_operator(x, name or "operator"),), (1,))
    if is_array_like(x) and x.ndim >= 2:
        return LowRankSum._of((as_array(x, name or "array"),), (1,))
    if name is None:
        return None
    kinds = "a LowRank, a LowRankSum, an array or a LinearOperator"
    shape = f" of shape {tuple(x.shape)}" if is_array_like(x) else ""
    raise TypeError(f"`{name}` is a {type(x).__name__}{shape}; {kinds} is needed.")


def _in_dtype(term: Any, dtype: Any) -> Any:
    if isinstance(term, LowRank):
        return term.astype(dtype)
    return term if is_operator(term) or term.dtype == dtype else namespace_of(term).astype(term, dtype)

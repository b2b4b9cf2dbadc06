"""What computations need of a sum Σ cᵢ Aᵢ: its arrays, products, stacked factors, and small matrices with its norm."""

from typing import Any

from array_api_compat import is_jax_array

from lorsum._arrays import (
    column_sizes,
    computing_dtype,
    eps,
    frobenius,
    is_complex,
    is_finite,
    namespace_of,
    scale_of,
    zeros_like,
)
from lorsum._decompositions import qr, svd, triangle
from lorsum._linear import Linear, an_array
from lorsum._operators import dense_of, floating_dtype, is_operator, operator_times
from lorsum.typing import Array, Scalar


def arrays_of(W: Any) -> dict[str, Array]:
    """All arrays of a sum by the names that error messages use, the factors of its low-rank terms among them."""
    named: dict[str, Array] = {}
    for i, term in enumerate(W.terms):
        if isinstance(term, Linear):
            named |= {f"terms[{i}].U": term.U, f"terms[{i}].V": term.V}
        elif not is_operator(term):
            named[f"terms[{i}]"] = term
    return named


def namespace_of_sum(W: Any) -> Any:
    """The array library of the terms; NumPy where all are operators."""
    return namespace_of(an_array(W))


def promoted_dtype(W: Any) -> Any:
    """What the dtypes of all terms promote to, integers to floating point, with complex coefficients too."""
    xp = namespace_of_sum(W)
    operators = [floating_dtype(term) for term in W.terms if is_operator(term)]
    dtypes = {term.dtype for term in W.terms if not is_operator(term)}.union(operators) - {None}
    dtype = dtypes.pop() if len(dtypes) == 1 else xp.result_type(*(dtypes or (xp.float64,)))
    if operators and xp.isdtype(dtype, ("bool", "integral")):  # of operators alone
        dtype = xp.result_type(xp.float64)
    return xp.result_type(dtype, xp.complex64) if any(map(is_complex, W.coefficients)) else dtype


def in_double(W: Any) -> Any:
    """The sum in double precision, to measure in; in single where JAX has double switched off."""
    xp = namespace_of_sum(W)
    single = is_jax_array(an_array(W)) and xp.asarray(1.0).dtype == xp.float32
    return W.astype(xp.result_type(W.dtype, xp.float32 if single else xp.float64))


def require_finite_coefficients(argument: str, W: Any) -> None:
    """An error that names the coefficient that is a NaN or an infinity, if there is one."""
    for i, c in enumerate(W.coefficients):
        if not (c - c == 0 if isinstance(c, (int, float, complex)) else is_finite(c)):  # ∞ − ∞ is a NaN
            raise ValueError(f"`{argument}` has the coefficient {c} at its term {i}; a finite number is needed.")


def require_finite(**sums: Any) -> None:
    """An error that names the array or coefficient with a NaN or an infinity, if there is one."""
    for argument, W in sums.items():
        require_finite_coefficients(argument, W)
        for name, array in arrays_of(W).items():
            if not is_finite(array):
                raise ValueError(f"`{argument}` has a NaN or an infinity in its {name.removeprefix('terms[0].')}.")


# --- products, and the matrix itself ---


def times(W: Any, X: Array) -> Array:
    """The sum times an array."""
    first, *others = zip(W.terms, W.coefficients, strict=True)
    product = _term_times(*first, X)
    for term, c in others:
        product = product + _term_times(term, c, X)
    return product


def dense(W: Any) -> Array:
    """The sum as an array."""
    dtype = W.dtype
    computing = computing_dtype(namespace_of_sum(W), dtype)
    first, *others = zip(W.astype(computing).terms, W.coefficients, strict=True)
    total = _term_dense(*first, computing)
    for term, c in others:
        total = total + _term_dense(term, c, computing)
    return total if total.dtype == dtype else namespace_of(total).astype(total, dtype)


def _term_times(term: Any, c: Scalar, X: Array) -> Array:
    """c A X; the coefficient multiplies the smallest array that it can."""
    if isinstance(term, Linear):
        if not _is_extreme(c):
            return term.U @ _scaled(term.V.mT @ X, c)
        U, V = _with_coefficient(term, c)
        return U @ (V.mT @ X)
    return _scaled(operator_times(term, X) if is_operator(term) else term @ X, c)


def _term_dense(term: Any, c: Scalar, dtype: Any) -> Array:
    """c A as an array."""
    if isinstance(term, Linear):
        U, V = _with_coefficient(term, c)
        return U @ V.mT
    return _scaled(dense_of(term, dtype) if is_operator(term) else term, c)


# --- sums of low-rank terms ---


def stacked(W: Any) -> tuple[Array, Array]:
    """Factors (…, m, R) and (…, n, R) whose product is a sum of low-rank terms."""
    pairs = [_with_coefficient(A, c) for A, c in zip(W.terms, W.coefficients, strict=True)]
    if len(pairs) == 1:
        return pairs[0]
    concat = namespace_of_sum(W).concat
    return concat([U for U, _ in pairs], axis=-1), concat([V for _, V in pairs], axis=-1)


def compressed(W: Any) -> tuple[Array, Array, Array]:
    """Qu, C, Qv with the sum of low-rank terms equal to Qu C Qvᵀ: QR of the stacked factors, C at most R × R."""
    U, V = _stacked_to_compute(W)
    (Qu, Ru), (Qv, Rv) = qr(U), qr(V)
    return Qu, Ru @ Rv.mT, Qv


def core(W: Any) -> Array:
    """A small matrix with the norm and the singular values of a sum of low-rank terms."""
    U, V = _stacked_to_compute(W)
    return triangle(U) @ triangle(V).mT


def norm(W: Any) -> Array:
    """Frobenius norm; from the R × R core of the stacked factors where all terms are low-rank."""
    if not W.is_factored:
        return frobenius(dense(W.astype(computing_dtype(namespace_of_sum(W), W.dtype))))
    U, V = _stacked_to_compute(W)
    if 0 in U.shape or 0 in V.shape:
        return frobenius(U @ V.mT)
    # Sizes are taken out first, so that no product of entries overflows where the norm does not
    xp, columns = namespace_of(U), column_sizes(U)
    V = V * columns
    size = scale_of(V)
    small = frobenius(triangle(U / columns) @ triangle(V / size).mT)
    size = size[..., 0, 0]
    return xp.where(xp.isfinite(size), small * size, size)


def balanced(W: Any) -> list[Array]:
    """The factors U√s and V√s of a sum, of as many columns as its stacked factors have."""
    Qu, core, Qv = compressed(W)
    xp, rank = namespace_of(core), sum([term.rank for term in W.terms])
    P, s, Zh = svd(core)
    # A column whose singular value is zero stays in V: zero in both, no update could bring it back
    s = s[..., None, :]
    zero = s <= s.shape[-1] * eps(xp, s.dtype) * s[..., :1]
    alive = xp.sqrt(xp.where(s[..., :1] > 0, s[..., :1], xp.ones_like(s[..., :1])))
    left, right = xp.where(zero, xp.zeros_like(s), xp.sqrt(s)), xp.where(zero, alive, xp.sqrt(s))
    factors = Qu @ (P * xp.astype(left, core.dtype)), Qv @ (Zh.mT * xp.astype(right, core.dtype))
    return [xp.astype(_with_zero_columns(factor, rank), W.dtype, copy=False) for factor in factors]


def _with_zero_columns(factor: Array, rank: int) -> Array:
    """The factor with columns up to ``rank``, which may be above the dimensions."""
    missing = rank - factor.shape[-1]
    if missing == 0:
        return factor
    return namespace_of(factor).concat([factor, zeros_like((*factor.shape[:-1], missing), factor)], axis=-1)


def _stacked_to_compute(W: Any) -> tuple[Array, Array]:
    return stacked(W.astype(computing_dtype(namespace_of_sum(W), W.dtype)))


# --- coefficients ---


def _scaled(x: Array, c: Scalar) -> Array:
    """c x; a coefficient that is out of the range of x's dtype, though the product may not be, in two steps."""
    if not _is_extreme(c):
        return x if type(c) in (int, float) and c == 1 else c * x
    root = _size(c) ** 0.5
    return (c / root) * (root * x)


def _with_coefficient(A: Any, c: Scalar) -> tuple[Array, Array]:
    """Factors of c A: c goes to the left, or beside what takes U's columns out, where c U might leave the range."""
    if not _is_extreme(c):
        return _scaled(A.U, c), A.V
    columns, rows = column_sizes(A.U), column_sizes(A.V)
    if _size(c) > 1:
        return A.U / columns, _scaled(A.V * columns, c)
    first = namespace_of(columns).where(columns > rows, _scaled(columns, c), _scaled(rows, c))
    second = namespace_of(columns).where(columns > rows, rows, columns)
    return A.U / columns, (A.V / rows) * (first * second)


def _is_extreme(c: Scalar) -> bool:
    """True for a number whose product with another of single precision may leave its range, or be lost in it."""
    if not isinstance(c, (int, float, complex)):
        return False
    return not 1e-15 < _size(c) < 1e15 and c != 0 and c - c == 0


def _size(c: Scalar) -> float:
    """The larger of a number's two parts: the modulus may overflow."""
    return abs(c) if type(c) is float else max(abs(c.real), abs(c.imag))

"""Floor 0: array namespaces, dtypes, and the checks at the door that every verb shares."""

import operator

import array_api_compat.numpy
import numpy as np
from array_api_compat import array_namespace, is_array_api_obj, is_jax_array, is_numpy_array

__all__ = [
    "all_true",
    "as_array",
    "as_count",
    "as_float",
    "as_number",
    "as_rank",
    "column_sizes",
    "common_namespace",
    "computing_dtype",
    "conj",
    "eps",
    "eye_like",
    "frobenius",
    "is_finite",
    "is_operator",
    "is_scalar",
    "is_traced",
    "namespace_of",
    "normal",
    "scale_of",
    "zeros_like",
]


_NUMPY_FLOATS = frozenset(map(np.dtype, ("f2", "f4", "f8", "c8", "c16")))


def namespace_of(*arrays):
    """The array-API namespace that the arrays belong to."""
    if all(type(x) is np.ndarray for x in arrays):
        return array_api_compat.numpy  # what array_namespace finds, without its cost
    return array_namespace(*arrays)


def common_namespace(**arrays):
    """The one namespace of the named arrays; an error that names two of them where there are several."""
    try:
        return namespace_of(*arrays.values())
    except TypeError:
        kinds = {name: f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}" for name, x in arrays.items()}
        (one, kind), *others = kinds.items()
        other, other_kind = next((item for item in others if item[1] != kind), others[0] if others else (one, kind))
        raise TypeError(
            f"`{one}` is a {kind} and `{other}` a {other_kind}: arrays of one library are needed, convert one of them."
        ) from None


def as_array(x, name, *, ndim=2):
    """``x`` as a floating-point array of at least ``ndim`` dimensions; lists and integers become NumPy float64."""
    if type(x) is np.ndarray and x.ndim >= ndim and x.dtype in _NUMPY_FLOATS:
        return x
    if not is_array_api_obj(x) or isinstance(x, np.matrix):
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"`{name}` is not an array: {error}.") from None
    xp = namespace_of(x)
    if x.ndim < ndim:
        raise ValueError(f"`{name}` has shape {tuple(x.shape)}; at least {ndim} dimensions are needed.")
    if is_numpy_array(x) and x.dtype.kind not in "biu" and x.dtype not in _NUMPY_FLOATS:
        raise TypeError(f"`{name}` has dtype {x.dtype}; real or complex numbers of up to double precision are needed.")
    if xp.isdtype(x.dtype, ("bool", "integral")):
        x = xp.astype(x, xp.float64) if is_numpy_array(x) else xp.astype(x, xp.asarray(1.0).dtype)
    return x


def is_scalar(x):
    """True for a number: Python's, NumPy's, or an array of no dimensions (a tensor, a traced learning rate)."""
    if isinstance(x, (bool, int, float, complex, np.number, np.bool_)):
        return True
    return is_array_api_obj(x) and x.ndim == 0


def as_number(x):
    """A number that does not promote single precision to double, as NumPy's own scalars do (NEP 50)."""
    return x.item() if isinstance(x, (np.generic, np.ndarray)) else x


def is_operator(x):
    """True for SciPy's ``LinearOperator`` and what behaves like it."""
    return hasattr(x, "matmat") and hasattr(x, "rmatmat") and hasattr(x, "shape")


def is_traced(x):
    """True inside ``jax.jit`` and its like, where an array has no values yet and checks on values are skipped."""
    kind = type(x)
    return kind.__module__.startswith("jax") and any(base.__name__ == "Tracer" for base in kind.__mro__)


def computing_dtype(xp, dtype):
    """The dtype to compute in: float32 for the half-precision formats, ``dtype`` itself otherwise."""
    if isinstance(dtype, np.dtype) and dtype in _NUMPY_FLOATS:  # NumPy's names are slow to spell out
        return xp.float32 if dtype == np.float16 else dtype
    return xp.float32 if str(dtype).endswith("float16") else dtype


def eps(xp, dtype):
    """Unit roundoff spacing of a real or complex dtype."""
    return float(xp.finfo(dtype).eps)


def conj(x):
    """Complex conjugate; real arrays come back as they are."""
    xp = namespace_of(x)
    return xp.conj(x) if xp.isdtype(x.dtype, "complex floating") else x


def frobenius(x):
    """Frobenius norm over the last two axes; the scaling keeps the squares from over- and underflowing."""
    if is_jax_array(x):  # whose derivative at zero would be a NaN
        from lorsum._decompositions_in_jax import frobenius

        return frobenius(x)
    xp = namespace_of(x)
    if 0 in x.shape[-2:]:
        return xp.sum(xp.abs(x), axis=(-2, -1))
    scale = scale_of(x)
    return scale[..., 0, 0] * xp.sqrt(xp.sum(xp.abs(x / scale) ** 2, axis=(-2, -1)))


def column_sizes(x):
    """Largest modulus of each column, kept as a row; 1 where all is zero."""
    xp = namespace_of(x)
    largest = xp.max(xp.abs(x), axis=-2, keepdims=True)
    return xp.where(largest > 0, largest, xp.ones_like(largest))


def scale_of(x):
    """Largest modulus over the last two axes, kept as 1 × 1 matrices; 1 where all is zero."""
    xp = namespace_of(x)
    largest = xp.max(xp.abs(x), axis=(-2, -1), keepdims=True)
    return xp.where(largest > 0, largest, xp.ones_like(largest))


def as_float(x):
    """An array of no dimensions as a Python float; one that is traced as it is."""
    if is_traced(x):
        return x
    return float(x.detach() if hasattr(x, "detach") else x)  # torch warns of gradients that are dropped


def is_finite(*arrays):
    """True if no array has a NaN or an infinity (traced arrays pass: they have no values yet)."""
    return all(is_traced(x) or all_true(namespace_of(x).isfinite, x) for x in arrays)


def all_true(test, x):
    """True if the test holds for all entries; JAX's constants are asked on the host, as jit would trace the asking."""
    if type(x).__module__.startswith("jax"):
        x = np.asarray(x)
        test = getattr(np, test.__name__, test)
    return bool(namespace_of(x).all(test(x)))


def as_count(value, name, *, least):
    """``value`` as a Python integer of at least ``least``."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` is {value!r}; an integer is needed.") from None
    if count < least:
        raise ValueError(f"`{name}` is {count}; it must be at least {least}.")
    return count


def as_rank(rank, shape, name="rank"):
    """``rank`` as an integer between 1 and min(m, n)."""
    rank = as_count(rank, name, least=1)
    if rank > min(shape[-2:]):
        m, n = shape[-2:]
        raise ValueError(f"`{name}` is {rank}, above min(m, n) = {min(m, n)} for a {m} × {n} matrix.")
    return rank


def eye_like(r, like):
    """The r × r identity in the library and dtype of ``like``, on its device."""
    return namespace_of(like).eye(r, dtype=like.dtype, **_on_device_of(like))


def zeros_like(shape, like):
    """Zeros in the library and dtype of ``like``, on its device."""
    return namespace_of(like).zeros(shape, dtype=like.dtype, **_on_device_of(like))


def normal(shape, like, rng):
    """Standard normal numbers in the library and dtype of ``like``, on its device, drawn from a NumPy generator."""
    draw = np.random.default_rng(rng).standard_normal(shape)
    return namespace_of(like).asarray(draw, dtype=like.dtype, **_on_device_of(like))


def _on_device_of(like):
    return {} if is_traced(like) else {"device": like.device}  # a traced array is not yet anywhere

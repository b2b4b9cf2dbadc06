"""Array namespaces and dtypes, and the checks of arguments that all functions share."""

import operator
from functools import cache
from numbers import Number, Real

import array_api_compat.numpy
import numpy as np
from array_api_compat import array_namespace, is_array_api_obj, is_jax_array, is_numpy_array

__all__ = [
    "all_true",
    "as_array",
    "as_coefficient",
    "as_count",
    "as_float",
    "as_generator",
    "as_number",
    "as_rank",
    "as_real",
    "column_sizes",
    "common_namespace",
    "computing_dtype",
    "conj",
    "eps",
    "eye_like",
    "frobenius",
    "is_complex",
    "is_finite",
    "is_scalar",
    "is_traced",
    "library_of",
    "namespace_of",
    "normal",
    "ones_like",
    "refuse_masked",
    "scale_of",
    "zeros_like",
]


_NUMPY_FLOATS = frozenset(map(np.dtype, ("f2", "f4", "f8", "c8", "c16")))
_FLOATS = frozenset(("float16", "bfloat16", "float32", "float64", "complex64", "complex128"))
_NUMBERS = "real or complex numbers of up to double precision are needed"


def namespace_of(*arrays):
    """The array-API namespace that the arrays belong to."""
    for x in arrays:
        if type(x) is not np.ndarray:
            return array_namespace(*arrays)
    return array_api_compat.numpy  # what array_namespace finds, without its cost


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
    refuse_masked(x, name)
    if not is_array_api_obj(x) or is_numpy_array(x):  # a list, a table, a subclass such as np.matrix
        given = x
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"`{name}` is not an array: {error}.") from None
        if x.ndim == 0 and x.dtype == object:
            raise TypeError(f"`{name}` is a {type(given).__name__}; an array is needed.")
    if x.ndim < ndim:
        raise ValueError(f"`{name}` has shape {tuple(x.shape)}; at least {ndim} dimensions are needed.")
    return _of_numpy_floats(x, name) if is_numpy_array(x) else _of_floats(x, name)


def _of_numpy_floats(x, name):
    """A NumPy array in native byte order, integers as float64."""
    if x.dtype.kind in "biu":
        return x.astype(np.float64)
    native = x.dtype.newbyteorder("=")
    if native not in _NUMPY_FLOATS:
        raise TypeError(f"`{name}` has dtype {x.dtype}; {_NUMBERS}: convert it, e.g. by `.astype(float)`.")
    return x.astype(native, copy=False)


def _of_floats(x, name):
    """An array of another library, integers in its default precision."""
    xp = namespace_of(x)
    if xp.isdtype(x.dtype, ("bool", "integral")):
        return xp.astype(x, xp.asarray(1.0).dtype)
    if not _is_known(type(x).__module__, x.dtype):
        raise TypeError(f"`{name}` has dtype {x.dtype}; {_NUMBERS}: convert it, e.g. to float32.")
    if type(x).__module__.startswith("torch") and "sparse" in str(x.layout):
        raise TypeError(f"`{name}` is a sparse tensor; make it dense by `.to_dense()`.")
    return x


@cache
def _is_known(library, dtype):
    """True for 16 to 64 bits a part. The library is a key too, since dtypes of two do not compare."""
    return str(dtype).rpartition(".")[2] in _FLOATS


def refuse_masked(x, name):
    """An error for a masked array, also where it hides in a list: what is masked has no value to compute with."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"`{name}` is a masked array; give its masked entries a value, by `.filled(value)`.")
    if isinstance(x, (list, tuple)):
        for entry in x:
            refuse_masked(entry, name)


def is_scalar(x):
    """True for a number: Python's, NumPy's, or an array of no dimensions (a tensor, a traced learning rate)."""
    if isinstance(x, (int, float, complex, np.number, np.bool_, Number)):
        return True
    return is_array_api_obj(x) and x.ndim == 0


def as_number(x, name="number"):
    """A number that does not promote single precision to double, as NumPy's own scalars do (NEP 50)."""
    kind = type(x)
    if kind is float or kind is complex:
        return x
    if isinstance(x, int):
        if x.bit_length() > 1023:
            raise ValueError(f"`{name}` is an integer of {x.bit_length()} bits; a number below 2¹⁰²³ is needed.")
        return x
    if isinstance(x, (np.generic, np.ndarray)):
        refuse_masked(x, name)
        if x.dtype.kind not in "biufc" or x.dtype.itemsize > (16 if x.dtype.kind == "c" else 8):
            raise TypeError(f"`{name}` is {x!r}, of dtype {x.dtype}; {_NUMBERS}: convert it, e.g. by float().")
        return x.item()
    if isinstance(x, Number) and not isinstance(x, (float, complex)):  # a fraction
        return float(x) if isinstance(x, Real) else complex(x)  # type: ignore[call-overload]
    return x


def as_real(x, name):
    """A real number, as Python's float."""
    x = as_number(x, name) if is_scalar(x) else x
    if not is_scalar(x) or is_complex(x):
        raise TypeError(f"`{name}` is {x!r}; a real number is needed.")
    return float(x)


def as_coefficient(c, like, name="coefficient"):
    """A number to multiply arrays of the library of ``like`` with: Python's, or an array of that library."""
    if type(c) is float:
        return c
    c = as_number(c, name)
    if not is_array_api_obj(c) or namespace_of(c) is namespace_of(like):
        return c
    if is_traced(c) or getattr(c, "requires_grad", False):
        raise TypeError(
            f"`{name}` is a number that {library_of(c)} traces, the matrix is of {library_of(like)}: convert its "
            f"factors to arrays of {library_of(c)}."
        )
    return as_number(c.item() if hasattr(c, "item") else float(c), name)


def library_of(x):
    """The name of the array library."""
    return type(x).__module__.partition(".")[0].removesuffix("lib")  # JAX's arrays are of jaxlib


def is_complex(c):
    """True for a complex number or array."""
    if type(c) is float:
        return False
    return isinstance(c, complex) or (is_array_api_obj(c) and "complex" in str(c.dtype))


def is_traced(x):
    """True where an array has no values yet, and checks on values are skipped.

    That is inside ``jax.jit`` and its like, inside ``torch.compile`` and ``torch.func``, and for PyTorch's tensors that
    are meta or fake.
    """
    module = type(x).__module__
    return _is_jax_tracer(x) if module.startswith("jax") else module.startswith("torch") and _is_torch_tracer(x)


def _is_jax_tracer(x):
    kind = type(x)
    return kind.__module__.startswith("jax") and any(base.__name__ == "Tracer" for base in kind.__mro__)


def _is_torch_tracer(x):
    import torch

    if torch.compiler.is_compiling() or x.is_meta or type(x).__name__ == "FakeTensor":
        return True
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


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
    """Largest number of each column, without its sign, kept as a row; 1 where all is zero."""
    xp = namespace_of(x)
    if x.shape[-2] == 0:
        return xp.abs(ones_like((*x.shape[:-2], 1, x.shape[-1]), x))
    largest = xp.max(_sizes(x), axis=-2, keepdims=True)
    return xp.where(largest > 0, largest, xp.ones_like(largest))


def scale_of(x):
    """Largest number over the last two axes, without its sign, kept as 1 × 1 matrices; 1 where all is zero."""
    xp = namespace_of(x)
    if 0 in x.shape[-2:]:
        return xp.abs(ones_like((*x.shape[:-2], 1, 1), x))
    largest = xp.max(_sizes(x), axis=(-2, -1), keepdims=True)
    return xp.where(largest > 0, largest, xp.ones_like(largest))


def _sizes(x):
    """The numbers without their signs; of complex ones the larger part, since their modulus may overflow."""
    xp = namespace_of(x)
    return xp.maximum(xp.abs(xp.real(x)), xp.abs(xp.imag(x))) if is_complex(x) else xp.abs(x)


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


def ones_like(shape, like):
    """Ones in the library and dtype of ``like``, on its device."""
    return namespace_of(like).ones(shape, dtype=like.dtype, **_on_device_of(like))


def normal(shape, like, rng):
    """Standard normal numbers in the library and dtype of ``like``, on its device, drawn from a NumPy generator."""
    draw = as_generator(rng).standard_normal(shape)
    return namespace_of(like).asarray(draw, dtype=like.dtype, **_on_device_of(like))


def as_generator(rng):
    """NumPy's random generator for a seed or a generator."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`rng` is {rng!r}; a seed or a numpy.random.Generator is needed.") from None


def _on_device_of(like):
    return {} if _is_jax_tracer(like) else {"device": like.device}  # what JAX traces is not yet anywhere

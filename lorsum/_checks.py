"""The checks of arguments that all functions share: arrays, numbers, counts and ranks."""

import operator
from functools import cache
from numbers import Number, Real

import numpy as np
from array_api_compat import is_array_api_obj, is_numpy_array

from lorsum._arrays import NUMPY_FLOATS, is_complex, is_traced, library_of, namespace_of

FLOATS = frozenset(("float16", "bfloat16", "float32", "float64", "complex64", "complex128"))
NUMBERS = "real or complex numbers of up to double precision are needed"


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
    if type(x) is np.ndarray and x.ndim >= ndim and x.dtype in NUMPY_FLOATS:
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
    if native not in NUMPY_FLOATS:
        raise TypeError(f"`{name}` has dtype {x.dtype}; {NUMBERS}: convert it, e.g. by `.astype(float)`.")
    return x.astype(native, copy=False)


def _of_floats(x, name):
    """An array of another library, integers in its default precision."""
    xp = namespace_of(x)
    if xp.isdtype(x.dtype, ("bool", "integral")):
        return xp.astype(x, xp.asarray(1.0).dtype)
    if not _is_known(type(x).__module__, x.dtype):
        raise TypeError(f"`{name}` has dtype {x.dtype}; {NUMBERS}: convert it, e.g. to float32.")
    if type(x).__module__.startswith("torch") and "sparse" in str(x.layout):
        raise TypeError(f"`{name}` is a sparse tensor; make it dense by `.to_dense()`.")
    return x


@cache
def _is_known(library, dtype):
    """True for 16 to 64 bits a part. The library is a key too, since dtypes of two do not compare."""
    return str(dtype).rpartition(".")[2] in FLOATS


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
        if not is_numeric(x.dtype):
            raise TypeError(f"`{name}` is {x!r}, of dtype {x.dtype}; {NUMBERS}: convert it, e.g. by float().")
        return x.item()
    if isinstance(x, Number) and not isinstance(x, (float, complex)):  # a fraction
        return float(x) if isinstance(x, Real) else complex(x)  # type: ignore[call-overload]
    return x


def is_numeric(dtype):
    """True for NumPy's dtypes of numbers up to double precision."""
    return dtype.kind in "biufc" and dtype.itemsize <= (16 if dtype.kind == "c" else 8)


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

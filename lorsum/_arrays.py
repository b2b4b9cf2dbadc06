"""What all array libraries need alike: namespaces, dtypes, sizes and norms, new arrays, and what is traced."""

import array_api_compat.numpy
import numpy as np
from array_api_compat import array_namespace, is_array_api_obj, is_jax_array

NUMPY_FLOATS = frozenset(map(np.dtype, ("f2", "f4", "f8", "c8", "c16")))


def namespace_of(*arrays):
    """The array-API namespace that the arrays belong to."""
    for x in arrays:
        if type(x) is not np.ndarray:
            return array_namespace(*arrays)
    return array_api_compat.numpy  # what array_namespace finds, without its cost


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
    if isinstance(dtype, np.dtype) and dtype in NUMPY_FLOATS:  # NumPy's names are slow to spell out
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

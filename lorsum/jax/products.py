"""Products with an adapter, x ↦ U Vᵀ x, as a primitive: an operation that programs of JAX have by name.

One primitive does both linear layers and convolutions. Batched by ``jax.vmap`` it stays one: more rows of x, or more
adapters. That is what lets :func:`lorsum.jax.value_and_grad` find each product and its X and S in any program.
"""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from lorsum.jax._matrix_views import Convolution, Linear, MatrixView, over_stack
from lorsum.lowrank import LowRank, LowRankSum
from lorsum.typing import Array

product_p = Primitive("lora")

Sizes: TypeAlias = int | Sequence[int]
"""An integer for each spatial dimension, or one for all of them."""

Padding: TypeAlias = int | str | Sequence[int | tuple[int, int]]
"""Zeros around an image: a number, one or two for each spatial dimension, or "SAME" or "VALID"."""


def lora(x: Array, W: LowRank | LowRankSum) -> Array:
    """The product of rows with an adapter: ``x @ W.T``, in O((m + n) r) a row.

    Parameters
    ----------
    x : array, shape (..., n)
        Rows: a token, an example, or many of them.
    W : LowRank, shape (m, n)
        The adapter, B = W.U and A = W.V.T. A stack of adapters, shape (..., m, n), takes x with the same leading
        dimensions in front, which are then not rows. A sum of adapters, as ``2 * W`` is, is multiplied term by term.

    Returns
    -------
    array, shape (..., m)

    Raises
    ------
    TypeError
        If ``W`` is no LowRank.
    ValueError
        If the shapes do not agree.

    Notes
    -----
    Differentiated by ``jax.grad`` this is the plain product. In :func:`lorsum.jax.value_and_grad` its gradient with
    respect to W is the pair (Sᵀ, Xᵀ). Scale the result, s · lora(x, W), where the adapter has a scaling: S then has it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> W = LowRank(jnp.ones((3, 1)), jnp.array([[1.0], [2.0]]))
    >>> lora(jnp.eye(2), W).tolist()
    [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    return _product(x, W, Linear())


def lora_conv(
    x: Array,
    W: LowRank | LowRankSum,
    kernel_size: Sequence[int],
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
) -> Array:
    """The convolution with an adapter, which is viewed as a matrix that multiplies the patches of the image.

    Parameters
    ----------
    x : array, shape (..., channels, *spatial)
        Images, channels first, as Equinox has them.
    W : LowRank, shape (d_out, channels · kernel)
        A = W.V.T is a convolution with r output channels, B = W.U one of size 1.
    kernel_size : sequence of int
        One for each spatial dimension.
    stride, dilation : int or sequence of int
    padding : int, a sequence of int or of pairs of int, "SAME" or "VALID"

    Returns
    -------
    array, shape (..., d_out, *spatial)

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> W = LowRank(jnp.ones((4, 1)), jnp.ones((2 * 9, 1)))
    >>> lora_conv(jnp.ones((2, 5, 5)), W, (3, 3))[0, 0].tolist()
    [18.0, 18.0, 18.0]
    """
    kernel = _sizes("kernel_size", kernel_size, None)
    dims = len(kernel)
    pads: Any = padding
    if not isinstance(padding, str):
        each = padding if np.iterable(padding) else (padding,) * dims
        pads = tuple(_sizes("padding", pad, 2) for pad in each)
    view = Convolution(kernel, _sizes("stride", stride, dims), pads, _sizes("dilation", dilation, dims))
    return _product(x, W, view)


def _sizes(name: str, value: Any, count: int | None) -> tuple[int, ...]:
    """So many integers; one stands for all of them."""
    if np.ndim(value) > 1 or (count is None and np.ndim(value) == 0):
        raise ValueError(f"`{name}` is {value!r}; one integer for each spatial dimension is needed.")
    values = (value,) * (count or 0) if np.ndim(value) == 0 else tuple(value)
    if count not in (None, len(values)):
        raise ValueError(f"`{name}` is {value!r}; {count} integers are needed.")
    return tuple(map(operator.index, values))


def _product(x: Array, W: Any, view: MatrixView) -> Array:
    """The product, checked, that of a sum term by term."""
    if isinstance(W, LowRankSum) and W.is_factored:
        products = [c * _product(x, A, view) for A, c in zip(W.terms, W.coefficients, strict=True)]
        return sum(products[1:], products[0])
    if not isinstance(W, LowRank):
        raise TypeError(f"`W` is a {type(W).__name__}; a LowRank is needed.")
    x, stack = jnp.asarray(x), tuple(W.shape[:-2])
    if x.shape[: len(stack)] != stack or x.ndim < len(stack) + view.dims or view.columns(x.shape) != W.shape[-1]:
        raise ValueError(
            f"`x` has shape {x.shape}, but `W` of shape {W.shape} multiplies one of shape {view.wanted(W.shape)}."
        )
    # The precision asked for around this call: the program is lowered, or run by lorsum.jax, outside of it
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return product_p.bind(x, jnp.asarray(W.U), jnp.asarray(W.V), view=view, precision=precision)


def plain_product(x: Array, U: Array, V: Array, *, view: MatrixView, precision: Any) -> Array:
    """The product, of one adapter or of a stack of them, in operations of jax.numpy."""
    with jax.default_matmul_precision(precision):
        return over_stack(view.product, U.ndim - 2)(x, U, V)


def _abstract(x: Any, U: Any, V: Any, **how: Any) -> Any:
    """Shape and dtype of the product."""
    return jax.make_jaxpr(partial(plain_product, **how))(x, U, V).out_avals[0]


def _batched(arguments: Sequence[Array], axes: Sequence[Any], **how: Any) -> tuple[Array, int]:
    """Under ``jax.vmap``: more rows where x alone is mapped over, else more adapters."""
    x, U, V = arguments
    if axes[1] is None and axes[2] is None:
        place = U.ndim - 2
        return product_p.bind(jnp.moveaxis(x, axes[0], place), U, V, **how), place
    size = next(a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None)
    stacked = [
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(arguments, axes, strict=True)
    ]
    return product_p.bind(*stacked, **how), 0


def _differentiated(primals: Sequence[Array], tangents: Sequence[Any], **how: Any) -> tuple[Array, Array]:
    """Along x alone a product again, as inside of a loss that has a derivative in it; else the plain product's."""
    x, U, V = primals
    dx, dU, dV = tangents
    if isinstance(dU, ad.Zero) and isinstance(dV, ad.Zero):
        return product_p.bind(x, U, V, **how), product_p.bind(ad.instantiate_zeros(dx), U, V, **how)
    return jax.jvp(partial(plain_product, **how), (x, U, V), tuple(map(ad.instantiate_zeros, tangents)))


def _transposed(S: Any, x: Any, U: Array, V: Array, *, view: MatrixView, precision: Any) -> tuple[Any, None, None]:
    """As a linear function of x, S ↦ S W: for rows again a product, with Wᵀ."""
    if isinstance(S, ad.Zero):
        return ad.Zero(x.aval), None, None
    if isinstance(view, Linear):
        S = product_p.bind(S, V, U, view=view, precision=precision)
        plain = partial(jax.lax.convert_element_type, new_dtype=S.dtype)
    else:
        plain = partial(plain_product, U=U, V=V, view=view, precision=precision)
    (transposed,) = jax.linear_transpose(plain, x.aval)(S)
    return transposed, None, None


product_p.def_impl(plain_product)
product_p.def_abstract_eval(_abstract)
mlir.register_lowering(product_p, mlir.lower_fun(plain_product, multiple_results=False))
batching.primitive_batchers[product_p] = _batched
ad.primitive_jvps[product_p] = _differentiated
ad.primitive_transposes[product_p] = _transposed

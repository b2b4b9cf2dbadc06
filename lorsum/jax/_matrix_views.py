"""How a layer is a product with a matrix: which rows of x it multiplies, and which rows of y come of them."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lorsum.typing import Array


def over_stack(function: Callable[..., Any], dims: int) -> Callable[..., Any]:
    """A function of one adapter as one of a stack of them, whose dimensions are the first ones of all its arguments."""
    for _ in range(dims):
        function = jax.vmap(function)
    return function


class MatrixView(abc.ABC):
    """What :func:`lorsum.jax.value_and_grad` asks of a kind of layer, y being its product of x with the matrix W.

    Of x and y the last dimensions are those of one row or image: the channels, and the spatial ones of ``kernel``. The
    computations are those with one adapter; :func:`over_stack` makes them those with a stack.
    """

    kernel: tuple[int, ...]

    @property
    def dims(self) -> int:
        """The number of dimensions of one row or image."""
        return 1 + len(self.kernel)

    def columns(self, shape: tuple) -> int:
        """The number n of W's columns that an x of this shape fits."""
        return shape[-self.dims] * math.prod(self.kernel)

    def wanted(self, shape: tuple) -> str:
        """The shape that x should have for a W of this shape, in words."""
        (*stack, _, n), size = shape, math.prod(self.kernel)
        channels = n // size if n % size == 0 else f"{n} / {size}"
        spatial = ["height", "width", "depth"][: self.dims - 1]
        return f"({', '.join(map(str, [*stack, '...', channels, *spatial]))})"

    def rows(self, y: tuple) -> int:
        """Number of rows in one output of this shape, stacks not counted."""
        channels = len(y) - self.dims
        return math.prod(y[:channels] + y[channels + 1 :])

    @abc.abstractmethod
    def product(self, x: Array, U: Array, V: Array) -> Array:
        """The product with W = U Vᵀ."""

    @abc.abstractmethod
    def pair(self, S: Array, x: Array) -> tuple[Array, Array]:
        """S and X as matrices, shapes (N, m) and (N, n)."""

    @abc.abstractmethod
    def dense(self, S: Array, x: Array) -> Array:
        """SᵀX."""


@dataclass(frozen=True)
class Linear(MatrixView):
    """A linear layer: one row a token."""

    kernel: tuple[int, ...] = ()

    def product(self, x, U, V):
        return (x @ V) @ U.mT

    def pair(self, S, x):
        return tuple(a.reshape(-1, a.shape[-1]) for a in (S, x))

    def dense(self, S, x):
        S, X = self.pair(S, x)
        return S.T @ X


@dataclass(frozen=True)
class Convolution(MatrixView):
    """A convolution: one row an output position, of which X holds the patch."""

    kernel: tuple[int, ...]
    stride: tuple
    padding: Any
    dilation: tuple

    def product(self, x, U, V):
        """The convolution with A = Vᵀ, and the combination of its channels by B = U."""
        images = self._images(x)
        kernel = V.T.reshape(V.shape[-1], images.shape[1], *self.kernel)
        y = jnp.tensordot(self._convolved(images, kernel), U, axes=(1, 1))
        y = jnp.moveaxis(y, -1, 1)
        return y.reshape(*x.shape[: -self.dims], *y.shape[1:])

    def pair(self, S, x):
        patches = jax.lax.conv_general_dilated_patches(
            self._images(x), self.kernel, self.stride, self.padding, rhs_dilation=self.dilation
        )
        return tuple(jnp.moveaxis(a, 1, -1).reshape(-1, a.shape[1]) for a in (self._images(S), patches))

    def dense(self, S, x):
        """SᵀX as the weight gradient of the convolution, so that no patch is copied."""
        dtype = jnp.result_type(S, x)
        images, S = self._images(x).astype(dtype), self._images(S).astype(dtype)
        zeros = jnp.zeros((S.shape[1], images.shape[1], *self.kernel), dtype)
        (G,) = jax.linear_transpose(lambda kernel: self._convolved(images, kernel), zeros)(S)
        return G.reshape(S.shape[1], -1)

    def _images(self, x):
        """All leading dimensions as one."""
        return x.reshape(-1, *x.shape[-self.dims :])

    def _convolved(self, images, kernel):
        dtype = jnp.result_type(images, kernel)
        return jax.lax.conv_general_dilated(
            images.astype(dtype), kernel.astype(dtype), self.stride, self.padding, rhs_dilation=self.dilation
        )

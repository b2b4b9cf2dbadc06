"""Low-rank matrices and their sums as pytrees: arguments and results of ``jax.jit``, leaves of parameters.

Importing this tells JAX what their parts are.
"""

import functools
from typing import Any, Self, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey, register_pytree_with_keys

from lorsum.lowrank import LowRank, LowRankSum
from lorsum.typing import Array, DType

PyTree: TypeAlias = Any
"""Arrays and low-rank matrices in any nesting of containers that JAX knows, such as a dict or a model of Equinox."""


class Pair(LowRank):
    """The gradient G = SᵀX with respect to the matrix of an adapter, as the pair (Sᵀ, Xᵀ).

    It is no gradient of the factors: with S and X scaled by c, G is scaled by c². To JAX it is another kind of node
    than an adapter, so that what combines gradients with parameters, such as weight decay, is an error, also where
    shapes happen to agree. And it has a third leaf beside the two arrays, a random key that means nothing: JAX knows no
    arithmetic for it, so that what would scale, clip or measure the arrays one by one is an error, too: "mul does not
    accept dtype key<fry>". For gradients with pairs there are :func:`lorsum.jax.clip_by_global_norm`,
    :func:`lorsum.jax.global_norm`, :func:`lorsum.jax.multi_steps`, :func:`lorsum.jax.apply_if_finite` and
    :func:`lorsum.jax.set_to_zero` in place of Optax's; ``gradient="dense"`` gives matrices.

    Parameters
    ----------
    U : array, shape (..., m, N)
        Sᵀ, the gradients with respect to the adapter's outputs.
    V : array, shape (..., n, N)
        Xᵀ, the adapter's inputs.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> G = Pair(jnp.ones((4, 2)), jnp.ones((3, 2)))
    >>> optax.scale(0.5).update(G, optax.EmptyState())  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
        ...
    TypeError: no arithmetic
    """

    __slots__ = ("_no_number",)
    _no_number: Array

    @classmethod
    def _of(cls, U: Array, V: Array, *no_number: Array) -> Self:
        self = super()._of(U, V)
        if no_number:
            (self._no_number,) = no_number
        return self

    @property
    def no_number(self) -> Array:
        """The random key as a 1 × 1 matrix, or as many as the batch has, so that the pair can be mapped over.

        Each pair of arrays has a copy of its own: a compiled function that is given a pair to keep may free its arrays.
        """
        if hasattr(self, "_no_number"):
            return self._no_number
        batch = getattr(self.U, "shape", ())[:-2]
        if batch:
            return jnp.broadcast_to(_key(), (*batch, 1, 1))
        if isinstance(self.U, jax.core.Tracer):
            return _key()
        with jax.ensure_compile_time_eval():
            return _key().copy()

    def astype(self, dtype: DType) -> "Pair":
        """The same with arrays in ``dtype``."""
        return Pair._of(self.U.astype(dtype), self.V.astype(dtype))

    def __repr__(self) -> str:
        return super().__repr__().replace("LowRank", "Pair", 1)


# The coefficients of a sum are parts as well, so that a new learning rate does not compile anew.
PARTS: dict[type, tuple[str, ...]] = {LowRank: ("U", "V"), Pair: ("U", "V"), LowRankSum: ("terms", "coefficients")}


def _register(kind, names):
    """Tell JAX which parts a node has; built again it is not checked, since JAX puts objects of its own in, too."""
    keys = tuple(map(GetAttrKey, names))

    def parts(x):
        return tuple(getattr(x, name) for name in names), None

    def parts_with_keys(x):
        return tuple(zip(keys, parts(x)[0], strict=True)), None

    register_pytree_with_keys(kind, parts_with_keys, lambda _, parts: kind._of(*parts), parts)


for _kind, _names in PARTS.items():
    _register(_kind, (*_names, "no_number") if _kind is Pair else _names)


@functools.cache
def _key():
    with jax.ensure_compile_time_eval():
        return jax.random.key(0)[None, None]


def is_low_rank(x: Any) -> TypeGuard[LowRank]:
    """True for a low-rank matrix, as ``is_leaf`` of ``jax.tree`` functions."""
    return isinstance(x, LowRank)


def flat_gradients(gradients: PyTree, structure: Any) -> list[tuple[str, Any]]:
    """The gradient of each parameter and the parameter's name, from gradients of the structure of the parameters.

    A gradient of an adapter is with respect to its matrix: an array, or a pair, which comes as a plain LowRank.
    """
    leaves, found = jax.tree_util.tree_flatten_with_path(gradients, is_leaf=is_low_rank)
    if found != structure:
        raise ValueError(f"the gradients have the structure {found} and `params` {structure}: they must be equal.")
    named = [(f"params{jax.tree_util.keystr(path)}", G) for path, G in leaves]
    for name, G in named:
        if is_low_rank(G) and not isinstance(G, Pair):
            raise TypeError(
                f"the gradient of `{name}` is a LowRank and no lorsum.jax.Pair: jax.grad gives those of the factors "
                "so, which is no gradient of the matrix. Take lorsum.jax.value_and_grad."
            )
    return [(name, LowRank._of(*G) if is_low_rank(G) else G) for name, G in named]

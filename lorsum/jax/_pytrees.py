"""Low-rank matrices and their sums as pytrees: arguments and results of ``jax.jit``, leaves of parameters."""

import functools

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey, register_pytree_with_keys

from lorsum.lowrank import LowRank, LowRankSum

__all__ = ["Pair", "checked_gradient", "is_low_rank", "register"]


class Pair(LowRank):
    """The gradient G = SᵀX with respect to the matrix of an adapter, as the pair (Sᵀ, Xᵀ).

    To JAX it is another kind of node than an adapter, so that what combines gradients with parameters, such as weight
    decay or an average of gradients, is an error, also where shapes happen to agree. And it has a third leaf beside the
    two arrays, a random key that means nothing: JAX knows no arithmetic for it, so that what would scale, clip or
    measure the arrays one by one is an error, too: "mul does not accept dtype key<fry>". For gradients with pairs there
    are :func:`lorsum.jax.clip_by_global_norm`, :func:`lorsum.jax.global_norm`, :func:`lorsum.jax.multi_steps` and
    :func:`lorsum.jax.apply_if_finite`; ``gradient="dense"`` gives matrices.

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

    __slots__ = ("no_number",)

    def astype(self, dtype):
        """The same with arrays in ``dtype``."""
        return Pair._of(self.U.astype(dtype), self.V.astype(dtype))

    def __repr__(self):
        return super().__repr__().replace("LowRank", "Pair", 1)


def register():
    """Tell JAX what the parts of a low-rank matrix and of a sum are.

    The coefficients of a sum are parts as well, so that a new learning rate does not compile anew.
    """
    for kind, names in ((LowRank, ("U", "V")), (Pair, ("U", "V")), (LowRankSum, ("terms", "coefficients"))):
        register_pytree_with_keys(kind, *_flattening(kind, names))


def _flattening(kind, names):
    keys = tuple(map(GetAttrKey, (*names, "no_number")))

    def parts(x):
        values = tuple(getattr(x, name) for name in names)
        return (*values, _no_number(x)) if kind is Pair else values, None

    def parts_with_keys(x):
        return tuple(zip(keys, parts(x)[0], strict=False)), None

    def rebuilt(_, children):
        """Not checked: JAX puts objects of its own in, too."""
        x = kind._of(*children[: len(names)])
        if kind is Pair:
            x.no_number = children[-1]
        return x

    return parts_with_keys, rebuilt, parts


def _no_number(pair):
    """A key as a 1 × 1 matrix, or as many as the batch has, so that the pair can be mapped over.

    Each pair has a copy of its own: a compiled function that is given a pair to keep may free its arrays.
    """
    if hasattr(pair, "no_number"):
        return pair.no_number
    batch = getattr(pair.U, "shape", ())[:-2]
    if batch:
        return jnp.broadcast_to(_key(), (*batch, 1, 1))
    with jax.ensure_compile_time_eval():
        return _key().copy()


@functools.cache
def _key():
    with jax.ensure_compile_time_eval():
        return jax.random.key(0)[None, None]


def is_low_rank(x):
    """True for a low-rank matrix, as ``is_leaf`` of ``jax.tree`` functions."""
    return isinstance(x, LowRank)


def checked_gradient(path, G):
    """A gradient that is with respect to the matrix: an array, or a pair, which then is a plain low-rank matrix."""
    if isinstance(G, Pair):
        return LowRank._of(*G)
    if is_low_rank(G):
        raise TypeError(
            f"the gradient of `params{jax.tree_util.keystr(path)}` is a LowRank and no lorsum.jax.Pair: jax.grad gives "
            "those of the factors so, which is no gradient of the matrix. Take lorsum.jax.value_and_grad."
        )
    return G

"""Low-rank matrices and their sums as pytrees: arguments and results of ``jax.jit``, leaves of parameters."""

from jax.tree_util import GetAttrKey, register_pytree_with_keys

from lorsum.lowrank import LowRank, LowRankSum

__all__ = ["Pair", "is_low_rank", "register"]


class Pair(LowRank):
    """The gradient G = SᵀX of an adapter, LowRank(Sᵀ, Xᵀ).

    To JAX it is another kind of node than an adapter. What combines the arrays of gradients and parameters, such as
    weight decay or an average of gradients, is then an error, also where their shapes happen to agree.
    """

    __slots__ = ()


def register():
    """Tell JAX what the parts of a low-rank matrix and of a sum are.

    The coefficients of a sum are parts as well, so that a new learning rate does not compile anew.
    """
    for kind, names in ((LowRank, ("U", "V")), (Pair, ("U", "V")), (LowRankSum, ("terms", "coefficients"))):
        register_pytree_with_keys(kind, *_flattening(kind, names))


def _flattening(kind, names):
    keys = tuple(map(GetAttrKey, names))

    def parts(x):
        return tuple(getattr(x, name) for name in names), None

    def parts_with_keys(x):
        return tuple(zip(keys, parts(x)[0], strict=True)), None

    def rebuilt(_, children):
        return kind._of(*children)  # not checked: JAX puts objects of its own in, too

    return parts_with_keys, rebuilt, parts


def is_low_rank(x):
    """True for a low-rank matrix, as ``is_leaf`` of ``jax.tree`` functions."""
    return isinstance(x, LowRank)

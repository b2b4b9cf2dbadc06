"""What goes around the transformations: norms, clipping, leaving out what is not finite, freezing, and which is which.

Optax has its own of these for gradients that are arrays, of the shapes of the parameters.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lorsum._arrays import computing_dtype
from lorsum.jax._pytrees import Pair, is_low_rank
from lorsum.lowrank import LowRank

__all__ = ["apply_if_finite", "clip_by_global_norm", "global_norm", "labels", "set_to_zero"]


def global_norm(gradients):
    """The root of the sum of all gradients' squared Frobenius norms, that of a pair being the norm of the matrix SᵀX.

    What ``optax.global_norm`` is for arrays. The norm of a pair comes from QR factors, which lose nothing where SᵀX is
    small by cancellation, or from SᵀX itself where that is smaller.

    Parameters
    ----------
    gradients : pytree
        Arrays, :class:`lorsum.jax.Pair` and other low-rank matrices.

    Returns
    -------
    array
        A number.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lorsum.jax import Pair
    >>> float(global_norm({"W": Pair(jnp.array([[2.0], [0.0]]), jnp.array([[2.0]])), "b": jnp.array([3.0])}))
    5.0
    """
    norms = [_norm(G) for G in jax.tree.leaves(gradients, is_leaf=is_low_rank)]
    return jnp.linalg.norm(jnp.stack(norms)) if norms else jnp.zeros(())


def clip_by_global_norm(max_norm):
    """Scale all gradients by one number so that the root of the sum of their squared Frobenius norms is at most this.

    Like ``optax.clip_by_global_norm``, for gradients of which some are low-rank pairs: their norm is that of the matrix
    SᵀX, not of S and X (see :func:`global_norm`), and one of the two is scaled.

    Parameters
    ----------
    max_norm : float

    Returns
    -------
    optax.GradientTransformation

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lorsum.jax import Pair
    >>> G = Pair(jnp.array([[3.0], [4.0]]), jnp.array([[2.0]]))
    >>> clipped, _ = clip_by_global_norm(1.0).update({"W": G, "b": jnp.zeros(2)}, optax.EmptyState())
    >>> float(clipped["W"].norm())
    1.0
    """

    def update(gradients, state, params=None):
        norm = global_norm(gradients)
        c = jnp.where(norm > max_norm, max_norm / norm, 1.0)
        return jax.tree.map(lambda G: _times(c, G), gradients, is_leaf=is_low_rank), state

    return optax.GradientTransformation(optax.init_empty_state, update)


class ApplyIfFiniteState(NamedTuple):
    """State of the inner transformation, and how many gradients in a row, and in all, were left out."""

    inner_state: Any
    notfinite_count: Any
    total_notfinite: Any


def apply_if_finite(inner):
    """Leave out steps with a NaN or an infinity, in the gradients or in what follows from them: nothing moves then.

    What ``optax.apply_if_finite`` is for updates that have the structure of the gradients, which here they have not. It
    goes around a whole chain, or around ``optax.multi_transform``.

    Parameters
    ----------
    inner : optax.GradientTransformation

    Returns
    -------
    optax.GradientTransformation

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from lorsum import LowRank
    >>> from lorsum.jax import preconditioned_sgd
    >>> W, G = LowRank(jnp.ones((4, 1)), jnp.ones((3, 1))), jnp.full((4, 3), jnp.nan)
    >>> tx = apply_if_finite(preconditioned_sgd(0.1))
    >>> updates, state = jax.jit(tx.update)(G, tx.init(W), W)
    >>> updates.U.ravel().tolist(), int(state.notfinite_count)
    ([0.0, 0.0, 0.0, 0.0], 1)
    """

    def init(params):
        return ApplyIfFiniteState(inner.init(params), jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32))

    def update(gradients, state, params=None):
        finite = _all_finite(gradients)
        tame = _or_zero(finite, gradients)  # without jit, a step of what is not finite raises
        updates, inner_state = inner.update(tame, state.inner_state, params)
        finite &= _all_finite((updates, inner_state))
        updates = _or_zero(finite, updates)
        inner_state = jax.tree.map(partial(jnp.where, finite), inner_state, state.inner_state)
        counts = jnp.where(finite, 0, state.notfinite_count + 1), state.total_notfinite + (1 - finite.astype(jnp.int32))
        return updates, ApplyIfFiniteState(inner_state, *counts)

    return optax.GradientTransformation(init, update)


def set_to_zero():
    """Updates of zero, for adapters that ``optax.multi_transform`` is to freeze.

    What ``optax.set_to_zero`` is for updates that have the structure of the gradients. Gradients are computed all the
    same: what is never trained is better passed to the loss as a further argument.

    Returns
    -------
    optax.GradientTransformation

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lorsum import LowRank
    >>> W = LowRank(jnp.ones((4, 1)), jnp.ones((3, 1)))
    >>> set_to_zero().update(jnp.ones((4, 3)), optax.EmptyState(), W)[0].to_dense().max().item()
    0.0
    """

    def update(gradients, state, params=None):
        if params is None:
            raise ValueError("`params` is None, of which the updates are to have the structure.")
        return jax.tree.map(jnp.zeros_like, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def labels(params):
    """A function that says which parameters are "adapters", and which "others", for ``optax.multi_transform``.

    A function, since Optax would call a model of Equinox; and of these parameters, since Optax asks it about gradients
    as well, where a matrix is no adapter.

    Parameters
    ----------
    params : pytree

    Returns
    -------
    callable
        Gives ``params`` with a word in place of each leaf, a LowRank being one.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lorsum import LowRank
    >>> params = {"W": LowRank(jnp.ones((4, 1)), jnp.ones((3, 1))), "b": jnp.ones(4)}
    >>> labels(params)(params)
    {'W': 'adapters', 'b': 'others'}
    """
    labelled = jax.tree.map(lambda leaf: "adapters" if is_low_rank(leaf) else "others", params, is_leaf=is_low_rank)
    return lambda _: labelled


def _all_finite(tree):
    return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(_without_pairs(tree))]).all()


def _or_zero(kept, tree):
    def of_array(x):
        return jnp.where(kept, x, jnp.zeros_like(x))

    def of_leaf(x):
        return Pair._of(of_array(x.U), of_array(x.V)) if isinstance(x, Pair) else of_array(x)

    return jax.tree.map(of_leaf, tree, is_leaf=_is_pair)


def _without_pairs(tree):
    """The same with an adapter's node in place of each pair, of the same arrays."""
    return jax.tree.map(lambda x: LowRank._of(*x) if _is_pair(x) else x, tree, is_leaf=_is_pair)


def _is_pair(x):
    return isinstance(x, Pair)


def _norm(G):
    """Frobenius norm, over all dimensions."""
    G = G.astype(computing_dtype(jnp, G.dtype))
    if is_low_rank(G):
        G = G.to_dense() if G.rank > min(G.shape[-2:]) else G.norm()
    return jnp.linalg.norm(jnp.ravel(G))


def _times(c, G):
    return type(G)._of(G.U * c.astype(G.dtype), G.V) if is_low_rank(G) else G * c.astype(G.dtype)

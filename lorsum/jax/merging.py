"""Weights with their adapters added to them: models without adapters that compute the same."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from lorsum._arrays import computing_dtype
from lorsum.jax._pytrees import PyTree, is_low_rank
from lorsum.jax.layers import LoRALayer, computes_as, is_adapted
from lorsum.lowrank import LowRank
from lorsum.typing import Array


def merge(model: PyTree) -> PyTree:
    """A model without adapters: each layer that has one is its base again, with the weight W₀ + s · W.

    It computes the same, but for dropout.

    Parameters
    ----------
    model : pytree
        With layers of :func:`add_lora` in it. A model that was split is put together first, by ``equinox.combine``.

    Raises
    ------
    ValueError
        If there is no such layer, or if one is of a class that computes otherwise than ``equinox.nn.Linear`` and
        ``equinox.nn.Conv2d``, so that its weight is not the matrix that the adapter is added to.

    See Also
    --------
    merge_into : For weights and adapters that are kept apart.

    Examples
    --------
    >>> import equinox as eqx, jax
    >>> from lorsum.jax import add_lora
    >>> mlp = eqx.nn.MLP(5, 3, width_size=8, depth=1, key=jax.random.key(0))
    >>> [type(layer).__name__ for layer in merge(add_lora(mlp, 2, key=jax.random.key(1))).layers]
    ['Linear', 'Linear']
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_adapted)
    if not any(is_adapted(part) for _, part in leaves):
        raise ValueError(f"`model` ({type(model).__name__}) has no layer with an adapter.")
    merged = [_merged(jax.tree_util.keystr(path), part) if is_adapted(part) else part for path, part in leaves]
    return jax.tree.unflatten(structure, merged)


def merge_into(weights: PyTree, adapters: PyTree, *, scaling: float = 1.0) -> PyTree:
    """Weights with adapters added to them, W₀ + s · W, in their own dtypes, for models that are pytrees of arrays.

    Parameters
    ----------
    weights : pytree of arrays
    adapters : pytree
        A LowRank in place of each weight that has one, and None, or nothing where a dict is, in place of the others.
        Of a kernel that is stored as d_in × d_out, as in Flax, the adapter is ``W.T``.
    scaling : float
        s.

    Raises
    ------
    ValueError
        If an adapter has no weight of its shape.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> weights = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    >>> merge_into(weights, {"kernel": LowRank(jnp.ones((2, 1)), jnp.ones((3, 1)))}, scaling=2.0)["kernel"].tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(weights)
    by_place = dict(leaves)
    for path, W in jax.tree_util.tree_leaves_with_path(adapters, is_leaf=is_low_rank):
        place, weight = f"adapters{jax.tree_util.keystr(path)}", by_place.get(path)
        shape = "is missing" if weight is None else getattr(weight, "shape", type(weight).__name__)
        if not is_low_rank(W):
            raise ValueError(f"`{place}` is a {type(W).__name__}; a LowRank or None is needed.")
        if shape != W.shape:
            raise ValueError(f"`{place}` has shape {W.shape}, but the weight in its place {shape}.")
        by_place[path] = _sum(weight, W, scaling)
    return jax.tree.unflatten(structure, [by_place[path] for path, _ in leaves])


def _merged(place: str, layer: LoRALayer[Any]) -> eqx.Module:
    """The base with the adapter in its weight."""
    base, kind = layer.base, eqx.nn.Linear if isinstance(layer.base, eqx.nn.Linear) else eqx.nn.Conv2d
    if not computes_as(kind, base):
        raise ValueError(
            f"`model{place}` adapts a {type(base).__name__}, which computes otherwise than equinox.nn.{kind.__name__}: "
            "its adapter is beside what it gives, not in its weight."
        )
    weight = base.weight
    merged = _sum(weight.reshape(layer.W.shape), layer.W, layer.scaling).reshape(weight.shape)
    return eqx.tree_at(lambda base: base.weight, base, merged)


def _sum(weight: Array, W: LowRank, scaling: float) -> Array:
    """W₀ + s · W, added up in the more precise of the two dtypes, at least in single."""
    dtype = computing_dtype(jnp, jnp.result_type(weight.dtype, W.dtype))
    return (weight.astype(dtype) + scaling * W.astype(dtype).to_dense()).astype(weight.dtype)

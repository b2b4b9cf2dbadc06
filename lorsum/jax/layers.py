"""Layers of Equinox with LoRA adapters, and functions that put them into a model and split it for training.

Equinox, since its modules are pytrees and nothing else: an adapter is a leaf of the model as any array is, and
``jax.jit``, Optax and :func:`lorsum.jax.value_and_grad` take the model as it is.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from lorsum._checks import as_rank
from lorsum.jax._pytrees import PyTree, is_low_rank
from lorsum.jax.products import lora, lora_conv
from lorsum.lowrank import LowRank
from lorsum.typing import Array

__all__ = ["LoRAConv2d", "LoRALinear", "add_lora", "partition"]

_BASES = (eqx.nn.Linear, eqx.nn.Conv2d)


class LoRALinear(eqx.Module):
    """A linear layer with a LoRA adapter beside it: x ↦ base(x) + s · W dropout(x).

    Parameters
    ----------
    base : equinox.nn.Linear
        The layer to adapt. It may be of a class derived from it: it is called as it would be without an adapter.
    rank : int
        r, at most min(d_in, d_out).
    alpha : float, optional
        α of the scaling s = α/r; default: s = 1.
    dropout : float
        Probability to drop an entry of the adapter's input.
    key : jax.random.key
        Of A, which is uniform on ±1/√d_in as in PEFT; B is zero.

    Attributes
    ----------
    base : equinox.nn.Linear
        :func:`partition` counts it as frozen.
    W : LowRank
        The adapter, B = W.U and A = W.V.T.

    Raises
    ------
    ValueError
        If the rank is above min(d_in, d_out).

    Examples
    --------
    >>> import equinox as eqx, jax
    >>> layer = LoRALinear(eqx.nn.Linear(5, 4, key=jax.random.key(0)), 2, key=jax.random.key(1))
    >>> layer.W, layer(jax.numpy.ones((7, 5))).shape
    (LowRank(4 × 5, rank 2, float32), (7, 4))
    """

    base: eqx.nn.Linear
    W: LowRank
    dropout: eqx.nn.Dropout
    scaling: float = eqx.field(static=True)

    def __init__(
        self, base: eqx.nn.Linear, rank: int, *, alpha: float | None = None, dropout: float = 0.0, key: Array
    ) -> None:
        if "scalar" in (base.in_features, base.out_features):
            raise ValueError("`base` has a scalar input or output; one of size 1 is needed.")
        self.base, self.dropout, self.scaling = base, eqx.nn.Dropout(dropout), _scaling(alpha, rank)
        self.W = _adapter(_as_matrix(base.weight, 2), rank, key)

    def __call__(self, x: Array, *args: Any, key: Array | None = None, **kwargs: Any) -> Any:
        """The base's output, and the adapter's.

        Parameters
        ----------
        x : array, shape (..., d_in)
            Unlike Equinox's own layer this takes rows of any number of dimensions.
        *args, **kwargs
            Passed on to the base, if it is of a class that takes more, such as a state.
        key : jax.random.key, optional
            For dropout; the base gets it too.

        Returns
        -------
        array, shape (..., d_out)
            Where the base gives a tuple, its first entry is taken for the output, and the others are passed on.
        """
        call = functools.partial(_called, self.base, key=key, args=args, kwargs=kwargs)
        if computes_as(eqx.nn.Linear, self.base):
            for _ in x.shape[:-1]:
                call = jax.vmap(call)
        return _beside(call(x), self.scaling * lora(self.dropout(x, key=_folded(key)), self.W))


class LoRAConv2d(eqx.Module):
    """A convolution with a frozen weight and a LoRA adapter, the convolution being viewed as a matrix.

    Its matrix is d_out × (d_in · kernel): it multiplies the patches of the image.

    Parameters
    ----------
    base : equinox.nn.Conv2d
        The layer to adapt, without groups and padded by zeros.
    rank : int
        r, at most min(d_out, d_in · kernel).
    alpha, dropout, key
        As for :class:`LoRALinear`.

    Raises
    ------
    ValueError
        If the rank is too large, or the convolution has groups or another padding mode.

    Examples
    --------
    >>> import equinox as eqx, jax
    >>> layer = LoRAConv2d(eqx.nn.Conv2d(3, 8, 5, key=jax.random.key(0)), 2, key=jax.random.key(1))
    >>> layer.W, layer(jax.numpy.ones((3, 9, 9))).shape
    (LowRank(8 × 75, rank 2, float32), (8, 5, 5))
    """

    base: eqx.nn.Conv2d
    W: LowRank
    dropout: eqx.nn.Dropout
    scaling: float = eqx.field(static=True)

    def __init__(
        self, base: eqx.nn.Conv2d, rank: int, *, alpha: float | None = None, dropout: float = 0.0, key: Array
    ) -> None:
        if base.groups != 1:
            raise ValueError(f"`base` has {base.groups} groups; a convolution with groups is no single matrix.")
        if base.padding_mode.upper() != "ZEROS":
            raise ValueError(f"`base` has the padding mode {base.padding_mode}; 'ZEROS' is needed.")
        self.base, self.dropout, self.scaling = base, eqx.nn.Dropout(dropout), _scaling(alpha, rank)
        self.W = _adapter(_as_matrix(base.weight, 4), rank, key)

    def __call__(self, x: Array, *args: Any, key: Array | None = None, **kwargs: Any) -> Any:
        """The base's output, and the adapter's.

        Parameters
        ----------
        x : array, shape (d_in, height, width)
            One image, as Equinox has it; batches by ``jax.vmap``.
        *args, key, **kwargs
            As for :class:`LoRALinear`.

        Returns
        -------
        array, shape (d_out, height, width)
        """
        base = self.base
        geometry: dict[str, Any] = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
        adapted = lora_conv(self.dropout(x, key=_folded(key)), self.W, base.kernel_size, **geometry)
        return _beside(_called(base, x, key, args, kwargs), self.scaling * adapted)


def add_lora(
    model: PyTree,
    rank: int,
    *,
    targets: Callable[[str, Any], bool] | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    key: Array,
) -> PyTree:
    """A model with adapters in place of its layers.

    Parameters
    ----------
    model : pytree
        With layers of Equinox in it.
    rank : int
        r of every adapter; layers whose smaller side is below it get that rank.
    targets : callable, optional
        Which layers: a function of a layer's place in the model, such as ``".layers[0]"``, and the layer; default: all
        of type ``equinox.nn.Linear``. It is asked about these and ``equinox.nn.Conv2d``, and classes derived from them.
    alpha, dropout
        As for :class:`LoRALinear`.
    key : jax.random.key

    Returns
    -------
    pytree
        A new model.

    Raises
    ------
    ValueError
        If no layer is meant.

    Examples
    --------
    >>> import equinox as eqx, jax
    >>> mlp = eqx.nn.MLP(5, 3, width_size=8, depth=1, key=jax.random.key(0))
    >>> [layer.W for layer in add_lora(mlp, 2, key=jax.random.key(1)).layers]
    [LowRank(8 × 5, rank 2, float32), LowRank(3 × 8, rank 2, float32)]
    """
    if targets is None:
        targets = _is_linear
    leaves, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_layer)
    places = [
        (number, layer)
        for number, (path, layer) in enumerate(leaves)
        if isinstance(layer, _BASES) and targets(jax.tree_util.keystr(path), layer)
    ]
    if not places:
        raise ValueError(
            f"`targets` means no layer of `model` ({type(model).__name__}) that an adapter fits: equinox.nn.Linear and "
            "equinox.nn.Conv2d. For others, lorsum.jax.lora(x, W) is the product with an adapter."
        )
    adapted = [layer for _, layer in leaves]
    kind: Any
    for (number, layer), own in zip(places, jax.random.split(key, len(places)), strict=True):
        kind, ndim = (LoRALinear, 2) if isinstance(layer, eqx.nn.Linear) else (LoRAConv2d, 4)
        smaller = min(rank, *_as_matrix(layer.weight, ndim).shape)
        adapted[number] = kind(layer, smaller, alpha=alpha, dropout=dropout, key=own)
    return jax.tree.unflatten(structure, adapted)


def partition(model: PyTree, *, others: bool | Callable[[str, Array], bool] = False) -> tuple[PyTree, PyTree]:
    """What is trained of a model, and what is frozen: everything but the adapters.

    Parameters
    ----------
    model : pytree
        Adapters are its LowRank leaves.
    others : bool or callable
        Which other arrays are trained: a function of an array's place in the model, such as ``".layers[0].base.bias"``,
        and the array. True: all of floating-point numbers but the weights that have an adapter beside them.

    Returns
    -------
    params, frozen : pytree
        Each has None where the other has something; ``equinox.combine(params, frozen)`` is the model.

    Raises
    ------
    ValueError
        If nothing is trained.

    Examples
    --------
    >>> import equinox as eqx, jax
    >>> mlp = add_lora(eqx.nn.MLP(5, 3, width_size=4, depth=1, key=jax.random.key(0)), 2, key=jax.random.key(1))
    >>> params, frozen = partition(mlp)
    >>> [layer.W for layer in params.layers], params.layers[0].base.bias is None
    ([LowRank(4 × 5, rank 2, float32), LowRank(3 × 4, rank 2, float32)], True)
    >>> params, _ = partition(mlp, others=lambda name, array: name.endswith("bias"))
    >>> [layer.base.bias.shape for layer in params.layers]
    [(4,), (3,)]
    """
    adapted = {id(part.base.weight) for part in jax.tree.leaves(model, is_leaf=is_adapted) if is_adapted(part)}

    def is_trained(path: Any, leaf: Any) -> bool:
        if is_low_rank(leaf):
            return True
        if not others or not eqx.is_inexact_array(leaf):
            return False
        return bool(others(jax.tree_util.keystr(path), leaf)) if callable(others) else id(leaf) not in adapted

    trained = jax.tree_util.tree_map_with_path(is_trained, model, is_leaf=is_low_rank)  # a LowRank as a whole
    if not any(jax.tree.leaves(trained)):
        raise ValueError(f"`model` ({type(model).__name__}) has no adapter, and `others` means none of its arrays.")
    return eqx.partition(model, trained)


def computes_as(kind: type, layer: Any) -> bool:
    """True for a layer of this kind, or of a class derived from it that calls it as it is."""
    return type(layer).__call__ is kind.__call__


def _called(base: Any, x: Array, key: Array | None, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a layer gives, also if it is of a class that takes no key."""
    takes = inspect.signature(type(base).__call__).parameters
    if key is not None and ("key" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())):
        kwargs = {"key": key, **kwargs}
    return base(x, *args, **kwargs)


def _beside(y: Any, adapted: Array) -> Any:
    """The sum of a base's output and its adapter's."""
    if isinstance(y, tuple):
        return (y[0] + adapted, *y[1:])
    return y + adapted


def _folded(key: Array | None) -> Array | None:
    """Another key, so that dropout and what the base draws are independent."""
    return None if key is None else jax.random.fold_in(key, 0)


def is_adapted(part: Any) -> bool:
    """True for a layer with an adapter."""
    return isinstance(part, (LoRALinear, LoRAConv2d))


def _is_layer(part: Any) -> bool:
    """True for what an adapter fits, and for layers that have one, which are left as they are."""
    return isinstance(part, _BASES) or is_adapted(part)


def _is_linear(name: str, layer: Any) -> bool:
    return isinstance(layer, eqx.nn.Linear)


def _scaling(alpha: Any, rank: int) -> float:
    if alpha is not None and not (isinstance(alpha, (int, float)) and math.isfinite(alpha)):
        raise ValueError(f"`alpha` is {alpha!r}; a finite number is needed.")
    return 1.0 if alpha is None else alpha / rank


def _as_matrix(weight: Any, ndim: int) -> Array:
    """The weight of one layer as a matrix."""
    if getattr(weight, "ndim", None) != ndim:
        raise ValueError(
            f"`base` has a weight that is no array of {ndim} dimensions. For a stack of layers take "
            "equinox.filter_vmap of this function; put adapters in before an equinox.nn.Shared."
        )
    return weight.reshape(len(weight), -1)


def _adapter(weight: Array, rank: int, key: Array) -> LowRank:
    """B = 0 and A uniform on ±1/√d_in: the layer computes what its base does."""
    m, n = weight.shape
    rank = as_rank(rank, (m, n), "rank")
    V = jax.random.uniform(key, (n, rank), weight.dtype, -(n**-0.5), n**-0.5)
    return LowRank(jnp.zeros((m, rank), weight.dtype), V)

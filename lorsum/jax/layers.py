"""Layers of Equinox with LoRA adapters, and functions that put them into a model and split it for training.

Equinox, since its modules are pytrees and nothing else: an adapter is a leaf of the model as any array is, and
``jax.jit``, Optax and :func:`lorsum.jax.value_and_grad` take the model as it is.
"""

import abc
import inspect
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from lorsum._checks import as_rank
from lorsum.jax._pytrees import PyTree, is_low_rank
from lorsum.jax.products import lora, lora_conv
from lorsum.lowrank import LowRank
from lorsum.typing import Array

_BASES = (eqx.nn.Linear, eqx.nn.Conv2d)
Base = TypeVar("Base", eqx.nn.Linear, eqx.nn.Conv2d)


class LoRALayer(eqx.Module, Generic[Base]):
    """A layer with an adapter beside it: x ↦ base(x) + s · W dropout(x). Derived classes say how W multiplies."""

    base: Base
    W: LowRank
    dropout: eqx.nn.Dropout
    scaling: float = eqx.field(static=True)

    def __init__(self, base: Base, rank: int, *, alpha: float | None = None, dropout: float = 0.0, key: Array) -> None:
        if alpha is not None and not (isinstance(alpha, (int, float)) and math.isfinite(alpha)):
            raise ValueError(f"`alpha` is {alpha!r}; a finite number is needed.")
        m, n = _matrix_of(base).shape
        rank, dtype = as_rank(rank, (m, n)), base.weight.dtype
        self.base, self.dropout, self.scaling = base, eqx.nn.Dropout(dropout), 1.0 if alpha is None else alpha / rank
        V = jax.random.uniform(key, (n, rank), dtype, -(n**-0.5), n**-0.5)
        self.W = LowRank(jnp.zeros((m, rank), dtype), V)  # B = 0: at first the layer computes what its base does

    def __call__(self, x: Array, *args: Any, key: Array | None = None, **kwargs: Any) -> Any:
        """The base's output, and the adapter's.

        Parameters
        ----------
        x : array, shape (..., d_in) or (d_in, height, width)
            Rows of any number of dimensions, unlike Equinox's own layer; or one image, as Equinox has it, of which
            batches are made by ``jax.vmap``.
        *args, **kwargs
            Passed on to the base, if it is of a class that takes more, such as a state.
        key : jax.random.key, optional
            For dropout; the base gets it too, if it takes one.

        Returns
        -------
        array, shape (..., d_out) or (d_out, height, width)
            Where the base gives a tuple, its first entry is taken for the output, and the others are passed on.
        """
        folded = None if key is None else jax.random.fold_in(key, 0)  # dropout and what the base draws: independent
        adapted = self.scaling * self._product(self.dropout(x, key=folded))
        y: Any = _called(self.base, x, key, args, kwargs)
        return (y[0] + adapted, *y[1:]) if isinstance(y, tuple) else y + adapted

    @abc.abstractmethod
    def _product(self, x: Array) -> Array:
        """The product of x with W."""


class LoRALinear(LoRALayer[eqx.nn.Linear]):
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

    def _product(self, x: Array) -> Array:
        return lora(x, self.W)


class LoRAConv2d(LoRALayer[eqx.nn.Conv2d]):
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

    def _product(self, x: Array) -> Array:
        base = self.base
        geometry: dict[str, Any] = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
        return lora_conv(x, self.W, base.kernel_size, **geometry)


def add_lora(
    model: PyTree,
    rank: int,
    *,
    targets: Callable[[str, Any], bool] | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    key: Array,
) -> PyTree:
    """A new model, with adapters in place of layers.

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
    targets = targets or (lambda name, layer: isinstance(layer, eqx.nn.Linear))
    leaves, structure = jax.tree_util.tree_flatten_with_path(
        model, is_leaf=lambda part: isinstance(part, _BASES) or is_adapted(part)
    )
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
    for (number, layer), own in zip(places, jax.random.split(key, len(places)), strict=True):
        kind: Any = LoRALinear if isinstance(layer, eqx.nn.Linear) else LoRAConv2d
        adapted[number] = kind(layer, min(rank, *_matrix_of(layer).shape), alpha=alpha, dropout=dropout, key=own)
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


def is_adapted(part: Any) -> bool:
    """True for a layer with an adapter."""
    return isinstance(part, LoRALayer)


def _called(base: Any, x: Array, key: Array | None, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a layer gives, also if it is of a class that takes no key; Equinox's linear one for each row."""
    takes = inspect.signature(type(base).__call__).parameters
    if key is not None and ("key" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())):
        kwargs = {"key": key, **kwargs}

    def call(x: Array) -> Any:
        return base(x, *args, **kwargs)

    for _ in x.shape[:-1] if computes_as(eqx.nn.Linear, base) else ():
        call = jax.vmap(call)
    return call(x)


def _matrix_of(base: Any) -> Array:
    """The weight of one layer as the matrix that an adapter is beside."""
    is_linear = isinstance(base, eqx.nn.Linear)
    if is_linear and "scalar" in (base.in_features, base.out_features):
        raise ValueError("`base` has a scalar input or output; one of size 1 is needed.")
    if not is_linear and base.groups != 1:
        raise ValueError(f"`base` has {base.groups} groups; a convolution with groups is no single matrix.")
    if not is_linear and base.padding_mode.upper() != "ZEROS":
        raise ValueError(f"`base` has the padding mode {base.padding_mode}; 'ZEROS' is needed.")
    ndim = 2 if is_linear else 4
    if getattr(base.weight, "ndim", None) != ndim:
        raise ValueError(
            f"`base` has a weight that is no array of {ndim} dimensions. For a stack of layers take "
            "equinox.filter_vmap of this function; put adapters in before an equinox.nn.Shared."
        )
    return base.weight.reshape(len(base.weight), -1)

"""Rules that train the factors U and V as if they were two independent parameters: LoRA as it is usually trained."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from lorsum._arrays import computing_dtype, conj, namespace_of
from lorsum._checks import as_array, common_namespace
from lorsum._sums import arrays_of
from lorsum.lowrank import LowRank, as_sum
from lorsum.optim._options import check_options, descending, is_used, lr_at
from lorsum.optim.rule import Reads, Schedule
from lorsum.typing import RNG, Array, DType, Scalar


class SGDState(NamedTuple):
    """Steps done, and a momentum buffer for each array that is trained."""

    count: Any
    buffers: tuple[Array, ...]


class AdamWState(NamedTuple):
    """Steps done, and the two moments of each array that is trained."""

    count: Any
    first: tuple[Array, ...]
    second: tuple[Array, ...]


class _OnFactors:
    """What SGD and AdamW share: they train each factor, or a dense parameter, by its own gradient."""

    entrywise = True  # see lorsum.optim.Rule

    def __post_init__(self) -> None:
        check_options(self)

    def reads(self, rank: int) -> Reads:
        """Of G the gradients of the two factors."""
        return Reads("factors")

    def arrays_and_gradients(self, W: Any, G: Any, lr: Scalar) -> tuple[list[Array], list[Array]]:
        """The arrays that are trained, and the directions to descend in: G_U = G V and G_V = Gᵀ U (section 3), or G."""
        arrays, G = leaves(W), checked_gradient(W, G)
        if not isinstance(W, LowRank):
            return arrays, [G]
        U, V = arrays
        return arrays, [G @ conj(V), G.T @ conj(U)]


@dataclass(frozen=True, kw_only=True)
class SGD(_OnFactors):
    """Gradient descent with momentum on the factors, or on a dense parameter such as a bias.

    ``buffer ← α buffer + g;  p ← p − η buffer``, as ``torch.optim.SGD`` has it.

    Parameters
    ----------
    lr : float or callable
        Learning rate η, or a function of the step.
    momentum : float
        α in [0, 1).
    weight_decay : float
        Added to the gradient, times the parameter: of an adapter, to those of its two factors.
    maximize : bool
        Ascend: the gradient's sign is changed before anything else.

    Examples
    --------
    >>> import numpy as np
    >>> rule = SGD(lr=0.1)
    >>> b, state = rule.step(np.ones(2), np.array([1.0, -1.0]), rule.init(np.ones(2)))
    >>> b
    array([0.9, 1.1])
    """

    lr: Scalar | Schedule
    momentum: Scalar = 0.0
    weight_decay: Scalar = 0.0
    maximize: bool = False

    def init(self, W: Any, *, rng: RNG = 0) -> SGDState:
        """State before the first step. ``rng`` is not used: nothing here is random."""
        return SGDState(0, zeros_like_leaves(W) if is_used(self.momentum) else ())

    def step(self, W: Any, G: Any, state: SGDState) -> tuple[Any, SGDState]:
        """``(W, state)`` after a step along G, the gradient with respect to the matrix W."""
        lr = lr_at(self.lr, state.count)
        arrays, buffers = self.arrays_and_gradients(W, descending(G, self.maximize), lr)
        if state.buffers:
            buffers = [g + self.momentum * b for g, b in zip(buffers, state.buffers, strict=True)]
        W = rebuilt(W, [p - lr * b for p, b in zip(arrays, buffers, strict=True)])
        return W, SGDState(state.count + 1, tuple(buffers) if state.buffers else ())

    def arrays_and_gradients(self, W: Any, G: Any, lr: Scalar) -> tuple[list[Array], list[Array]]:
        """The arrays that are trained, and the directions to descend in, with the decay in these."""
        arrays, gradients = super().arrays_and_gradients(W, G, lr)
        if is_used(self.weight_decay):
            gradients = [g + self.weight_decay * p for g, p in zip(gradients, arrays, strict=True)]
        return arrays, gradients


@dataclass(frozen=True, kw_only=True)
class AdamW(_OnFactors):
    """Adam with decoupled weight decay on the factors, or on a dense parameter; as ``torch.optim.AdamW`` has it.

    Parameters
    ----------
    lr, maximize
        As for :class:`SGD`.
    betas : pair of float
        Decay rates of the two moments.
    eps : float
        Added to the root of the second moment.
    weight_decay : float
        Times η and the parameter, subtracted from it: of an adapter, from each of its two factors.

    Examples
    --------
    >>> import numpy as np
    >>> rule = AdamW(lr=0.1, weight_decay=0.0)
    >>> b, state = rule.step(np.ones(2), np.array([1e-3, -1e3]), rule.init(np.ones(2)))
    >>> b.round(4)
    array([0.9, 1.1])
    """

    trains_complex = False

    lr: Scalar | Schedule
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.01
    maximize: bool = False

    def init(self, W: Any, *, rng: RNG = 0) -> AdamWState:
        """State before the first step. ``rng`` is not used: nothing here is random."""
        return AdamWState(0, zeros_like_leaves(W), zeros_like_leaves(W))

    def step(self, W: Any, G: Any, state: AdamWState) -> tuple[Any, AdamWState]:
        """``(W, state)`` after a step along G, the gradient with respect to the matrix W."""
        lr, t = lr_at(self.lr, state.count), state.count + 1
        beta1, beta2 = self.betas
        arrays, gradients = self.arrays_and_gradients(W, descending(G, self.maximize), lr)
        first = tuple(beta1 * m + (1 - beta1) * g for m, g in zip(state.first, gradients, strict=True))
        second = tuple(beta2 * v + (1 - beta2) * g**2 for v, g in zip(state.second, gradients, strict=True))

        def moved(p: Array, m: Array, v: Array) -> Array:
            root = namespace_of(v).sqrt(v / (1 - beta2**t)) + self.eps
            return p - lr * (m / (1 - beta1**t)) / root

        return rebuilt(W, list(map(moved, arrays, first, second))), AdamWState(t, first, second)

    def arrays_and_gradients(self, W: Any, G: Any, lr: Scalar) -> tuple[list[Array], list[Array]]:
        """The arrays that are trained, after decay, and the directions to descend in."""
        arrays, gradients = super().arrays_and_gradients(W, G, lr)
        if is_used(self.weight_decay):
            arrays = [(1 - lr * self.weight_decay) * p for p in arrays]
        return arrays, gradients


def leaves(W: Any) -> list[Array]:
    """The arrays that are trained: the factors of an adapter, or the one array of a dense parameter.

    Half precision is trained in single: its steps would be lost to rounding, and Adam's ε is zero in it.
    """
    arrays = tuple(W) if isinstance(W, LowRank) else (as_array(W, "W", ndim=0),)
    return [_astype(p, computing_dtype(namespace_of(p), p.dtype)) for p in arrays]


def checked_gradient(W: Any, G: Any) -> Any:
    """The gradient in the precision that W is trained in: a sum for an adapter, an array for another parameter."""
    if not hasattr(G, "shape"):
        raise TypeError(f"`G` is a {type(G).__name__}; a LowRank, a LowRankSum or an array is needed.")
    if tuple(G.shape) != tuple(W.shape):
        raise ValueError(f"`G` has shape {tuple(G.shape)} and `W` {tuple(W.shape)}: they must be equal.")
    if isinstance(W, LowRank):
        G = as_sum(G, "G")
        xp = common_namespace(W=W.U, G=next(iter(arrays_of(G).values()), W.U))
    else:
        G = G.to_dense() if hasattr(G, "to_dense") else as_array(G, "G", ndim=0)
        xp = common_namespace(W=W, G=G)
    if G.dtype != W.dtype and "complex" in str(G.dtype) and "complex" not in str(W.dtype):
        raise TypeError(f"`G` has dtype {G.dtype} and `W` {W.dtype}: take the real part, or make `W` complex.")
    dtype = computing_dtype(xp, W.dtype)
    return G.astype(dtype) if isinstance(W, LowRank) else _astype(G, dtype)


def rebuilt(W: Any, arrays: list[Array]) -> Any:
    """The parameter W with new arrays, in its own dtype."""
    arrays = [_astype(p, W.dtype) for p in arrays]
    return LowRank(*arrays) if isinstance(W, LowRank) else arrays[0]


def zeros_like_leaves(W: Any) -> tuple[Array, ...]:
    """A zero array for each that is trained."""
    return tuple(namespace_of(p).zeros_like(p) for p in leaves(W))


def _astype(x: Array, dtype: DType) -> Array:
    return x if x.dtype == dtype else namespace_of(x).astype(x, dtype)

"""The update rules of :mod:`lorsum.optim` as gradient transformations of Optax."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lorsum import optim
from lorsum.jax._pytrees import Pair, is_low_rank
from lorsum.lowrank import LowRank

__all__ = [
    "apply_if_finite",
    "clip_by_global_norm",
    "labels",
    "oplora",
    "preconditioned_adamw",
    "preconditioned_sgd",
    "projected_oplora",
    "scaled_oplora",
    "svdlora",
    "transformation",
]


def transformation(rule, *, rng=0):
    """A rule of :mod:`lorsum.optim` as a gradient transformation over adapters.

    Parameters
    ----------
    rule : OPLoRA, SVDLoRA, PreconditionedSGD, …
        What ``rule.step(W, G, state)`` does to an adapter W. λ, and G, are as there.
    rng : None, int or numpy.random.Generator
        Source of the random factor that a momentum starts with.

    Returns
    -------
    optax.GradientTransformation
        Its parameters are :class:`lorsum.LowRank` leaves, all of them; ``optax.multi_transform`` with
        :func:`labels` gives it those of a model. Its updates are the differences of the factors, so that
        ``optax.apply_updates`` gives the rule's new factors, to rounding.

    Raises
    ------
    TypeError
        In ``init`` or ``update``, if a parameter is no LowRank.
    ValueError
        In ``update``, without ``params``, or if gradients and parameters do not fit.

    Notes
    -----
    Adapters of one shape are stacked and take their step as one batch. A gradient is a pair (Sᵀ, Xᵀ) or a matrix, as
    :func:`lorsum.jax.value_and_grad` gives it.

    Of what acts on each array for itself, nothing may come before this in a chain: it would act on S and X. Use
    :func:`clip_by_global_norm` to clip; or matrices, ``gradient="dense"``, on which all that is linear acts rightly.
    Under ``jit`` values cannot be checked: a gradient that is not finite makes the parameters so, which
    :func:`apply_if_finite` prevents.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> W = LowRank(jnp.zeros((4, 1)), jnp.ones((3, 1)))
    >>> rule = optim.PreconditionedSGD(lr=0.5, reg=0.0)
    >>> tx = transformation(rule)
    >>> updates, state = tx.update(jnp.ones((4, 3)), tx.init(W), W)
    >>> W = optax.apply_updates(W, updates)
    >>> W.to_dense()[0].tolist()
    [-0.5, -0.5, -0.5]
    """
    seed = int(np.random.default_rng(rng).integers(2**52))

    def init(params):
        adapters, structure = _adapters(params)
        states = [
            _counted_in_jax(rule.init(W, rng=np.random.default_rng([seed, number])))
            for number, W in enumerate(adapters)
        ]
        return jax.tree.unflatten(structure, states)

    def update(gradients, state, params=None):
        if params is None:
            raise ValueError(
                "`params` is None: the step of an adapter depends on it, pass `update(grads, state, params)`."
            )
        adapters, structure = _adapters(params)
        gradients, found = jax.tree.flatten(gradients, is_leaf=is_low_rank)
        if found != structure:
            raise ValueError(f"the gradients have the structure {found} and `params` {structure}: they must be equal.")
        stepped = _stepped(rule, adapters, gradients, _states(structure, state))
        updates = [LowRank(new.U - old.U, new.V - old.V) for old, (new, _) in zip(adapters, stepped, strict=True)]
        return jax.tree.unflatten(structure, updates), jax.tree.unflatten(structure, [state for _, state in stepped])

    return optax.GradientTransformation(init, update)


def oplora(
    lr,
    *,
    momentum=0.0,
    momentum_rank=None,
    iters=1,
    reg=1e-3,
    start="U",
    simultaneous=False,
    method="auto",
    rng=0,
):
    """OPLoRA: each adapter takes the step W − ηG − ηαM, rounded to its rank by LoRSum (algorithm 1 of the paper).

    Parameters
    ----------
    lr : float or callable
        Learning rate η, or a schedule: a function of the step.
    momentum, momentum_rank, iters, reg, start, simultaneous, method
        As for :class:`lorsum.optim.OPLoRA`. With data or factors that are sharded keep to ``method="direct"``, of which
        all that is communicated is thin.
    rng
        As for :func:`transformation`.

    Returns
    -------
    optax.GradientTransformation
        See :func:`transformation`. With ``optax.inject_hyperparams``, list ``"iters"``, ``"momentum_rank"`` and
        ``"rng"`` in its ``static_args``: they decide what a step computes.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from lorsum.jax import lora, value_and_grad
    >>> target = jnp.outer(jnp.arange(4.0), jnp.arange(3.0))
    >>> def loss(W):
    ...     return ((lora(jnp.eye(3), W) - target.T) ** 2).sum()
    >>> tx = oplora(lr=0.5, iters=2)
    >>> W = LowRank(jnp.zeros((4, 1)), jnp.ones((3, 1)))
    >>> state = tx.init(W)
    >>> for _ in range(5):
    ...     value, G = value_and_grad(loss)(W)
    ...     updates, state = tx.update(G, state, W)
    ...     W = optax.apply_updates(W, updates)
    >>> bool(value < 1e-3)
    True
    """
    _check_static(momentum_rank=momentum_rank, iters=iters, rng=rng)
    rule = optim.OPLoRA(
        lr=lr,
        momentum=momentum,
        momentum_rank=momentum_rank,
        iters=iters,
        reg=reg,
        start=start,
        simultaneous=simultaneous,
        method=method,
    )
    return transformation(rule, rng=rng)


def projected_oplora(lr, *, momentum=0.0, iters=1, reg=1e-3, start="U", simultaneous=False, method="auto", rng=0):
    """OPLoRA with LoFT's momentum, projected at each step on what the adapter's factors can express.

    Parameters
    ----------
    lr, momentum, iters, reg, start, simultaneous, method, rng
        As for :func:`oplora` and :class:`lorsum.optim.ProjectedOPLoRA`.

    Returns
    -------
    optax.GradientTransformation
    """
    _check_static(iters=iters, rng=rng)
    options = {"iters": iters, "reg": reg, "start": start, "simultaneous": simultaneous, "method": method}
    return transformation(optim.ProjectedOPLoRA(lr=lr, momentum=momentum, **options), rng=rng)


def scaled_oplora(
    lr,
    *,
    scale,
    momentum=0.0,
    momentum_rank=None,
    iters=1,
    reg=1e-3,
    start="U",
    simultaneous=False,
    method="auto",
    rng=0,
):
    """OPLoRA in a metric that is estimated from the gradients (appendix B of the paper).

    Parameters
    ----------
    lr, momentum, momentum_rank, iters, reg, start, simultaneous, method, rng
        As for :func:`oplora`.
    scale : KFAC, Shampoo or DiagonalScale
        Of :mod:`lorsum.optim`. K-FAC needs gradients that are pairs, ``value_and_grad(…, gradient="pairs")``.

    Returns
    -------
    optax.GradientTransformation
    """
    _check_static(momentum_rank=momentum_rank, iters=iters, rng=rng)
    options = {"iters": iters, "reg": reg, "start": start, "simultaneous": simultaneous, "method": method}
    rule = optim.ScaledOPLoRA(lr=lr, scale=scale, momentum=momentum, momentum_rank=momentum_rank, **options)
    return transformation(rule, rng=rng)


def preconditioned_sgd(lr, *, momentum=0.0, weight_decay=0.0, reg=1e-3):
    """Gradient descent on the factors with preconditioned gradients: ScaledGD, Riemannian LoRA.

    Parameters
    ----------
    lr, momentum, weight_decay, reg
        As for :class:`lorsum.optim.PreconditionedSGD`.

    Returns
    -------
    optax.GradientTransformation
        See :func:`transformation`.
    """
    return transformation(optim.PreconditionedSGD(lr=lr, momentum=momentum, weight_decay=weight_decay, reg=reg))


def preconditioned_adamw(lr, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, reg=1e-3):
    """AdamW fed with the preconditioned gradients of the factors.

    Parameters
    ----------
    lr, betas, eps, weight_decay, reg
        As for :class:`lorsum.optim.PreconditionedAdamW`.

    Returns
    -------
    optax.GradientTransformation
        See :func:`transformation`.
    """
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "reg": reg}
    return transformation(optim.PreconditionedAdamW(lr=lr, **options))


def svdlora(lr, *, momentum=0.0):
    """The step that OPLoRA approximates: the truncated SVD of the full step, with a full-rank momentum.

    Parameters
    ----------
    lr, momentum
        As for :class:`lorsum.optim.SVDLoRA`.

    Returns
    -------
    optax.GradientTransformation
        See :func:`transformation`. With momentum its state has a matrix of each layer's size.
    """
    return transformation(optim.SVDLoRA(lr=lr, momentum=momentum))


def clip_by_global_norm(max_norm):
    """Scale all gradients by one number so that the root of the sum of their squared Frobenius norms is at most this.

    Like ``optax.clip_by_global_norm``, for gradients of which some are low-rank pairs: their norm is that of the matrix
    SᵀX, not of S and X, and one of the two is scaled.

    Parameters
    ----------
    max_norm : float

    Returns
    -------
    optax.GradientTransformation

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> G = LowRank(jnp.array([[3.0], [4.0]]), jnp.array([[2.0]]))
    >>> clipped, _ = clip_by_global_norm(1.0).update({"W": G, "b": jnp.zeros(2)}, optax.EmptyState())
    >>> float(clipped["W"].norm())
    1.0
    """

    def update(gradients, state, params=None):
        leaves = jax.tree.leaves(gradients, is_leaf=is_low_rank)
        norm = jnp.sqrt(sum(map(_squared_norm, leaves)))
        c = jnp.where(norm > max_norm, max_norm / norm, 1.0)
        return jax.tree.map(lambda G: _times(c, G), gradients, is_leaf=is_low_rank), state

    return optax.GradientTransformation(optax.init_empty_state, update)


class ApplyIfFiniteState(NamedTuple):
    """State of the inner transformation, and how many gradients in a row, and in all, were left out."""

    inner_state: Any
    notfinite_count: Any
    total_notfinite: Any


def apply_if_finite(inner):
    """Leave out steps of which the gradients have a NaN or an infinity: nothing moves, the state included.

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
    >>> import jax.numpy as jnp
    >>> W, G = LowRank(jnp.ones((4, 1)), jnp.ones((3, 1))), jnp.full((4, 3), jnp.nan)
    >>> tx = apply_if_finite(preconditioned_sgd(0.1))
    >>> updates, state = jax.jit(tx.update)(G, tx.init(W), W)
    >>> updates.U.ravel().tolist(), int(state.notfinite_count)
    ([0.0, 0.0, 0.0, 0.0], 1)
    """

    def init(params):
        return ApplyIfFiniteState(inner.init(params), jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32))

    def update(gradients, state, params=None):
        finite = jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(gradients)]).all()
        # Steps of what is not finite may raise without jit
        tame = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), gradients)
        updates, inner_state = inner.update(tame, state.inner_state, params)
        updates = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), updates)
        inner_state = jax.tree.map(partial(jnp.where, finite), inner_state, state.inner_state)
        counts = jnp.where(finite, 0, state.notfinite_count + 1), state.total_notfinite + (1 - finite.astype(jnp.int32))
        return updates, ApplyIfFiniteState(inner_state, *counts)

    return optax.GradientTransformation(init, update)


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
    >>> params = {"W": LowRank(jnp.ones((4, 1)), jnp.ones((3, 1))), "b": jnp.ones(4)}
    >>> labels(params)(params)
    {'W': 'adapters', 'b': 'others'}
    """
    labelled = jax.tree.map(lambda leaf: "adapters" if is_low_rank(leaf) else "others", params, is_leaf=is_low_rank)
    return lambda _: labelled


def _adapters(params):
    """The adapters, and the structure of which they are the leaves."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_low_rank)
    for path, leaf in leaves:
        if not is_low_rank(leaf):
            raise TypeError(
                f"`params{jax.tree_util.keystr(path)}` is a {type(leaf).__name__}, which this does not train; a "
                "LowRank is needed. Part them by optax.multi_transform and lorsum.jax.labels(params)."
            )
    return [leaf for _, leaf in leaves], structure


def _states(structure, state):
    """The state of each adapter."""
    try:
        return structure.flatten_up_to(state)
    except ValueError as error:
        raise ValueError(
            f"`state` is not that of these adapters ({error}). With optax.multi_transform, labels "
            "must be those of the parameters for gradients too, where a matrix is no adapter: pass labels(params)."
        ) from None


def _counted_in_jax(state):
    """The state with its step as an array, as it will be after a step under jit: else that would compile anew."""
    return state._replace(count=jnp.asarray(state.count, jnp.int32))


def _stepped(rule, adapters, gradients, states):
    """The new adapter and state of each, those of one shape as one batch."""
    together: dict = {}
    for number, problem in enumerate(zip(adapters, gradients, states, strict=True)):
        leaves, structure = jax.tree.flatten(problem)
        together.setdefault((structure, *((x.shape, x.dtype) for x in leaves)), []).append(number)
    stepped: dict = {}
    for numbers in together.values():
        if len(numbers) == 1:
            (number,) = numbers
            stepped[number] = rule.step(adapters[number], gradients[number], states[number])
            continue
        W, G, state = (_stack([of[i] for i in numbers]) for of in (adapters, gradients, states))
        W, state = rule.step(W, G, state._replace(count=states[numbers[0]].count))
        state = state._replace(count=jnp.broadcast_to(state.count, len(numbers)))
        stepped |= {number: jax.tree.map(lambda x, i=i: x[i], (W, state)) for i, number in enumerate(numbers)}
    return [stepped[number] for number in range(len(adapters))]


def _stack(trees):
    return jax.tree.map(lambda *parts: jnp.stack(parts), *trees)


def _check_static(**options):
    """An error for what optax.inject_hyperparams has made an array of."""
    for name, value in options.items():
        if isinstance(value, jax.Array):
            raise TypeError(
                f"`{name}` is a JAX array, but it decides what a step computes: with optax.inject_hyperparams list it "
                "in `static_args`."
            )


def _squared_norm(G):
    if is_low_rank(G):  # ‖SᵀX‖² = ⟨SSᵀ, XXᵀ⟩
        return jnp.maximum(jnp.sum((G.U.mT @ G.U) * (G.V.mT @ G.V)), 0)
    return jnp.sum(jnp.abs(G) ** 2)


def _times(c, G):
    return Pair._of(G.U * c.astype(G.dtype), G.V) if is_low_rank(G) else G * c.astype(G.dtype)

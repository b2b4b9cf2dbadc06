"""The update rules of :mod:`lorsum.optim` as gradient transformations of Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lorsum import optim
from lorsum.jax._pytrees import checked_gradient, is_low_rank
from lorsum.jax._serialization import register_with_flax
from lorsum.lowrank import LowRank

__all__ = [
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
        :func:`lorsum.jax.labels` gives it those of a model. Its updates are the differences of the factors, so that
        ``optax.apply_updates`` gives the rule's new factors, to rounding.

    Raises
    ------
    TypeError
        In ``init`` or ``update``, if a parameter is no LowRank; in ``update``, if a gradient is a LowRank that is no
        Pair, as ``jax.grad`` gives the gradients of the factors.
    ValueError
        In ``update``, without ``params``, or if gradients and parameters do not fit.

    Notes
    -----
    Adapters of one shape are stacked and take their step as one batch. A gradient is a pair (Sᵀ, Xᵀ) or a matrix, as
    :func:`lorsum.jax.value_and_grad` gives it.

    What acts on each array for itself, such as Optax's own clipping, is an error before or around this, as it would act
    on S and X: a :class:`lorsum.jax.Pair` has a leaf that is no number, and JAX says that an operation "does not accept
    dtype key<fry>". In place of ``optax.clip_by_global_norm``, ``optax.MultiSteps``, ``optax.apply_if_finite``,
    ``optax.set_to_zero`` and ``optax.global_norm`` take those of :mod:`lorsum.jax`: ``clip_by_global_norm``,
    ``multi_steps``, ``apply_if_finite``, ``set_to_zero`` and ``global_norm``. On matrices, ``gradient="dense"``, what
    needs neither state nor parameters acts on the matrix, such as ``optax.scale`` and ``optax.clip_by_global_norm``.
    Under ``jit`` values cannot be checked: a gradient that is not finite makes the parameters so, which
    :func:`lorsum.jax.apply_if_finite` prevents.

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
    register_with_flax()  # it may have been imported since
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
        gradients = [checked_gradient(path, G) for path, G in _places(params, gradients)]
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
    first="U",
    simultaneous=False,
    method="auto",
    weight_decay=0.0,
    maximize=False,
    rng=0,
):
    """OPLoRA: each adapter takes the step W − ηG − ηαM, rounded to its rank by LoRSum (algorithm 1 of the paper).

    Parameters
    ----------
    lr : float or callable
        Learning rate η, or a schedule: a function of the step.
    momentum, momentum_rank, iters, reg, first, simultaneous, method, weight_decay, maximize
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
        first=first,
        simultaneous=simultaneous,
        method=method,
        weight_decay=weight_decay,
        maximize=maximize,
    )
    return transformation(rule, rng=rng)


def projected_oplora(
    lr,
    *,
    momentum=0.0,
    iters=1,
    reg=1e-3,
    first="U",
    simultaneous=False,
    method="auto",
    weight_decay=0.0,
    maximize=False,
    rng=0,
):
    """OPLoRA with LoFT's momentum, projected at each step on what the adapter's factors can express.

    Parameters
    ----------
    lr, momentum, iters, reg, first, simultaneous, method, weight_decay, maximize, rng
        As for :func:`oplora` and :class:`lorsum.optim.ProjectedOPLoRA`.

    Returns
    -------
    optax.GradientTransformation
    """
    _check_static(iters=iters, rng=rng)
    options = {"iters": iters, "reg": reg, "first": first, "simultaneous": simultaneous, "method": method}
    options |= {"momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
    return transformation(optim.ProjectedOPLoRA(lr=lr, **options), rng=rng)


def scaled_oplora(
    lr,
    *,
    scale,
    momentum=0.0,
    momentum_rank=None,
    iters=1,
    reg=1e-3,
    first="U",
    simultaneous=False,
    method="auto",
    weight_decay=0.0,
    maximize=False,
    rng=0,
):
    """OPLoRA in a metric that is estimated from the gradients (appendix B of the paper).

    Parameters
    ----------
    lr, momentum, momentum_rank, iters, reg, first, simultaneous, method, weight_decay, maximize, rng
        As for :func:`oplora`.
    scale : KFAC, Shampoo or DiagonalScale
        Of :mod:`lorsum.optim`. K-FAC needs gradients that are pairs, ``value_and_grad(…, gradient="pairs")``.

    Returns
    -------
    optax.GradientTransformation
    """
    _check_static(momentum_rank=momentum_rank, iters=iters, rng=rng)
    options = {"iters": iters, "reg": reg, "first": first, "simultaneous": simultaneous, "method": method}
    options |= {"momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
    rule = optim.ScaledOPLoRA(lr=lr, scale=scale, momentum_rank=momentum_rank, **options)
    return transformation(rule, rng=rng)


def preconditioned_sgd(lr, *, momentum=0.0, weight_decay=0.0, maximize=False, reg=1e-3):
    """Gradient descent on the factors with preconditioned gradients: ScaledGD, Riemannian LoRA.

    Parameters
    ----------
    lr, momentum, weight_decay, maximize, reg
        As for :class:`lorsum.optim.PreconditionedSGD`.

    Returns
    -------
    optax.GradientTransformation
        See :func:`transformation`.
    """
    options = {"momentum": momentum, "weight_decay": weight_decay, "maximize": maximize, "reg": reg}
    return transformation(optim.PreconditionedSGD(lr=lr, **options))


def preconditioned_adamw(lr, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, maximize=False, reg=1e-3):
    """AdamW fed with the preconditioned gradients of the factors.

    Parameters
    ----------
    lr, betas, eps, weight_decay, maximize, reg
        As for :class:`lorsum.optim.PreconditionedAdamW`.

    Returns
    -------
    optax.GradientTransformation
        See :func:`transformation`.
    """
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize, "reg": reg}
    return transformation(optim.PreconditionedAdamW(lr=lr, **options))


def svdlora(lr, *, momentum=0.0, weight_decay=0.0, maximize=False):
    """The step that OPLoRA approximates: the truncated SVD of the full step, with a full-rank momentum.

    Parameters
    ----------
    lr, momentum, weight_decay, maximize
        As for :class:`lorsum.optim.SVDLoRA`.

    Returns
    -------
    optax.GradientTransformation
        See :func:`transformation`. With momentum its state has a matrix of each layer's size.
    """
    return transformation(optim.SVDLoRA(lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize))


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


def _places(params, gradients):
    """Each adapter's gradient and the name of its place."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_low_rank)]
    return zip(paths, gradients, strict=True)


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
        W, state = rule.step(W, G, state._replace(count=states[numbers[0]].count))  # all have done as many steps
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

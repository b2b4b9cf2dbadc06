"""The update rules of :mod:`lorsum.optim` as gradient transformations of Optax."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypedDict, TypeVar, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lorsum import optim
from lorsum.jax._pytrees import PyTree, flat_gradients, is_low_rank
from lorsum.jax._serialization import register_with_flax
from lorsum.lowrank import LowRank
from lorsum.optim.rule import Schedule, require_adapter_of_that_form, require_state
from lorsum.optim.scaled import Scale
from lorsum.typing import RNG, Factor, Scalar

F = TypeVar("F", bound=Callable[..., Any])


class SVDLoRAOptions(TypedDict, total=False):
    """Options of :class:`lorsum.optim.SVDLoRA` beside ``lr``; the rule has their defaults."""

    momentum: Scalar
    weight_decay: Scalar
    maximize: bool


class PreconditionedSGDOptions(SVDLoRAOptions, total=False):
    """Options of :class:`lorsum.optim.PreconditionedSGD`."""

    reg: Scalar


class PreconditionedAdamWOptions(TypedDict, total=False):
    """Options of :class:`lorsum.optim.PreconditionedAdamW`."""

    betas: tuple[float, float]
    eps: Scalar
    weight_decay: Scalar
    maximize: bool
    reg: Scalar


class OPLoRAOptions(PreconditionedSGDOptions, total=False):
    """Options of :class:`lorsum.optim.OPLoRA` and of the rules derived from it."""

    momentum_rank: int | None
    iters: int
    first: Factor
    simultaneous: bool
    method: Literal["auto", "direct", "coefficients"]


def transformation(rule: optim.Rule, *, rng: RNG = 0) -> optax.GradientTransformation:
    """A rule of :mod:`lorsum.optim` as a gradient transformation over adapters.

    Parameters
    ----------
    rule : Rule
        One of :mod:`lorsum.optim`, or your own: ``rule.step(W, G, state)`` is what happens to an adapter W.
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
        Pair, as ``jax.grad`` gives the gradients of the factors, or a matrix where the rule reads rows of S and X.
    ValueError
        In ``update``, without ``params``, or if gradients and parameters do not fit.

    Notes
    -----
    Adapters of one shape are stacked and take their step as one batch. A gradient is a pair (Sᵀ, Xᵀ) or a matrix, as
    :func:`lorsum.jax.value_and_grad` gives it.

    What acts on each array for itself, such as Optax's own clipping, is an error before or around this, as it would act
    on S and X: see :class:`lorsum.jax.Pair`. Take ``clip_by_global_norm``, ``multi_steps``, ``apply_if_finite``,
    ``set_to_zero`` and ``global_norm`` of :mod:`lorsum.jax`. On matrices, ``gradient="dense"``, what needs neither
    state nor parameters acts on the matrix, such as ``optax.scale`` and ``optax.clip_by_global_norm``.

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

    def init(params: PyTree) -> PyTree:
        adapters, structure = _adapters(params)
        states = [rule.init(W, rng=np.random.default_rng([seed, number])) for number, W in enumerate(adapters)]
        return jax.tree.unflatten(structure, list(map(_counted_in_jax, states)))

    def update(gradients: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise ValueError(
                "`params` is None: the step of an adapter depends on it, pass `update(grads, state, params)`."
            )
        adapters, structure = _adapters(params)
        named = flat_gradients(gradients, structure)
        for W, (name, G) in zip(adapters, named, strict=True):
            _check_form(rule, W, G, name)
        stepped = _stepped(rule, adapters, [G for _, G in named], _states(structure, state))
        for W, (new, _) in zip(adapters, stepped, strict=True):
            require_adapter_of_that_form(rule, new, W)
        updates = [LowRank(new.U - old.U, new.V - old.V) for old, (new, _) in zip(adapters, stepped, strict=True)]
        return jax.tree.unflatten(structure, updates), jax.tree.unflatten(structure, [state for _, state in stepped])

    return optax.GradientTransformation(init, update)


def _with_options_of(rule: Callable[..., optim.Rule]) -> Callable[[F], F]:
    """Show a rule's options and their defaults in the signature of a function that passes ``**options`` on to it."""

    def shown(function: F) -> F:
        own, options = inspect.signature(function), inspect.signature(rule).parameters
        named = {name: p for name, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        signature = own.replace(parameters=list({**options, **named}.values()))

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            return function(*args, **kwargs)

        called.__signature__ = signature  # type: ignore[attr-defined]
        return cast(F, called)

    return shown


@_with_options_of(optim.OPLoRA)
def oplora(lr: Scalar | Schedule, *, rng: RNG = 0, **options: Unpack[OPLoRAOptions]) -> optax.GradientTransformation:
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
    return _of_rule(optim.OPLoRA, rng, lr=lr, **options)


@_with_options_of(optim.ProjectedOPLoRA)
def projected_oplora(
    lr: Scalar | Schedule, *, rng: RNG = 0, **options: Unpack[OPLoRAOptions]
) -> optax.GradientTransformation:
    """OPLoRA with LoFT's momentum, projected at each step on what the adapter's factors can express.

    ``lr, momentum, iters, reg, first, simultaneous, method, weight_decay, maximize`` and ``rng`` are as for
    :func:`oplora`. M has rank 2r, so ``momentum_rank`` must stay None.
    """
    return _of_rule(optim.ProjectedOPLoRA, rng, lr=lr, **options)


@_with_options_of(optim.ScaledOPLoRA)
def scaled_oplora(
    lr: Scalar | Schedule, *, scale: Scale, rng: RNG = 0, **options: Unpack[OPLoRAOptions]
) -> optax.GradientTransformation:
    """OPLoRA in a metric that is estimated from the gradients (appendix B of the paper).

    Parameters
    ----------
    lr, momentum, momentum_rank, iters, reg, first, simultaneous, method, weight_decay, maximize, rng
        As for :func:`oplora`.
    scale : KFAC, Shampoo or DiagonalScale
        Of :mod:`lorsum.optim`. K-FAC needs gradients that are pairs, ``value_and_grad(…, gradient="pairs")``.
    """
    return _of_rule(optim.ScaledOPLoRA, rng, lr=lr, scale=scale, **options)


@_with_options_of(optim.PreconditionedSGD)
def preconditioned_sgd(
    lr: Scalar | Schedule, **options: Unpack[PreconditionedSGDOptions]
) -> optax.GradientTransformation:
    """Gradient descent on the factors with preconditioned gradients: ScaledGD, Riemannian LoRA.

    ``lr, momentum, weight_decay, maximize`` and ``reg`` are as for :class:`lorsum.optim.PreconditionedSGD`.
    """
    return _of_rule(optim.PreconditionedSGD, lr=lr, **options)


@_with_options_of(optim.PreconditionedAdamW)
def preconditioned_adamw(
    lr: Scalar | Schedule, **options: Unpack[PreconditionedAdamWOptions]
) -> optax.GradientTransformation:
    """AdamW fed with the preconditioned gradients of the factors.

    ``lr, betas, eps, weight_decay, maximize`` and ``reg`` are as for :class:`lorsum.optim.PreconditionedAdamW`.
    """
    return _of_rule(optim.PreconditionedAdamW, lr=lr, **options)


@_with_options_of(optim.SVDLoRA)
def svdlora(lr: Scalar | Schedule, **options: Unpack[SVDLoRAOptions]) -> optax.GradientTransformation:
    """The step that OPLoRA approximates: the truncated SVD of the full step, with a full-rank momentum.

    ``lr, momentum, weight_decay`` and ``maximize`` are as for :class:`lorsum.optim.SVDLoRA`. With momentum the state
    has a matrix of each layer's size.
    """
    return _of_rule(optim.SVDLoRA, lr=lr, **options)


def _of_rule(rule: Callable[..., optim.Rule], rng: RNG = 0, **options: Any) -> optax.GradientTransformation:
    """The transformation by a rule of this kind; an error for what optax.inject_hyperparams has made an array of."""
    for name in ("momentum_rank", "iters", "rng"):
        if isinstance((options | {"rng": rng}).get(name), jax.Array):
            raise TypeError(
                f"`{name}` is a JAX array, but it decides what a step computes: with optax.inject_hyperparams list it "
                "in `static_args`."
            )
    return transformation(rule(**options), rng=rng)


def _check_form(rule: optim.Rule, W: LowRank, G: Any, name: str) -> None:
    """An error for a matrix where a rule reads the rows of S and X."""
    if not is_low_rank(G) and optim.reads(rule, W.rank).what == "rows":
        raise TypeError(
            f"the gradient of `{name}` is a matrix, but {type(rule).__name__} with these options reads the rows of S "
            'and X: take lorsum.jax.value_and_grad(…, gradient="pairs"), and no multi_steps, whose mean is a matrix.'
        )


def _adapters(params: PyTree) -> tuple[list[LowRank], Any]:
    """The adapters, and the structure of which they are the leaves."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_low_rank)
    for path, leaf in leaves:
        if not is_low_rank(leaf):
            raise TypeError(
                f"`params{jax.tree_util.keystr(path)}` is a {type(leaf).__name__}, which this does not train; a "
                "LowRank is needed. Part them by optax.multi_transform and lorsum.jax.labels(params)."
            )
    return [leaf for _, leaf in leaves], structure


def _states(structure: Any, state: PyTree) -> list[Any]:
    """The state of each adapter."""
    try:
        return structure.flatten_up_to(state)
    except ValueError as error:
        raise ValueError(
            f"`state` is not that of these adapters ({error}). With optax.multi_transform, labels "
            "must be those of the parameters for gradients too, where a matrix is no adapter: pass labels(params)."
        ) from None


def _counted_in_jax(state: Any) -> Any:
    """The state with its step as an array, as it will be after a step under jit: else that would compile anew."""
    require_state(state)
    return state._replace(count=jnp.asarray(state.count, jnp.int32))


def _stepped(
    rule: optim.Rule, adapters: list[LowRank], gradients: list[Any], states: list[Any]
) -> list[tuple[LowRank, Any]]:
    """The new adapter and state of each, those of one shape as one batch."""
    together: dict[Any, list[int]] = {}
    for number, problem in enumerate(zip(adapters, gradients, states, strict=True)):
        leaves, structure = jax.tree.flatten(problem)
        together.setdefault((structure, *((x.shape, x.dtype) for x in leaves)), []).append(number)
    stepped: dict[int, tuple[LowRank, Any]] = {}
    for numbers in together.values():
        if len(numbers) == 1:
            (number,) = numbers
            stepped[number] = rule.step(adapters[number], gradients[number], states[number])
            continue
        W, G, state = (
            jax.tree.map(lambda *parts: jnp.stack(parts), *(of[i] for i in numbers))
            for of in (adapters, gradients, states)
        )
        W, state = rule.step(W, G, state._replace(count=states[numbers[0]].count))  # all have done as many steps
        state = state._replace(count=jnp.broadcast_to(state.count, len(numbers)))
        stepped |= {number: jax.tree.map(lambda x, i=i: x[i], (W, state)) for i, number in enumerate(numbers)}
    return [stepped[number] for number in range(len(adapters))]

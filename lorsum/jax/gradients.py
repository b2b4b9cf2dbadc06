"""Gradients of a loss, those of adapters as low-rank pairs (Sᵀ, Xᵀ)."""

import jax
import jax.numpy as jnp

from lorsum.jax._plan import Factor, planned
from lorsum.jax._pytrees import Pair, is_low_rank
from lorsum.jax._run import dense, dense_slot, pair, pair_slot, run, sum_dtype
from lorsum.jax._serialization import register_with_flax

__all__ = ["grad", "value_and_grad"]

_FORMS = ("auto", "pairs", "dense")
_FROM_VMAP = " It may come of a vmap: of a branch chosen for each example, or over another axis than the first."


def value_and_grad(loss, has_aux=False, *, gradient="auto"):
    """A function that computes a loss and its gradient, that of an adapter W with respect to the matrix W.

    Like :func:`jax.value_and_grad`, but in place of a :class:`lorsum.LowRank` of the parameters the gradient has the
    pair ``LowRank(Sᵀ, Xᵀ)``, G = SᵀX, where S are the gradients with respect to the outputs of all products with
    W, and X their inputs, a row each; or G itself where that is smaller.

    Parameters
    ----------
    loss : callable
        ``loss(params, *args, **kwargs)`` gives a number, or with ``has_aux`` a pair of it and anything else, which
        comes back as it is. It takes an adapter's products by :func:`lorsum.jax.lora` or :func:`lorsum.jax.lora_conv`,
        with W or W.T and any number of times, under ``jit``, ``vmap``, ``scan``, ``cond`` and ``checkpoint`` as it
        likes.
    has_aux : bool
    gradient : {"auto", "pairs", "dense"}
        The form of an adapter's gradient: N rows of S and X, which are N (m + n) numbers; their sum SᵀX, m n numbers;
        "auto" what is smaller. The rows of all calls, and of all rounds of a loop, count. Where their number is only a
        name, as in ``jax.export`` with symbolic shapes, that is the sum.

    Returns
    -------
    callable
        Of the same arguments; gives the value, and the gradient with respect to ``params``, which has the same
        structure but for the adapters.

    Raises
    ------
    TypeError
        If a parameter is neither a LowRank nor an array of floating-point numbers.
    ValueError
        If the loss takes no product with an adapter, or depends on its factors in another way too.
    NotImplementedError
        If a product is taken inside an operation that is not supported: a ``while_loop``, a function with a derivative
        of its own, ``shard_map``; or if this is itself called where arrays have manual or explicit axes.

    Notes
    -----
    The loss is traced once to find its products, and then run and differentiated with a slot beside each: a further
    input that changes nothing, and of which the derivative is S or SᵀX. No derivative with respect to U and V is taken.

    A pair is a :class:`lorsum.jax.Pair`. It is no gradient of the factors, and its arrays cannot be added, averaged
    (``pmean``), measured (``optax.global_norm``) or scaled on their own: with S and X scaled by c, G is scaled by c².
    What tries to meets a third leaf beside them, for which JAX knows no arithmetic, and raises a TypeError. Take the
    mean over micro-batches by :func:`lorsum.jax.multi_steps`, or inside of the loss by a ``scan``; over devices by
    sharding the batch; or ask for "dense".
    See also :func:`lorsum.jax.global_norm` and :func:`lorsum.jax.clip_by_global_norm`.

    The loss may have derivatives with respect to other things in it, as gradient penalties and differential equations
    have: along x alone ``jax.grad``, ``jax.jvp`` and their like of ``lora(x, W)`` are products again. Not so the
    transpose of ``lora_conv``, and what goes through ``cond``, which are refused.

    A branch that ``vmap`` chooses for each example becomes a choice among the factors, which is refused; ``jnp.where``
    on the products is not.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from lorsum import LowRank
    >>> from lorsum.jax import lora
    >>> W = LowRank(jnp.zeros((40, 2)), jnp.ones((30, 2)))
    >>> x, y = jnp.ones((5, 30)), jnp.ones((5, 40))
    >>> def loss(params):
    ...     return ((lora(x, params["W"]) - y) ** 2).sum()
    >>> value, G = jax.jit(value_and_grad(loss))({"W": W})
    >>> G["W"]
    Pair(40 × 30, rank 5, float32)
    """
    if gradient not in _FORMS:
        raise ValueError(f"`gradient` is {gradient!r}; it must be one of {', '.join(map(repr, _FORMS))}.")

    register_with_flax()  # it may have been imported since

    def value_and_gradient(params, *args, **kwargs):
        parts, aux = _Parts(params), _Aux()

        def of_parts(adapters, others):
            result = _checked_result(loss(parts.whole(adapters | others), *args, **kwargs), has_aux)
            return (result[0], aux.arrays_of(result[1])) if has_aux else (result, [])

        program = jax.make_jaxpr(of_parts)(parts.adapters, parts.others)
        plan = planned(program, parts.origins)
        parts.check(plan)
        summed = parts.summed(plan, gradient)

        def with_slots(others, stacks, slots):
            beside = [stacks.get(number) if side == "U" else None for number in parts.adapters for side in "UV"]
            inputs, beside = jax.tree.leaves((parts.adapters, others)), beside + [None] * len(others)
            (value, *arrays), _, Xs = run(plan, inputs, beside, slots, summed)
            return value, (arrays, Xs)

        differentiated = jax.value_and_grad(with_slots, argnums=(0, 1, 2), has_aux=True)
        slots = parts.stacks(plan), parts.slots(plan, summed)
        (value, (arrays, Xs)), (gradients, stacks, sums) = differentiated(parts.others, *slots)
        gradients = parts.whole(gradients | _collected(plan, stacks, sums, Xs))
        return ((value, aux.whole(arrays)) if has_aux else value), gradients

    return value_and_gradient


def grad(loss, has_aux=False, *, gradient="auto"):
    """The same without the value: a function that gives the gradient, or a pair of it and ``aux``.

    Parameters
    ----------
    loss, has_aux, gradient
        As for :func:`value_and_grad`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lorsum import LowRank
    >>> from lorsum.jax import lora
    >>> W = LowRank(jnp.ones((4, 1)), jnp.ones((3, 1)))
    >>> grad(lambda W: lora(jnp.ones(3), W).sum())(W)
    Pair(4 × 3, rank 1, float32)
    """
    value_and_gradient = value_and_grad(loss, has_aux, gradient=gradient)

    def gradient_of(params, *args, **kwargs):
        value, gradients = value_and_gradient(params, *args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return gradient_of


class _Aux:
    """What a loss gives beside its value: the arrays in it that the program computes, and all else as it is."""

    def arrays_of(self, aux):
        """Its traced leaves; what is no array, such as a name or a function, no program can give."""
        self.leaves, self.structure = jax.tree.flatten(aux)
        self.traced = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, jax.core.Tracer)]
        return [self.leaves[i] for i in self.traced]

    def whole(self, arrays):
        """It again, with the arrays of a run."""
        leaves = list(self.leaves)
        for i, array in zip(self.traced, arrays, strict=True):
            leaves[i] = array
        return jax.tree.unflatten(self.structure, leaves)


class _Parts:
    """Parameters, taken apart: adapters and other arrays, by number."""

    def __init__(self, params):
        leaves, self.structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_low_rank)
        self.names = [f"params{jax.tree_util.keystr(path)}" for path, _ in leaves]
        self.adapters, self.others = {}, {}
        for number, (_, leaf) in enumerate(leaves):
            if is_low_rank(leaf):
                self.adapters[number] = leaf
            else:
                self.others[number] = _checked(self.names[number], leaf)

    def whole(self, parts):
        """Parts by number as parameters again."""
        return jax.tree.unflatten(self.structure, [parts[number] for number in range(len(self.names))])

    @property
    def origins(self):
        """What the inputs of a program of adapters and others are."""
        stacks = {number: tuple(range(len(W.shape) - 2)) for number, W in self.adapters.items()}
        factors = [Factor(number, side, axes) for number, axes in stacks.items() for side in "UV"]
        return factors + [None] * len(self.others)

    def check(self, plan):
        """An error unless the loss depends on every adapter, and through its products only."""
        taint, found = plan.results[0], {x.adapter for x in plan.products}
        if taint is not None:
            operation = getattr(taint, "operation", "nothing")
            if getattr(taint, "by_products", False):
                raise NotImplementedError(
                    f"`loss` has a product with `{self.names[taint.adapter]}` inside of `{operation}`, where its "
                    "gradient cannot be had as a pair. Loops of fixed length (scan), branches, jit, vmap and "
                    "checkpoint are supported; elsewhere what is under stop_gradient."
                )
            raise ValueError(
                f"`loss` depends on the factors of `{self.names[taint.adapter]}` through `{operation}`, where only "
                "products by lorsum.jax.lora and lora_conv have a gradient that is a pair. Use these, or stop_gradient."
                + (_FROM_VMAP if operation in ("broadcast_in_dim", "transpose", "select_n") else "")
            )
        if any(map(_has_axes, plan.products)):
            raise NotImplementedError(
                "value_and_grad is called where arrays have manual or explicit axes, which its slots have not: call it "
                "under jit with sharded arrays, or in shard_map with `check_vma=False`."
            )
        for number in self.adapters:
            if number not in found:
                raise ValueError(
                    f"`loss` takes no product with `{self.names[number]}` by lorsum.jax.lora or lora_conv: it has no "
                    "gradient. Pass it as a further argument of the loss where it is not trained."
                )

    def summed(self, plan, form):
        """The adapters of which the gradient is kept as SᵀX."""
        selected = frozenset(x.adapter for x in plan.products if x.selected)
        if selected and form == "pairs":
            raise NotImplementedError(
                f"`gradient` is 'pairs', but `loss` takes `{self.names[min(selected)]}` out of a stack by an index or "
                "a slice, where the gradient of the stack is had as a sum only. Take 'auto' or 'dense'."
            )
        if form != "auto":
            return frozenset(self.adapters if form == "dense" else ())
        rows = dict.fromkeys(self.adapters, 0)
        for x in plan.products:
            rows[x.adapter] += x.rows
        sizes = {number: W.shape[-2:] for number, W in self.adapters.items()}
        return selected | {number for number, size in sizes.items() if not _pairs_are_smaller(rows[number], *size)}

    def stacks(self, plan):
        """A slot for each stack that adapters are selected out of."""
        stacks: dict = {}
        for x in plan.products:
            if x.selected:
                W, dtype = self.adapters[x.adapter], sum_dtype(x)
                known = stacks.get(x.adapter, jnp.zeros((), dtype))
                stacks[x.adapter] = jnp.zeros(W.shape, jnp.promote_types(dtype, known.dtype))
        return stacks

    def slots(self, plan, summed):
        """A slot for each product, None for one with an adapter that was selected out of a stack."""

        def slot(x):
            if x.selected:
                return None
            return dense_slot(x, *self.adapters[x.adapter].shape[-2:]) if x.adapter in summed else pair_slot(x)

        return list(map(slot, plan.products))


def _pairs_are_smaller(rows, m, n):
    """True if N rows of S and X are no more numbers than their sum; False for an N that is only a name."""
    try:
        return rows * (m + n) <= m * n
    except jax.errors.InconclusiveDimensionOperation:
        return False


def _has_axes(product):
    """True where the type of arrays says on which devices their parts are, which that of a slot would not."""
    plain = jax.typeof(jnp.zeros(product.y.shape, product.y.dtype))
    return str(plain) != str(product.y.strip_weak_type())  # float32[3] is not float32[3@data], nor float32[3]{V:data}


def _checked_result(result, has_aux):
    """What a loss gives, where it is what it should be."""
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"`loss` gives a {type(result).__name__}; with `has_aux` a pair (value, aux) is needed.")
    value = result[0] if has_aux else result
    if not hasattr(value, "shape") and not isinstance(value, (int, float, complex)):
        raise TypeError(f"`loss` gives a {type(value).__name__}; a number is needed.")
    return result


def _checked(name, leaf):
    """An array of floating-point numbers."""
    numeric = isinstance(leaf, float) or hasattr(leaf, "dtype")
    if not (numeric and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)):
        raise TypeError(
            f"`{name}` is a {type(leaf).__name__}; a LowRank or an array of floating-point numbers is needed. Pass "
            "other things as further arguments of the loss (see lorsum.jax.partition)."
        )
    return leaf


def _collected(plan, stacks, sums, Xs):
    """The gradients of the adapters, by number."""
    products: dict = {number: [G] for number, G in stacks.items()}
    for product, S, X in zip(plan.products, sums, Xs, strict=True):
        if product.selected:
            continue
        products.setdefault(product.adapter, []).append(dense(product, S) if X is None else pair(product, S, X))
    return {number: _whole(parts) for number, parts in products.items()}


def _whole(parts):
    """One gradient out of those of several products: pairs under each other, sums added up."""
    if not isinstance(parts[0], tuple):
        return sum(parts[1:], parts[0])
    S, X = (jnp.concatenate(rows, axis=-2) if len(rows) > 1 else rows[0] for rows in zip(*parts, strict=True))
    dtype = jnp.result_type(S, X)
    return Pair._of(S.mT.astype(dtype), X.mT.astype(dtype))

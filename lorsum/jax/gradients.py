"""Gradients of a loss, those of adapters W = U Vᵀ as low-rank pairs (Sᵀ, Xᵀ): how they come about, and where.

::

    loss, in which a layer calls lora(x, W)                                    layers.py, products.py
      │  jax.make_jaxpr
    jaxpr: an equation y = lora x U V for each product
      │  find_products: follow U and V from the inputs to these                _tracing.py
    products, each with its adapter and the loops around it
      │  replayed: run the jaxpr again, each product with a probe beside it    _probes.py, _replay.py
    the loss, and X of each product
      │  jax.value_and_grad, with respect to the probes
    S of each product: the derivative of the loss with respect to y
      │  collected: rows of all products with W, and of all rounds of loops    _probes.py
    Pair (Sᵀ, Xᵀ) in place of W: the gradient G = SᵀX
      │  rule.step(W, G, state)                                                transformations.py, lorsum.optim
    updates, the differences of U and V, for optax.apply_updates

No derivative with respect to U and V is taken. Where G = SᵀX is fewer numbers than S and X, the probe is one of W's
size, the derivative with respect to it is that sum, and the gradient a matrix.
"""

from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp

from lorsum.jax._probes import collected, probes, sum_probes
from lorsum.jax._pytrees import PyTree, is_low_rank
from lorsum.jax._replay import replayed
from lorsum.jax._serialization import register_with_flax
from lorsum.jax._tracing import OtherUse, Product, TracedFactor, TracedProgram, find_products
from lorsum.lowrank import LowRank
from lorsum.typing import Array

Form: TypeAlias = Literal["auto", "pairs", "dense"]
"""Of an adapter's gradient: what is smaller, a pair, or a matrix."""

_FROM_VMAP = " It may come of a vmap: of a branch chosen for each example, or over another axis than the first."


def value_and_grad(
    loss: Callable[..., Any], has_aux: bool = False, *, gradient: Form = "auto"
) -> Callable[..., tuple[Any, PyTree]]:
    """A function that computes a loss and its gradient, that of an adapter W with respect to the matrix W.

    Like :func:`jax.value_and_grad`, but in place of a :class:`lorsum.LowRank` of the parameters the gradient has a
    :class:`lorsum.jax.Pair` (Sᵀ, Xᵀ), G = SᵀX, where S are the gradients with respect to the outputs of all products
    with W, and X their inputs, a row each; or G itself where that is smaller.

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
    A pair's arrays cannot be added, averaged (``pmean``), measured or scaled on their own. Take the mean over
    micro-batches by :func:`lorsum.jax.multi_steps`, or inside of the loss by a ``scan``; over devices by sharding the
    batch; or ask for "dense".

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
    if gradient not in get_args(Form):
        raise ValueError(f"`gradient` is {gradient!r}; it must be one of {', '.join(map(repr, get_args(Form)))}.")
    register_with_flax()  # it may have been imported since

    def value_and_gradient(params: PyTree, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        parts, static = _Parts(params), None

        def of_parts(adapters: dict[int, LowRank], others: dict[int, Any]) -> tuple[Any, PyTree]:
            nonlocal static  # what no program can give, such as a name or a function
            value, aux = _checked_result(loss(parts.whole(adapters | others), *args, **kwargs), has_aux)
            arrays, static = eqx.partition(aux, lambda leaf: isinstance(leaf, jax.core.Tracer))
            return value, arrays

        jaxpr, (_, results) = jax.make_jaxpr(of_parts, return_shape=True)(parts.adapters, parts.others)
        program = find_products(jaxpr, parts.origins)
        parts.check(program)
        summed = parts.summed(program, gradient)

        def with_probes(others: PyTree, of_sums: dict[int, Array], of_products: list[Any]) -> tuple[Any, Any]:
            inputs = jax.tree.leaves((parts.adapters, others))
            beside = [of_sums.get(number) if side == "U" else None for number in parts.adapters for side in "UV"]
            beside += [None] * len(others)
            (value, *arrays), _, Xs = replayed(program, inputs, beside, of_products)
            return value, (arrays, Xs)

        zeros = sum_probes(program, parts.adapters, summed), probes(program, summed)
        differentiated = jax.value_and_grad(with_probes, argnums=(0, 1, 2), has_aux=True)
        (value, (arrays, Xs)), (of_others, sums, of_products) = differentiated(parts.others, *zeros)
        gradients = parts.whole(of_others | sums | collected(program, of_products, Xs))
        aux = eqx.combine(jax.tree.unflatten(jax.tree.structure(results), arrays), static)
        return ((value, aux) if has_aux else value), gradients

    return value_and_gradient


def grad(loss: Callable[..., Any], has_aux: bool = False, *, gradient: Form = "auto") -> Callable[..., PyTree]:
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

    def gradient_of(params: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        value, gradients = value_and_gradient(params, *args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return gradient_of


class _Parts:
    """Parameters, taken apart: adapters and other arrays, by number."""

    def __init__(self, params: PyTree) -> None:
        leaves, self.structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_low_rank)
        self.names = [f"params{jax.tree_util.keystr(path)}" for path, _ in leaves]
        self.adapters: dict[int, LowRank] = {}
        self.others: dict[int, Any] = {}
        for number, (_, leaf) in enumerate(leaves):
            if is_low_rank(leaf):
                self.adapters[number] = leaf
            elif isinstance(leaf, float) or (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)):
                self.others[number] = leaf
            else:
                raise TypeError(
                    f"`{self.names[number]}` is a {type(leaf).__name__}; a LowRank or an array of floating-point "
                    "numbers is needed. Pass other things as further arguments of the loss (see lorsum.jax.partition)."
                )

    def whole(self, parts: dict[int, Any]) -> PyTree:
        """Parts by number as parameters again."""
        return jax.tree.unflatten(self.structure, [parts[number] for number in range(len(self.names))])

    @property
    def origins(self) -> list[TracedFactor | None]:
        """Which of the inputs of a program of adapters and others are factors."""
        stacks = {number: tuple(range(len(W.shape) - 2)) for number, W in self.adapters.items()}
        factors = [TracedFactor(number, side, axes) for number, axes in stacks.items() for side in ("U", "V")]
        return [*factors, *[None] * len(self.others)]

    def check(self, program: TracedProgram) -> None:
        """An error unless the loss depends on every adapter, and through its products only."""
        used = program.results[0]
        if isinstance(used, OtherUse) and used.of_products:
            raise NotImplementedError(
                f"`loss` has a product with `{self.names[used.adapter]}` inside of `{used.operation}`, where its "
                "gradient cannot be had as a pair. Loops of fixed length (scan), branches, jit, vmap and checkpoint "
                "are supported; elsewhere what is under stop_gradient."
            )
        if used is not None:
            operation = used.operation if isinstance(used, OtherUse) else "nothing"
            raise ValueError(
                f"`loss` depends on the factors of `{self.names[used.adapter]}` through `{operation}`, where only "
                "products by lorsum.jax.lora and lora_conv have a gradient that is a pair. Use these, or stop_gradient."
                + (_FROM_VMAP if operation in ("broadcast_in_dim", "transpose", "select_n") else "")
            )
        if any(map(_has_axes, program.products)):
            raise NotImplementedError(
                "value_and_grad is called where arrays have manual or explicit axes, which its probes have not: call "
                "it under jit with sharded arrays, or in shard_map with `check_vma=False`."
            )
        without = self.adapters.keys() - {x.adapter for x in program.products}
        if without:
            raise ValueError(
                f"`loss` takes no product with `{self.names[min(without)]}` by lorsum.jax.lora or lora_conv: it has no "
                "gradient. Pass it as a further argument of the loss where it is not trained."
            )

    def summed(self, program: TracedProgram, form: Form) -> Collection[int]:
        """The adapters of which the gradient is kept as SᵀX."""
        selected = frozenset(x.adapter for x in program.products if x.factor.selections)
        if selected and form == "pairs":
            raise NotImplementedError(
                f"`gradient` is 'pairs', but `loss` takes `{self.names[min(selected)]}` out of a stack by an index or "
                "a slice, where the gradient of the stack is had as a sum only. Take 'auto' or 'dense'."
            )
        if form != "auto":
            return frozenset(self.adapters if form == "dense" else ())
        rows = dict.fromkeys(self.adapters, 0)
        for x in program.products:
            rows[x.adapter] += x.rows
        sizes = {number: W.shape[-2:] for number, W in self.adapters.items()}
        return selected | {number for number, size in sizes.items() if not _pairs_are_smaller(rows[number], *size)}


def _pairs_are_smaller(rows: Any, m: int, n: int) -> bool:
    """True if N rows of S and X are no more numbers than their sum; False for an N that is only a name."""
    try:
        return rows * (m + n) <= m * n
    except jax.errors.InconclusiveDimensionOperation:
        return False


def _has_axes(product: Product) -> bool:
    """True where the type of arrays says on which devices their parts are, which that of a probe would not."""
    plain = jax.typeof(jnp.zeros(product.y.shape, product.y.dtype))
    return str(plain) != str(product.y.strip_weak_type())  # float32[3] is not float32[3@data], nor float32[3]{V:data}


def _checked_result(result: Any, has_aux: bool) -> tuple[Any, Any]:
    """The value that a loss gives, and what else; an error where they are not what they should be."""
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"`loss` gives a {type(result).__name__}; with `has_aux` a pair (value, aux) is needed.")
    value, aux = result if has_aux else (result, None)
    if not hasattr(value, "shape") and not isinstance(value, (int, float, complex)):
        raise TypeError(f"`loss` gives a {type(value).__name__}; a number is needed.")
    return value, aux

"""What goes around the transformations: norms, clipping, steps left out or of several gradients, freezing, labels.

Optax has its own of these for gradients that are arrays, of the shapes of the parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lorsum._arrays import computing_dtype
from lorsum.jax._pytrees import PyTree, flat_gradients, is_low_rank
from lorsum.typing import Array


def global_norm(gradients: PyTree) -> Array:
    """The root of the sum of all gradients' squared Frobenius norms, that of a pair being the norm of the matrix SᵀX.

    What ``optax.global_norm`` is for arrays. The norm of a pair comes from QR factors, which lose nothing where SᵀX is
    small by cancellation, or from SᵀX itself where that is smaller.

    Parameters
    ----------
    gradients : pytree
        Arrays, :class:`lorsum.jax.Pair` and other low-rank matrices.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lorsum.jax import Pair
    >>> float(global_norm({"W": Pair(jnp.array([[2.0], [0.0]]), jnp.array([[2.0]])), "b": jnp.array([3.0])}))
    5.0
    """

    def norm(G: Any) -> Array:
        G = G.astype(computing_dtype(jnp, G.dtype))
        if is_low_rank(G):
            G = G.to_dense() if G.rank > min(G.shape[-2:]) else G.norm()
        return jnp.linalg.norm(jnp.ravel(G))

    norms = list(map(norm, jax.tree.leaves(gradients, is_leaf=is_low_rank)))
    return jnp.linalg.norm(jnp.stack(norms)) if norms else jnp.zeros(())


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale all gradients by one number so that their :func:`global_norm` is at most ``max_norm``.

    Like ``optax.clip_by_global_norm``, for gradients of which some are low-rank pairs: one of S and X is scaled.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lorsum.jax import Pair
    >>> G = Pair(jnp.array([[3.0], [4.0]]), jnp.array([[2.0]]))
    >>> clipped, _ = clip_by_global_norm(1.0).update({"W": G, "b": jnp.zeros(2)}, optax.EmptyState())
    >>> float(clipped["W"].norm())
    1.0
    """

    def update(gradients: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        norm = global_norm(gradients)
        c = jnp.where(norm > max_norm, max_norm / norm, 1.0)

        def scaled(G: Any) -> Any:
            return type(G)._of(G.U * c.astype(G.dtype), G.V) if is_low_rank(G) else G * c.astype(G.dtype)

        return jax.tree.map(scaled, gradients, is_leaf=is_low_rank), state

    return optax.GradientTransformation(optax.init_empty_state, update)


class ApplyIfFiniteState(NamedTuple):
    """State of the inner transformation, and how many gradients in a row, and in all, were left out."""

    inner_state: Any
    notfinite_count: Any
    total_notfinite: Any


def apply_if_finite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Leave out steps with a NaN or an infinity, in the gradients or in what follows from them: nothing moves then.

    What ``optax.apply_if_finite`` is for updates that have the structure of the gradients, which here they have not. It
    goes around a whole chain, or around ``optax.multi_transform``.

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
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(inner.init(params), jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32))

    def update(
        gradients: PyTree, state: ApplyIfFiniteState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, ApplyIfFiniteState]:
        finite = _all_finite(gradients)
        tame = _or_zero(finite, gradients)  # without jit, a step of what is not finite raises
        updates, inner_state = inner.update(tame, state.inner_state, params, **extra_args)
        finite &= _all_finite((updates, inner_state))
        updates = _or_zero(finite, updates)
        inner_state = jax.tree.map(partial(jnp.where, finite), inner_state, state.inner_state)
        counts = jnp.where(finite, 0, state.notfinite_count + 1), state.total_notfinite + (1 - finite.astype(jnp.int32))
        return updates, ApplyIfFiniteState(inner_state, *counts)

    return optax.GradientTransformationExtraArgs(init, update)


class MultiStepsState(NamedTuple):
    """Gradients since the last step, steps so far, the state of the inner transformation, and the mean gradient."""

    mini_step: Any
    gradient_step: Any
    inner_state: Any
    mean: Any


def multi_steps(
    inner: optax.GradientTransformation, every_k: int | Callable[[Array], Array | int]
) -> optax.GradientTransformation:
    """Accumulate gradients: one step with the mean gradient of k calls, and updates of zero at the calls between.

    What ``optax.MultiSteps`` is for gradients that are arrays, of the shapes of the parameters. With a loss that is a
    mean, k micro-batches of one size give the step of all of them together.

    Parameters
    ----------
    inner : optax.GradientTransformation
        One of this package, of Optax, or a chain or ``optax.multi_transform`` of both.
    every_k : int or callable
        k, or a function of the number of steps so far that gives it.

    Returns
    -------
    optax.GradientTransformation
        Of its state, ``mini_step`` is zero after each step of ``inner``.

    Raises
    ------
    TypeError
        In ``update``, if a gradient is a LowRank that is no Pair, as ``jax.grad`` gives the gradients of the factors.
    ValueError
        If k is no positive integer; in ``update``, if gradients and parameters do not fit.

    Notes
    -----
    The mean gradient of an adapter is kept as a matrix, at least in single precision: m n numbers of memory, as much as
    the frozen weight beside it, whatever k and the batches are. So each pair is multiplied out, and rules that read the
    rows of S and X, as with K-FAC, cannot be inside. Where the pairs of all k micro-batches, k N (m + n) numbers, are
    fewer, let the loss go over micro-batches by a ``scan``: :func:`lorsum.jax.value_and_grad` then gives one pair for
    all.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lorsum import LowRank
    >>> from lorsum.jax import Pair, preconditioned_sgd
    >>> W = LowRank(jnp.zeros((4, 1)), jnp.ones((3, 1)))
    >>> tx = multi_steps(preconditioned_sgd(0.5, reg=0.0), 2)
    >>> state = tx.init(W)
    >>> for c in (1.0, 3.0):
    ...     updates, state = tx.update(Pair(c * jnp.ones((4, 1)), jnp.ones((3, 1))), state, W)
    ...     print(updates.U.ravel().tolist())
    [0.0, 0.0, 0.0, 0.0]
    [-1.0, -1.0, -1.0, -1.0]
    """
    inner = optax.with_extra_args_support(inner)
    k_at = every_k if callable(every_k) else lambda _: every_k
    if not callable(every_k):
        _checked_count(every_k)

    def init(params: PyTree) -> MultiStepsState:
        mean = jax.tree.map(_zero_gradient, params, is_leaf=is_low_rank)
        return MultiStepsState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), inner.init(params), mean)

    def update(
        gradients: PyTree, state: MultiStepsState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, MultiStepsState]:
        k = _checked_count(k_at(state.gradient_step))
        mean = _mean_with(gradients, state.mean, state.mini_step + 1)

        def in_its_dtype(mean: Array, G: Any) -> Array:  # not for an adapter: there the step is what is rounded last
            return mean if is_low_rank(G) else mean.astype(jnp.result_type(G))

        def stepped() -> Any:
            gradient = jax.tree.map(in_its_dtype, mean, gradients, is_leaf=is_low_rank)
            updates, inner_state = inner.update(gradient, state.inner_state, params, **extra_args)
            inner_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), inner_state, state.inner_state)
            return updates, (state.gradient_step + 1, inner_state, jax.tree.map(jnp.zeros_like, mean))

        def waiting() -> Any:
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(stepped)[0])
            return zeros, (state.gradient_step, state.inner_state, mean)

        is_last = state.mini_step + 1 >= k
        if isinstance(is_last, jax.core.Tracer):
            updates, after = jax.lax.cond(is_last, stepped, waiting)
        else:  # without ``jit``, what is not needed is not run
            updates, after = stepped() if is_last else waiting()
        return updates, MultiStepsState(jnp.where(is_last, 0, state.mini_step + 1), *after)

    return optax.GradientTransformationExtraArgs(init, update)


def set_to_zero() -> optax.GradientTransformation:
    """Updates of zero, for adapters that ``optax.multi_transform`` is to freeze.

    What ``optax.set_to_zero`` is for updates that have the structure of the gradients. Gradients are computed all the
    same: what is never trained is better passed to the loss as a further argument.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from lorsum import LowRank
    >>> W = LowRank(jnp.ones((4, 1)), jnp.ones((3, 1)))
    >>> set_to_zero().update(jnp.ones((4, 3)), optax.EmptyState(), W)[0].to_dense().max().item()
    0.0
    """

    def update(gradients: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("`params` is None, of which the updates are to have the structure.")
        return jax.tree.map(jnp.zeros_like, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def labels(params: PyTree) -> Callable[[PyTree], PyTree]:
    """A function that gives ``params`` with "adapters" in place of each LowRank, and "others" of each other array.

    For ``optax.multi_transform``. A function, since Optax would call a model of Equinox; and of these parameters,
    whatever it is asked about, since Optax asks about gradients as well, where a matrix is no adapter.

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


def _checked_count(k: Any) -> Any:
    """A positive number; under ``jit``, one that is computed cannot be checked."""
    if isinstance(k, jax.core.Tracer):
        return k
    try:
        positive = k >= 1 and k % 1 == 0
    except (TypeError, ValueError):
        positive = False
    if not positive:
        raise ValueError(f"`every_k` is {k!r}; a positive integer, or a function that gives one, is needed.")
    return k


def _zero_gradient(leaf: Any) -> Array:
    """Zero, in the dtype that gradients of a parameter are added up in: a matrix for an adapter."""
    dtype = computing_dtype(jnp, leaf.dtype if is_low_rank(leaf) else jnp.result_type(leaf))
    return jnp.zeros(leaf.shape, dtype) if is_low_rank(leaf) else jnp.zeros_like(leaf, dtype)


def _mean_with(gradients: PyTree, mean: PyTree, count: Array) -> PyTree:
    """The mean of so many gradients, of which these are the last, from that of the others."""
    means, structure = jax.tree.flatten(mean)

    def added(name: str, G: Any, mean: Array) -> Array:
        if jnp.shape(G) != mean.shape:
            raise ValueError(f"the gradient of `{name}` has shape {jnp.shape(G)}; {mean.shape} is needed.")
        G = G.astype(mean.dtype).to_dense() if is_low_rank(G) else jnp.asarray(G, mean.dtype)
        return mean + (G - mean) / count

    named = flat_gradients(gradients, structure)
    return jax.tree.unflatten(structure, [added(*G, mean) for G, mean in zip(named, means, strict=True)])


def _all_finite(tree: PyTree) -> Array:
    return jnp.array([jnp.isfinite(x).all() for x in filter(_is_numeric, jax.tree.leaves(tree))]).all()


def _or_zero(kept: Array, tree: PyTree) -> PyTree:
    """The same where it is to be kept, else zero."""
    return jax.tree.map(lambda x: jnp.where(kept, x, jnp.zeros_like(x)) if _is_numeric(x) else x, tree)


def _is_numeric(x: Array) -> bool:
    """False for a random key, such as each pair has one beside its numbers."""
    return not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)

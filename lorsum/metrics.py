"""Metrics for LoRSum: norms ‖M_U^½ (·) M_V^½‖ in which a matrix is approximated (appendix B of the paper)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lorsum._arrays import all_true, is_finite, is_traced, namespace_of, scale_of
from lorsum._checks import as_array, as_coefficient, common_namespace, is_scalar
from lorsum._decompositions import cholesky, eigh, qr, solve
from lorsum._operators import is_operator
from lorsum.lowrank import LowRank, LowRankSum
from lorsum.typing import Array

__all__ = ["Damped", "Diagonal", "Root", "root_of", "whitened"]


class Damped(NamedTuple):
    """The positive definite matrix (A + δI)^γ, with A = U Vᵀ symmetric, positive semidefinite and of low rank.

    Attributes
    ----------
    A : LowRank, shape (..., d, d)
        Its symmetric part is meant, and what is negative of it is taken as zero.
    damping : float
        δ > 0.
    power : float
        γ; 1 for K-FAC, 1/4 for Shampoo.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.ones((4, 1))
    >>> Damped(LowRank(X, X), 0.5)
    Damped(A=LowRank(4 × 4, rank 1, float64), damping=0.5, power=1.0)
    """

    A: LowRank
    damping: float
    power: float = 1.0


class Diagonal(NamedTuple):
    """The diagonal matrices with these positive entries, shape (..., d); a vector alone means the same."""

    entries: Array


class Root(NamedTuple):
    """A factor L of a metric M = L Lᵀ, as three functions of a thin matrix X."""

    LT: Callable[[Array], Array]  # X ↦ Lᵀ X
    inverse: Callable[[Array], Array]  # X ↦ L⁻¹ X
    inverse_T: Callable[[Array], Array]  # X ↦ L⁻ᵀ X


def whitened(W: LowRankSum, X0: LowRank, metric: Any) -> tuple[LowRankSum, LowRank, Callable[[LowRank], LowRank]]:
    """The problem of weighted LoRSum as an unweighted one.

    In X' = L_Uᵀ X L_V, with M = L Lᵀ, the weighted norm is Frobenius', also that of the proximal term. The target's
    first term and the start are matrices, L_Uᵀ U and L_Vᵀ V; its other terms are gradients, which M_U⁻¹ and M_V⁻¹ turn
    into matrices: L_U⁻¹ Uᵢ and L_V⁻¹ Vᵢ. The third result leads back from the solution.
    """
    try:
        M_U, M_V = metric
    except (TypeError, ValueError):
        raise TypeError(f"`metric` is a {type(metric).__name__}; a pair (M_U, M_V) is needed.") from None
    if any(map(is_operator, W.terms)):
        raise ValueError("`metric` needs a `target` of low-rank terms and arrays, but one is an operator.")
    left = root_of(M_U, W.shape[-2], X0.U, "metric[0]")
    right = root_of(M_V, W.shape[-1], X0.V, "metric[1]")

    def carried(A: Any, on_the_left: Callable[[Array], Array], on_the_right: Callable[[Array], Array]) -> Any:
        if isinstance(A, LowRank):
            return LowRank._of(on_the_left(A.U), on_the_right(A.V))
        return on_the_left(on_the_right(A.mT).mT)

    first, *gradients = W.terms
    first, start = (carried(A, left.LT, right.LT) for A in (first, X0))
    gradients = [carried(G, left.inverse, right.inverse) for G in gradients]
    W = LowRankSum._of((first, *gradients), W.coefficients)
    return W, start, lambda X: carried(X, left.inverse_T, right.inverse_T)


def root_of(M: Any, size: int, like: Array, name: str = "M") -> Root:
    """A root of a metric of that size d, in the dtype of ``like``; an error if M is no positive definite d × d matrix.

    None is the identity; a vector of length d, or :class:`Diagonal` of shape (..., d), a diagonal; an array of shape
    (..., d, d) a symmetric positive definite matrix, of which Cholesky's factor is the root. The root of a
    :class:`Damped` low-rank matrix costs O(d r²), nothing d × d being formed.
    """
    if M is None:
        return Root(_same, _same, _same)
    if isinstance(M, Damped):
        return _damped_root(M, size, like, name)
    if isinstance(M, Diagonal):
        return _diagonal_root(M.entries, size, like, name)
    M = as_array(M, name, ndim=1)
    if M.ndim == 1:
        return _diagonal_root(M, size, like, name)
    _, M = _checked(M, (size, size), like, name)
    if not is_traced(M) and not all_true(lambda M: abs(M - M.mT) <= 1e-5 * scale_of(M), M):
        raise ValueError(f"`{name}` is not symmetric.")
    try:
        L = cholesky(M)
    except Exception as error:
        raise ValueError(f"`{name}` is not positive definite ({error}); add some damping.") from error
    return Root(lambda X: L.mT @ X, lambda X: solve(L, X), lambda X: solve(L.mT, X))


def _diagonal_root(d: Array, size: int, like: Array, name: str) -> Root:
    """The entries' square roots."""
    real, (xp, d) = d, _checked(d, (size,), like, name)
    if not is_traced(real) and not all_true(lambda d: d > 0, real):
        raise ValueError(f"`{name}` is a diagonal with an entry that is not positive; add some damping.")
    root = xp.sqrt(d)[..., None]
    return Root(lambda X: root * X, lambda X: X / root, lambda X: X / root)


def _checked(M: Array, shape: tuple[int, ...], like: Array, name: str) -> tuple[Any, Array]:
    """The library, and M in the dtype of ``like``."""
    xp = common_namespace(**{name: M, "target": like})
    if tuple(M.shape[-len(shape) :]) != shape:
        raise ValueError(f"`{name}` has shape {tuple(M.shape)}; {shape} is needed, and leading dimensions for a batch.")
    if not is_finite(M):
        raise ValueError(f"`{name}` has a NaN or an infinity.")
    if xp.isdtype(M.dtype, "complex floating"):
        raise ValueError(f"`{name}` is complex; a real metric is needed.")
    return xp, xp.astype(M, like.dtype)


def _damped_root(M: Damped, size: int, like: Array, name: str) -> Root:
    """The symmetric root Q ((s + δ)^γ/2 − δ^γ/2) Qᵀ + δ^γ/2 I, from A = Q diag(s) Qᵀ."""
    A, damping, power = M
    if A.shape[-2:] != (size, size):
        raise ValueError(f"`{name}` has shape {A.shape}; ({size}, {size}) is needed.")
    for x in (damping, power):
        if not is_scalar(x):
            raise ValueError(f"`{name}` has damping {damping} and power {power}; numbers are needed.")
    damping, power = as_coefficient(damping, like, f"{name}.damping"), as_coefficient(power, like, f"{name}.power")
    if not is_traced(damping) and not 0 < float(damping) < float("inf"):
        raise ValueError(f"`{name}` has damping {damping}; a positive number is needed.")
    xp = namespace_of(A.U, like)
    if xp.isdtype(A.dtype, "complex floating"):
        raise ValueError(f"`{name}` is complex; a real metric is needed.")
    A = A.astype(like.dtype)
    Q = qr(xp.concat([A.U, A.V], axis=-1))[0]
    core = Q.mT @ (A @ Q)
    s, Z = eigh((core + core.mT) / 2)
    Q, s = Q @ Z, xp.where(s > 0, s, xp.zeros_like(s))
    d, lifted = damping ** (power / 2), (s + damping) ** (power / 2)
    up, down = (lifted - d)[..., None], (1 / lifted - 1 / d)[..., None]

    def root(X: Array) -> Array:
        return d * X + Q @ (up * (Q.mT @ X))

    def inverse(X: Array) -> Array:
        return X / d + Q @ (down * (Q.mT @ X))

    return Root(root, inverse, inverse)


def _same(X: Array) -> Array:
    return X

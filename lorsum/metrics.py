"""Floor 2: metrics for LoRSum: norms ‖M_U^½ (·) M_V^½‖ in which a matrix is approximated (appendix B of the paper)."""

from typing import Any, NamedTuple

from lorsum._arrays import as_array, is_finite, is_scalar, is_traced, namespace_of
from lorsum.lowrank import LowRank, LowRankSum

__all__ = ["Damped", "Root", "root_of", "whitened"]


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


class Root(NamedTuple):
    """A factor L of a metric M = L Lᵀ, as three functions of a thin matrix X."""

    LT: Any  # X ↦ Lᵀ X
    inverse: Any  # X ↦ L⁻¹ X
    inverse_T: Any  # X ↦ L⁻ᵀ X


def whitened(W, X0, metric):
    """The problem of weighted LoRSum as an unweighted one.

    In X' = L_Uᵀ X L_V, with M = L Lᵀ, the weighted norm is Frobenius', also that of the proximal term. The target's
    first term and the start are matrices, L_Uᵀ U and L_Vᵀ V; its other terms are gradients, which M_U⁻¹ and M_V⁻¹ turn
    into matrices: L_U⁻¹ Uᵢ and L_V⁻¹ Vᵢ.

    Parameters
    ----------
    W : LowRankSum
        The target; its terms must be low-rank.
    X0 : LowRank
        The start.
    metric : pair
        (M_U, M_V); see :func:`root_of` for their forms.

    Returns
    -------
    W, X0 : LowRankSum, LowRank
        The whitened problem.
    back : callable
        Leads from its solution to that of the weighted problem.

    Raises
    ------
    ValueError
        If a metric does not fit or is not positive definite, or a term of W is not low-rank.
    """
    try:
        M_U, M_V = metric
    except (TypeError, ValueError):
        raise TypeError(f"`metric` is a {type(metric).__name__}; a pair (M_U, M_V) is needed.") from None
    if not W.is_factored:
        raise ValueError("`metric` needs a `target` of low-rank terms, but one is an array or an operator.")
    left = root_of(M_U, W.shape[-2], X0.U, "metric[0]")
    right = root_of(M_V, W.shape[-1], X0.V, "metric[1]")

    def as_matrix(A):
        return LowRank._of(left.LT(A.U), right.LT(A.V))

    first, *gradients = W.terms
    gradients = [LowRank._of(left.inverse(G.U), right.inverse(G.V)) for G in gradients]
    W = LowRankSum._of((as_matrix(first), *gradients), W.coefficients)
    return W, as_matrix(X0), lambda X: LowRank._of(left.inverse_T(X.U), right.inverse_T(X.V))


def root_of(M, size, like, name="M"):
    """A root of a metric, from which M and M⁻¹ can be applied to thin matrices.

    Parameters
    ----------
    M : None, array or Damped
        None is the identity; shape (..., d) a diagonal; (..., d, d) a symmetric positive definite matrix, of which
        Cholesky's factor is the root; a :class:`Damped` low-rank matrix costs O(d r²), nothing d × d being formed.
    size : int
        d.
    like : array
        Whose dtype the root takes.
    name : str
        For errors.

    Returns
    -------
    Root

    Raises
    ------
    ValueError
        If M has another size, or is not positive definite.
    """
    if M is None:
        return Root(_same, _same, _same)
    if isinstance(M, Damped):
        return _damped_root(M, size, like, name)
    M = as_array(M, name, ndim=1)
    xp = namespace_of(M, like)
    M = xp.astype(M, like.dtype)
    if M.shape[-1] != size or (M.ndim > 1 and M.shape[-2] not in (size, *like.shape[:-2])):
        raise ValueError(f"`{name}` has shape {tuple(M.shape)}; ({size},) or ({size}, {size}) is needed.")
    if not is_finite(M):
        raise ValueError(f"`{name}` has a NaN or an infinity.")
    if M.ndim == 1 or M.shape[-2] != size:
        if not is_traced(M) and not bool(xp.all(M > 0)):
            raise ValueError(f"`{name}` is a diagonal with an entry that is not positive; add some damping.")
        root = xp.sqrt(M)[..., None]
        return Root(lambda X: root * X, lambda X: X / root, lambda X: X / root)
    try:
        L = xp.linalg.cholesky(M)
    except Exception as error:
        raise ValueError(f"`{name}` is not positive definite ({error}); add some damping.") from error
    return Root(lambda X: L.mT @ X, lambda X: xp.linalg.solve(L, X), lambda X: xp.linalg.solve(L.mT, X))


def _damped_root(M, size, like, name):
    """The symmetric root Q ((s + δ)^γ/2 − δ^γ/2) Qᵀ + δ^γ/2 I, from A = Q diag(s) Qᵀ."""
    A, damping, power = M
    if A.shape[-2:] != (size, size):
        raise ValueError(f"`{name}` has shape {A.shape}; ({size}, {size}) is needed.")
    if not is_scalar(damping) or (not is_traced(damping) and not 0 < float(damping) < float("inf")):
        raise ValueError(f"`{name}` has damping {damping}; a positive number is needed.")
    xp = namespace_of(A.U, like)
    A = A.astype(like.dtype)
    Q = xp.linalg.qr(xp.concat([A.U, A.V], axis=-1), mode="reduced")[0]
    core = Q.mT @ (A @ Q)
    s, Z = xp.linalg.eigh((core + core.mT) / 2)
    Q, s = Q @ Z, xp.where(s > 0, s, xp.zeros_like(s))
    d, lifted = damping ** (power / 2), (s + damping) ** (power / 2)
    up, down = (lifted - d)[..., None], (1 / lifted - 1 / d)[..., None]

    def root(X):
        return d * X + Q @ (up * (Q.mT @ X))

    def inverse(X):
        return X / d + Q @ (down * (Q.mT @ X))

    return Root(root, inverse, inverse)


def _same(X):
    return X

"""What an iterate of LoRSum tells of its distance from the truncated SVD, without an SVD of the target."""

from typing import NamedTuple

import numpy as np

from lorsum._arrays import conj, eps, namespace_of
from lorsum._checks import as_rank, is_scalar
from lorsum._decompositions import qr, svd
from lorsum._linear import check_addable
from lorsum._sums import compressed, in_double, require_finite
from lorsum.lowrank import LowRank, LowRankSum, as_sum
from lorsum.typing import Array, Matrix

SQUARINGS = 8  # for the Schatten norm of order 1024 of an R × R matrix, R^(1/1024) of its spectral norm at most


class APosterioriBounds(NamedTuple):
    """What is certain of an approximation X of W and of W's singular value decomposition; Frobenius norms.

    Attributes
    ----------
    error : float
        ‖W − X‖, as measured.
    optimal : float
        A lower bound of ‖W − W_r‖; 0 where none is known.
    excess : float
        error / optimal − 1, an upper bound of the excess error; 0 where X is W to rounding.
    lower, upper : array, shape (r,)
        Bounds of the singular values σ₁ … σ_r of W.
    angle : float
        An upper bound, in radians, of the largest principal angle between U's columns and the dominant left singular
        subspace of dimension r; π/2 where none is known.
    """

    error: float
    optimal: float
    excess: float
    lower: Array
    upper: Array
    angle: float


def a_posteriori_bounds(approx: LowRank, target: Matrix, *, tail: float | None = None) -> APosterioriBounds:
    """Bounds of the excess error, the singular values and the angle, from one more product with the target each way.

    Parameters
    ----------
    approx : LowRank
        X = U Vᵀ of rank r, shape (m, n): an iterate of :func:`lorsum.lorsum` with any λ, or any other matrix.
    target : LowRankSum, LowRank or array
        The matrix W, same shape.
    tail : float, optional
        An upper bound of σ_{r+1}(W), where one is known. Default: the one that is computed.

    Returns
    -------
    APosterioriBounds
        All are bounds up to rounding, whatever X is. They are for the left side; pass both transposed for the right
        one.

    Raises
    ------
    ValueError
        If the shapes differ, are a batch or too small for r, ``tail`` is negative, or there is a NaN or an infinity.
    TypeError
        If an argument is of the wrong kind, or the two belong to different array libraries.

    See Also
    --------
    lorsum.gap : The distance itself, by an SVD.

    Notes
    -----
    That X is stationary certifies nothing: from v₁, v₂, v₄ the iteration does not move. What does is a separation
    between what X has captured and what it has left. Let P be the projector on U's columns, b_i, p_i and q_i the
    singular values and vectors of P W, ρ_i = W q_i − b_i p_i the residuals, and α ≥ ‖W − P W‖₂ ≥ σ_{r+1}. Then b_i ≤
    σ_i, and for any γ < b_r²::

        ‖W − W_r‖²  ≥  min(1, γ/α²) ‖W − P W‖² − Σ b_i² ‖ρ_i‖² / (b_i² − γ)

    Proof: in a basis of P's range and its complement, WWᵀ − γ has the blocks M − γ > 0, S and N − γ, where ‖S p_i‖ =
    b_i‖ρ_i‖. It is the sum of its Schur complement, at most N − γ, and of a positive matrix of rank r and trace tr(M −
    γ) + tr S(M − γ)⁻¹Sᵀ. So σ₁² + … + σ_r² − rγ is at most that trace plus tr(N − γ)₊ ≤ (1 − γ/α²)₊ tr N, and tr N = ‖W
    − P W‖². If σ_{r+1}² ≤ γ, the Schur complement has no positive eigenvalue, and min(1, γ/α²) may be replaced by 1:
    the bound is quadratic in the residuals then. The same matrices bound each σ_i from above, as does b_i² + α².

    If σ_{r+1}² ≤ γ, the angle has sin² θ ≤ Σ b_i² ‖ρ_i‖² / (b_i² − γ)²: the sin θ theorem [1]_ [2]_ for WWᵀ, by
    columns.

    The bound α is deterministic, from powers of the core of W − P W (R × R for stacked rank R, min(m, n) for dense
    terms), a percent above the norm. Of γ, the best of many is taken.

    References
    ----------
    .. [1] C. Davis, W. M. Kahan, The rotation of eigenvectors by a perturbation. III, SIAM J. Numer. Anal. 7(1), 1970.
    .. [2] P.-Å. Wedin, Perturbation bounds in connection with singular value decomposition, BIT 12, 1972.

    Examples
    --------
    >>> import numpy as np
    >>> from lorsum import LowRank, gap, lorsum
    >>> W = LowRank(np.eye(6, 5) * [5.0, 4.0, 3.0, 2.0, 1.0], np.eye(5))
    >>> stuck = LowRank(np.eye(6)[:, [0, 1, 3]], np.eye(5)[:, [0, 1, 3]])  # a stationary point without σ₃ = 3
    >>> bounds = a_posteriori_bounds(lorsum(W, init=stuck), W)
    >>> bounds.excess, gap(lorsum(W, init=stuck), W).excess
    (0.51, 0.41)
    >>> start = LowRank(np.ones((6, 3)), np.eye(5, 3) + 0.1)
    >>> a_posteriori_bounds(lorsum(W, init=start, iters=20), W).excess < 1e-6
    True
    """
    W, X = _checked(approx, target, tail)
    xp = namespace_of(X.U)
    Q = qr(X.U)[0]
    PW = LowRank._of(Q, W.T @ conj(Q))
    left, b, right = svd(PW.V.mT)
    residuals = W @ conj(right).mT - Q @ (left * xp.astype(b, left.dtype))
    rest = W - PW
    missed, moved = float(rest.norm()), float((as_sum(PW) - X).norm())
    b, rho = _numbers(b), _numbers(xp.linalg.vector_norm(residuals, axis=-2))

    size = float(np.hypot(missed, np.linalg.norm(b))) or 1.0  # ‖W‖, the unit of what follows
    rounding = 2 * max(W.shape) * eps(xp, X.dtype)
    alpha = _spectral_norm_bound(rest) / size + rounding
    known = alpha if tail is None else min(alpha, float(tail) / size + rounding)
    low, coupling = np.maximum(b / size - rounding, 0), b / size * (rho / size + rounding)
    error = float(np.hypot(missed, moved))
    optimal = size * max(0.0, _optimal(low, coupling, missed / size, alpha, known) - rounding)
    excess = 0.0 if error <= rounding * size else error / optimal - 1 if optimal else float("inf")
    above, angle = _rotation(low, coupling, known)
    upper = np.sqrt((b / size) ** 2 + np.minimum(alpha**2, above)) + rounding
    return APosterioriBounds(error, optimal, excess, size * low, size * upper, angle)


def _optimal(b: Array, coupling: Array, missed: float, alpha: float, known: float) -> float:
    """The largest lower bound of ‖W − W_r‖ over a choice of γ."""
    bounds = [0.0]
    if known < b[-1]:
        bounds.append(missed**2 - np.sum(coupling**2 / (b**2 - known**2)))
    if b[-1] > 0:
        gamma = min(alpha, b[-1]) ** 2 * (1 - np.geomspace(1, 1e-12, 200)[:, None])
        lost = np.sum(coupling**2 / (b**2 - gamma), axis=1)
        bounds.extend(gamma[:, 0] / alpha**2 * missed**2 - lost)
    return float(np.sqrt(max(bounds)))


def _rotation(b: Array, coupling: Array, known: float) -> tuple[Array, float]:
    """What σ_i² may exceed b_i² by, and the angle, where σ_{r+1} ≤ ``known`` < b_r; infinity and π/2 elsewhere."""
    if known >= b[-1]:
        return np.full_like(b, np.inf), np.pi / 2
    apart = b**2 - known**2
    sine2 = float(np.sum((coupling / apart) ** 2))
    return np.minimum(np.sum(coupling**2 / apart), sine2 * apart), float(np.arcsin(min(1.0, np.sqrt(sine2))))


def _spectral_norm_bound(A: LowRankSum) -> float:
    """An upper bound of ‖A‖₂: the Schatten norm of order 2^(SQUARINGS + 2), from a Gram matrix squared repeatedly."""
    C = compressed(A)[1] if A.is_factored else A.to_dense()
    xp = namespace_of(C)
    scale = float(xp.linalg.matrix_norm(C)) or 1.0
    C = C / scale
    G = C @ conj(C).mT if C.shape[0] < C.shape[1] else conj(C).mT @ C
    log_norm = 0.0
    for k in range(SQUARINGS + 1):
        size = float(xp.linalg.matrix_norm(G))
        if size == 0:
            return 0.0
        log_norm += np.log(size) / 2**k
        G = G / size
        G = G @ G
    return scale * float(np.exp(log_norm / 2))


def _checked(approx: LowRank, target: Matrix, tail: float | None) -> tuple[LowRankSum, LowRank]:
    """The two matrices in double precision."""
    if not isinstance(approx, LowRank):
        raise TypeError(f"`approx` is a {type(approx).__name__}; a LowRank is needed.")
    W, X = as_sum(target, "target"), as_sum(approx)
    if X.shape != W.shape:
        raise ValueError(f"`approx` has shape {X.shape} and `target` {W.shape}: they must be equal.")
    if len(W.shape) > 2:
        raise ValueError(f"`target` has shape {W.shape}, a batch; pass its matrices one by one.")
    check_addable(W, X)
    as_rank(approx.rank, W.shape, "approx.rank")
    if tail is not None and not (is_scalar(tail) and 0 <= float(tail) < float("inf")):
        raise ValueError(f"`tail` is {tail}; a finite bound of a singular value, at least 0, is needed.")
    require_finite(target=W, approx=X)
    return in_double(W), in_double(X).terms[0]


def _numbers(x: Array) -> Array:
    """A vector of any array library as NumPy's."""
    return np.asarray([float(value) for value in x])

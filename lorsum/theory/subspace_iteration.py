"""How fast LoRSum with λ = 0 approaches the truncated SVD of a target whose singular values are known."""

from typing import NamedTuple

import numpy as np

from lorsum._checks import as_count
from lorsum.theory.gap_free import chebyshev_decay, gap_free_loss, is_krylov, tangent_of
from lorsum.typing import Acceleration, Array, Factor


def contraction_rate(s: Array, rank: int) -> float:
    """Factor (σ_{r+1}/σ_r)² by which one iteration with λ = 0 shrinks the tangent of the largest angle, asymptotically.

    Parameters
    ----------
    s : array_like, shape (k,)
        Singular values of the matrix, descending.
    rank : int
        r; where r = k the matrix has no further singular value and the rate is 0.

    Returns
    -------
    float
        Between 0 and 1. The excess error falls by its square.

    Raises
    ------
    ValueError
        If an argument is out of range, or σ_r is zero.

    Notes
    -----
    The iteration is orthogonal iteration on WᵀW, whose eigenvalues are σ²; :func:`angle_bounds` has the theorem.

    Examples
    --------
    >>> contraction_rate([4.0, 2.0, 1.0], 2)
    0.25
    """
    s, rank, _ = _checked(s, rank)
    return 0.0 if rank == len(s) else float(_ratio(s, rank, rank) ** 2)


class AngleBounds(NamedTuple):
    """Upper bounds, in radians, of the largest principal angle to the dominant left and right singular subspace."""

    left: float
    right: float


def angle_bounds(
    s: Array, rank: int, iters: int, start_angle: float, *, first: Factor = "U", dominant: int | None = None
) -> AngleBounds:
    """Largest angle that K iterations with λ = 0 leave between the iterate's and the dominant singular subspaces.

    Parameters
    ----------
    s : array_like, shape (k,)
        Singular values of the target, descending.
    rank : int
        r, the dimension of the singular subspaces.
    iters : int
        K ≥ 1.
    start_angle : float
        θ₀, see :mod:`lorsum.theory`; of V₀ for ``first="U"``, of U₀ for ``first="V"``.
    first : {"U", "V"}
        The factor that is updated first, as in :func:`lorsum.lorsum`. The other one ends half an iteration ahead.
    dominant : int, optional
        q ≥ r, the dimension of the subspace that θ₀ is measured to; default: r.

    Returns
    -------
    AngleBounds
        ``left`` and ``right``: between the r dominant singular vectors and the span of all columns of U, and of V.

    Raises
    ------
    ValueError
        If an argument is out of range, or σ_r is zero.

    Notes
    -----
    tan θ ≤ (σ_{q+1}/σ_r)ʰ tan θ₀, where h counts half-steps: 2K − 1 for the factor that is updated first, 2K for the
    other one. It is the convergence theorem of subspace iteration [1]_ for WᵀW, which is symmetric, so that no
    asymptotic term is left: where W's singular vectors are the basis, V₀'s columns span at least those of [I; T₀] with
    ‖T₀‖ = tan θ₀, and the dominant r of them become those of [I; T], T = Σ₂ʰ T₀ Σ₁⁻ʰ.

    References
    ----------
    .. [1] Y. Saad, Numerical Methods for Large Eigenvalue Problems, SIAM, 2011, theorem 5.2.

    Examples
    --------
    >>> np.tan(angle_bounds([4.0, 2.0, 1.0], 1, 2, np.pi / 4))
    array([0.125 , 0.0625])
    """
    s, rank, dominant = _checked(s, rank, dominant)
    iters, tangent = as_count(iters, "iters", least=1), tangent_of(start_angle)
    if first not in ("U", "V"):
        raise ValueError(f"`first` is {first!r}; it must be 'U' or 'V'.")
    ratio = _ratio(s, rank, dominant)
    if np.isinf(tangent):
        return AngleBounds(np.pi / 2, np.pi / 2)
    odd, even = (float(np.arctan(ratio**half_steps * tangent)) for half_steps in (2 * iters - 1, 2 * iters))
    return AngleBounds(odd, even) if first == "U" else AngleBounds(even, odd)


def singular_value_bounds(
    s: Array, rank: int, iters: int, start_angle: float, *, dominant: int | None = None, accelerate: Acceleration = None
) -> Array:
    """Lower bounds of the singular values of the iterate after K iterations with λ = 0; upper bounds are σ₁ … σ_r.

    Parameters
    ----------
    s, rank, iters, start_angle, dominant
        As for :func:`angle_bounds`.
    accelerate : {None, "krylov"}
        ``"krylov"``: for the best approximation in the span of all K iterates.

    Returns
    -------
    array, shape (r,)
        What σ₁(X) … σ_r(X) reach at least.

    Notes
    -----
    With t = tan θ₀, x_k = (σ_k/σ_i)² and a = 2K − 1::

        1 − σ_i(X)²/σ_i²  ≤  max over k > q of  (1 − x_k) t² x_kᵃ / (1 + t² x_kᵃ)

    This is the deterministic bound of [1]_ but for the factor 1 − x_k, which makes a gap unnecessary: a σ_k that is
    close to σ_i costs little where it takes σ_i's place. It is attained by r = 1 and a start in the plane of v₁ and
    v_k. Proof: U's columns span at least those of [I; T], T = Σ₂ᵃ T₀ Σ₁⁻ᵃ and ‖T₀‖ = t. Let c be a unit vector of the
    first i coordinates and y = T c. Then σ_i² less the Rayleigh quotient of WWᵀ at [c; y] is Σ (σ_i² − σ_k²) y_k² / (1
    + Σ y_k²) at most, and Σ y_k² / x_kᵃ ≤ t². A quotient of two such linear functions of the y_k² is largest at a
    vertex.

    Each odd polynomial p of degree a has p(Σ₂) T₀ p(Σ₁)⁻¹ in the span of all iterates, so that x_kᵃ may be replaced by
    x_k / T(2σ_i²/σ_{q+1}² − 1)², T the Chebyshev polynomial of degree K − 1. Where it is less, what
    :func:`gap_free_bound` leaves is taken.

    References
    ----------
    .. [1] M. Gu, Subspace iteration randomization and singular value problems, SIAM J. Sci. Comput. 37(3), 2015.

    Examples
    --------
    >>> singular_value_bounds([4.0, 2.0, 1.0], 2, 2, np.pi / 4)
    array([3.9995, 1.9884])
    """
    s, rank, dominant = _checked(s, rank, dominant)
    iters, tangent, krylov = as_count(iters, "iters", least=1), tangent_of(start_angle), is_krylov(accelerate)
    return s[:rank] * np.sqrt(1 - _losses(s, rank, dominant, iters, tangent, krylov))


def excess_bound(
    s: Array, rank: int, iters: int, start_angle: float, *, dominant: int | None = None, accelerate: Acceleration = None
) -> float:
    """Largest excess error ‖W − X‖ / ‖W − W_r‖ − 1 that K iterations with λ = 0 may leave, in Frobenius norms.

    Parameters
    ----------
    s, rank, iters, start_angle, dominant, accelerate
        As for :func:`singular_value_bounds`; ``s`` holds all singular values of the target (zeros may be left out).

    Returns
    -------
    float
        Infinity where θ₀ = π/2 and the target has rank r.

    Notes
    -----
    As X = P W, ‖W − X‖² = ‖W‖² − Σ σ_i(X)², and the bounds of :func:`singular_value_bounds` are summed.

    Examples
    --------
    >>> s = 2.0 ** -np.arange(10)
    >>> [excess_bound(s, 3, iters, np.pi / 4) for iters in (1, 2, 3)]
    [0.685, 0.0186, 0.00110]
    """
    s, rank, dominant = _checked(s, rank, dominant)
    iters, tangent, krylov = as_count(iters, "iters", least=1), tangent_of(start_angle), is_krylov(accelerate)
    return _excess(s, rank, dominant, iters, tangent, krylov)


def iterations_needed(
    s: Array, rank: int, tol: float, start_angle: float, *, dominant: int | None = None, accelerate: Acceleration = None
) -> int:
    """Smallest K for which :func:`excess_bound` is at most ``tol``: that many iterations are enough.

    Parameters
    ----------
    s, rank, start_angle, dominant, accelerate
        As for :func:`excess_bound`. The angle of a random start is bounded by :func:`random_start_angle`.
    tol : float
        The excess error ‖W − X‖ / ‖W − W_r‖ − 1 to reach, above 0; as in :func:`lorsum.lorsum_until`.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        If an argument is out of range, or θ₀ = π/2, from where no number of iterations is sure to be enough.

    Examples
    --------
    >>> s = 1 / np.arange(1.0, 101)
    >>> [iterations_needed(s, 5, 1e-3, 1.5, accelerate=accelerate) for accelerate in (None, "krylov")]
    [13, 6]
    """
    s, rank, dominant = _checked(s, rank, dominant)
    tangent, krylov = tangent_of(start_angle), is_krylov(accelerate)
    if not tol > 0:
        raise ValueError(f"`tol` is {tol}; it must be above 0.")
    if np.isinf(tangent):
        raise ValueError("`start_angle` is π/2, where the iteration may stay: start elsewhere, at random for example.")
    few, many = 0, 1
    while _excess(s, rank, dominant, many, tangent, krylov) > tol:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        enough = _excess(s, rank, dominant, middle, tangent, krylov) <= tol
        few, many = (few, middle) if enough else (middle, many)
    return many


def _excess(s: Array, rank: int, dominant: int, iters: int, tangent: float, krylov: bool) -> float:
    s = s / (s[0] or 1)
    lost = np.sum(s[:rank] ** 2 * _losses(s, rank, dominant, iters, tangent, krylov))
    optimal = np.sum(s[rank:] ** 2)
    if lost == 0 or optimal == 0:
        return float("inf") if lost else 0.0
    return float(lost / optimal / (1 + np.sqrt(1 + lost / optimal)))


def _losses(s: Array, rank: int, dominant: int, iters: int, tangent: float, krylov: bool) -> Array:
    """The bound of 1 − σ_i(X)²/σ_i² for i = 1 … r."""
    tail = s[dominant:]
    if np.isinf(tangent):
        return np.ones(rank)
    if len(tail) == 0 or tail[0] == 0:
        return np.zeros(rank)
    x = (tail / s[:rank, None]) ** 2

    def loss(decay: Array) -> Array:
        return np.max((1 - x) * tangent**2 * decay / (1 + tangent**2 * decay), axis=1)

    losses = loss(x ** (2 * iters - 1))
    if krylov:
        by_gap = loss(x * chebyshev_decay(iters - 1, 2 / np.maximum(x[:, :1], 1e-300) - 1))
        losses = np.minimum(np.minimum(losses, by_gap), x[:, 0] * gap_free_loss(iters, tangent, krylov))
    return losses


def _ratio(s: Array, rank: int, dominant: int) -> float:
    """σ_{q+1}/σ_r; zero where there is no σ_{q+1}."""
    if s[rank - 1] == 0:
        raise ValueError(f"`s` is zero at position `rank` = {rank}: the dominant subspace is not unique.")
    return float(s[dominant] / s[rank - 1]) if dominant < len(s) else 0.0


def _checked(s: Array, rank: int, dominant: int | None = None) -> tuple[Array, int, int]:
    s = np.asarray(s, dtype=float)
    if s.ndim != 1 or not np.all(np.isfinite(s)) or np.any(np.diff(s) > 0) or np.any(s < 0):
        raise ValueError("`s` must be one row of finite, non-negative, descending singular values.")
    rank = as_count(rank, "rank", least=1)
    if rank > len(s):
        raise ValueError(f"`rank` is {rank}, above the {len(s)} singular values in `s`.")
    dominant = rank if dominant is None else as_count(dominant, "dominant", least=rank)
    return s, rank, dominant

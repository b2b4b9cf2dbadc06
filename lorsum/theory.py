"""Floor 2: what theory predicts for LoRSum before it runs; :func:`certificate` bounds what it did afterwards.

W is the target with singular values σ₁ ≥ σ₂ ≥ …, W_r its truncated SVD. An iteration with λ = 0 and ``start="U"`` is one
of subspace iteration: U spans W(WᵀW)ᴷ⁻¹V₀ after K iterations and V spans (WᵀW)ᴷV₀, and the iterate is X = P W, P the
projector on U's columns. All bounds below hold for it in exact arithmetic, and with left and right exchanged for
``start="V"``. They depend on the start only through θ₀, the largest principal angle between the columns of V₀ and the
dominant right singular subspace: ``start_angle``, in radians. Where the iteration runs with more than r columns and
truncates at the end, that subspace may have any dimension q ≥ r up to their number: ``dominant``.

In the basis of W's singular vectors, U's columns span those of [I; T], T = Σ₂ᵃ T₀ Σ₁⁻ᵃ with a = 2K − 1 and ‖T₀‖ = tan θ₀:
half-steps multiply by the ratios of small to large singular values. What follows are norms of this matrix.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from lorsum._arrays import as_count
from lorsum.certificates import Certificate, certificate

__all__ = [
    "AngleBounds",
    "Certificate",
    "angle_bounds",
    "certificate",
    "contraction_rate",
    "excess_bound",
    "gap_free_bound",
    "iterations_needed",
    "random_start_angle",
    "reg_singular_values",
    "singular_value_bounds",
]


def contraction_rate(s, rank):
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
        If ``s`` is not a descending sequence of non-negative numbers, ``rank`` is out of range, or σ_r is zero.

    Notes
    -----
    An iteration of :func:`lorsum.lorsum` is one of orthogonal iteration on WᵀW, whose eigenvalues are σ² [1]_.

    References
    ----------
    .. [1] Y. Saad, Numerical Methods for Large Eigenvalue Problems, SIAM, 2011, theorem 5.2.

    Examples
    --------
    >>> contraction_rate([4.0, 2.0, 1.0], 2)
    0.25
    """
    s, rank, _ = _spectrum(s, rank)
    return float((_after(s, rank) / _nonzero(s, rank)) ** 2)


class AngleBounds(NamedTuple):
    """Upper bounds of the largest principal angle between the iterate's and the dominant subspace, in radians."""

    left: float
    right: float


def angle_bounds(s, rank, iters, start_angle, *, start="U", dominant=None):
    """Largest angle that K iterations with λ = 0 leave between the iterate's and the dominant singular subspaces.

    Parameters
    ----------
    s : array_like, shape (k,)
        Singular values of the target, descending.
    rank : int
        r, the dimension of the subspaces in question.
    iters : int
        K ≥ 1.
    start_angle : float
        θ₀, see :mod:`lorsum.theory`; of V₀ for ``start="U"``, of U₀ for ``start="V"``.
    start : {"U", "V"}
        The factor that is updated first, as in :func:`lorsum.lorsum`. The other one ends a half-step ahead.
    dominant : int, optional
        q ≥ r, the dimension of the subspace that θ₀ is measured to; default: r.

    Returns
    -------
    AngleBounds
        ``left`` and ``right``. With more than r columns, the angle is that of the r dominant singular vectors to the
        span of all columns.

    Raises
    ------
    ValueError
        If an argument is out of range, or σ_r is zero.

    Notes
    -----
    Each half-step multiplies the tangent by σ_{q+1}/σ_r at most: tan θ ≤ (σ_{q+1}/σ_r)²ᴷ⁻¹ tan θ₀ for the factor that
    is updated first, one factor more for the other. This is the convergence of subspace iteration [1]_, for a
    symmetric matrix, where it needs no asymptotics.

    References
    ----------
    .. [1] Y. Saad, Numerical Methods for Large Eigenvalue Problems, SIAM, 2011, theorem 5.2.

    Examples
    --------
    >>> np.tan(angle_bounds([4.0, 2.0, 1.0], 1, 2, np.pi / 4))
    array([0.125 , 0.0625])
    """
    s, rank, dominant = _spectrum(s, rank, dominant)
    iters, tangent = as_count(iters, "iters", least=1), _tangent(start_angle)
    if start not in ("U", "V"):
        raise ValueError(f"`start` is {start!r}; it must be 'U' or 'V'.")
    ratio = _after(s, dominant) / _nonzero(s, rank)
    if np.isinf(tangent):
        return AngleBounds(np.pi / 2, np.pi / 2)
    first, second = (float(np.arctan(ratio**half_steps * tangent)) for half_steps in (2 * iters - 1, 2 * iters))
    return AngleBounds(first, second) if start == "U" else AngleBounds(second, first)


def singular_value_bounds(s, rank, iters, start_angle, *, dominant=None, accelerate=None):
    """Smallest singular values that the iterate may have after K iterations with λ = 0; the largest are σ₁ … σ_r.

    Parameters
    ----------
    s : array_like, shape (k,)
        Singular values of the target, descending.
    rank : int
        r, the number of singular values in question.
    iters : int
        K ≥ 1.
    start_angle : float
        θ₀, see :mod:`lorsum.theory`.
    dominant : int, optional
        q ≥ r, the dimension of the subspace that θ₀ is measured to; default: r.
    accelerate : {None, "krylov"}
        ``"krylov"``: for the best approximation in the span of all K iterates.

    Returns
    -------
    array, shape (r,)
        Lower bounds of σ₁(X) … σ_r(X).

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    With x_k = (σ_k/σ_i)² and t = tan θ₀ ::

        1 − σ_i(X)²/σ_i²  ≤  max over k > q of  (1 − x_k) t² x_k²ᴷ⁻¹ / (1 + t² x_k²ᴷ⁻¹)

    attained by r = 1 and a start in the plane of v₁ and v_k. Without the factor 1 − x_k this is the deterministic bound of
    [1]_; with it no gap is needed, as a σ_k close to σ_i loses little where it takes σ_i's place. Proof: let c be a unit
    vector of the first i coordinates and y = T c. The Rayleigh quotient of WWᵀ at [c; y] is at least σ_i² − Σ (σ_i² −
    σ_k²) y_k² / (1 + Σ y_k²), and Σ y_k² x_k⁻ᵃ ≤ t²; such a quotient of linear functions of the y_k² is largest at a
    vertex.

    The span of all iterates has the columns p(W) V₀ of each odd polynomial p of degree 2K − 1: x_k²ᴷ⁻¹ becomes x_k /
    T(2σ_i²/σ_{q+1}² − 1)², T the Chebyshev polynomial of degree K − 1; see also :func:`gap_free_bound`.

    Singular values of iterates never fall [2]_: alternating least squares is subspace iteration, and X's row space is
    all that the next iterate starts from.

    References
    ----------
    .. [1] M. Gu, Subspace iteration randomization and singular value problems, SIAM J. Sci. Comput. 37(3), 2015.
    .. [2] A. Dax, The equivalence between orthogonal iterations and alternating least squares, Adv. Linear Algebra Matrix
       Theory 10, 2020.

    Examples
    --------
    >>> singular_value_bounds([4.0, 2.0, 1.0], 2, 3, np.pi / 4)
    array([3.9999, 1.9993])
    """
    s, rank, dominant = _spectrum(s, rank, dominant)
    iters, tangent = as_count(iters, "iters", least=1), _tangent(start_angle)
    return s[:rank] * np.sqrt(1 - _losses(s, rank, dominant, iters, tangent, _krylov(accelerate)))


def excess_bound(s, rank, iters, start_angle, *, dominant=None, accelerate=None):
    """Largest excess error ‖W − X‖ / ‖W − W_r‖ − 1 that K iterations with λ = 0 may leave; Frobenius norms.

    Parameters
    ----------
    s, rank, iters, start_angle, dominant, accelerate
        As for :func:`singular_value_bounds`; ``s`` holds all singular values of the target.

    Returns
    -------
    float
        Infinity where θ₀ = π/2 and the target has rank r.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    X = P W, so that ‖W − X‖² = ‖W‖² − Σ σ_i(X)², and the bound of :func:`singular_value_bounds` is summed.

    Examples
    --------
    >>> s = 2.0 ** -np.arange(10)
    >>> [float(excess_bound(s, 3, iters, np.pi / 4)) for iters in (1, 2, 3)]
    [0.3..., 0.02..., 0.001...]
    """
    s, rank, dominant = _spectrum(s, rank, dominant)
    iters, tangent = as_count(iters, "iters", least=1), _tangent(start_angle)
    return _excess(s, rank, dominant, iters, tangent, _krylov(accelerate))


def iterations_needed(s, rank, tolerance, start_angle, *, dominant=None, accelerate=None):
    """Smallest K for which :func:`excess_bound` is at most ``tolerance``: so many iterations are enough.

    Parameters
    ----------
    tolerance : float
        The excess error ‖W − X‖ / ‖W − W_r‖ − 1 to reach, above 0.
    s, rank, start_angle, dominant, accelerate
        As for :func:`excess_bound`. A random start's angle is bounded by :func:`random_start_angle`.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If an argument is out of range, or θ₀ = π/2, from where no number of iterations is known to be enough.

    Examples
    --------
    >>> s = 2.0 ** -np.arange(10)
    >>> iterations_needed(s, 3, 1e-6, np.pi / 4), iterations_needed(s, 3, 1e-6, np.pi / 4, accelerate="krylov")
    (6, 4)
    """
    s, rank, dominant = _spectrum(s, rank, dominant)
    tangent, krylov = _tangent(start_angle), _krylov(accelerate)
    if not tolerance > 0:
        raise ValueError(f"`tolerance` is {tolerance}; it must be above 0.")
    if np.isinf(tangent):
        raise ValueError("`start_angle` is π/2: the iteration may stay where it is; start elsewhere, at random say.")

    def enough(iters):
        return _excess(s, rank, dominant, iters, tangent, krylov) <= tolerance

    few, many = 0, 1
    while not enough(many):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def gap_free_bound(iters, start_angle, *, accelerate=None):
    """An ε with σ_i² − σ_i(X)² ≤ ε σ_{q+1}² for all i ≤ r after K iterations with λ = 0, whatever the spectrum.

    Parameters
    ----------
    iters : int
        K ≥ 1.
    start_angle : float
        θ₀, to a dominant subspace of any dimension q ≥ r; see :mod:`lorsum.theory`.
    accelerate : {None, "krylov"}
        ``"krylov"``: for the best approximation in the span of all K iterates.

    Returns
    -------
    float
        ε. The error then has ‖W − X‖² ≤ ‖W − W_r‖² + r ε σ_{q+1}² in the Frobenius norm.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    This is the error of each singular vector's share that [1]_ bounds, there by unnamed constants for a random start,
    here explicitly for any start. ε is the largest value of (1 − x) t² xᵃ⁻¹ / (1 + t² xᵃ) for 0 < x ≤ 1, t = tan θ₀ and
    a = 2K − 1: the bound of :func:`singular_value_bounds` times σ_i²/σ_{q+1}² ≤ 1/x_k. It falls like log(t²K)/2K: K =
    O(log(t/ε)/ε). For the span of all iterates, the Chebyshev polynomial T of degree K − 1 that is below 1 for x < 1/(1
    + δ) makes the maximum at most max(t²/T(1 + 2δ)², δ sin²θ₀) for every δ > 0; the best δ is taken: K = O(log(t/ε)/√ε).

    References
    ----------
    .. [1] C. Musco, C. Musco, Randomized block Krylov methods for stronger and faster approximate singular value
       decomposition, NeurIPS, 2015.

    Examples
    --------
    >>> [gap_free_bound(iters, np.arctan(100)) for iters in (10, 100)]
    [0.34..., 0.054...]
    >>> [gap_free_bound(iters, np.arctan(100), accelerate="krylov") for iters in (10, 100)]
    [0.12..., 0.0017...]
    """
    return _gap_free(as_count(iters, "iters", least=1), _tangent(start_angle), _krylov(accelerate))

"""What LoRSum with λ = 0 is sure to reach whatever the singular values of its target."""

from collections.abc import Callable

import numpy as np

from lorsum._checks import as_count
from lorsum.typing import Acceleration, Array


def gap_free_bound(iters: int, start_angle: float, *, accelerate: Acceleration = None) -> float:
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
        ε. In the Frobenius norm the error has ‖W − X‖² ≤ ‖W − W_r‖² + r ε σ_{q+1}².

    Notes
    -----
    The quantity is the per-vector error of [1]_, which is bounded there with unnamed constants for a random start, and
    here for any start: ε is the largest value of (1 − x) t² xᵃ⁻¹ / (1 + t² xᵃ) in 0 < x ≤ 1, where t = tan θ₀ and a =
    2K − 1. That is the bound of :func:`singular_value_bounds` times σ_i²/σ_{q+1}² ≤ 1/x. It falls like log(t² K)/(2K),
    so that K = O(log(t/ε)/ε) are enough.

    In the span of all iterates stands T(2(1 + δ)x − 1), T the Chebyshev polynomial of degree K − 1, for the power of x:
    it is below 1 in modulus up to x = 1/(1 + δ), where the bound then is t²/T(1 + 2δ)² at most. Above, it is δ sin² θ₀
    at most. The best δ > 0 is taken; so K = O(log(t/ε)/√ε) are enough.

    References
    ----------
    .. [1] C. Musco, C. Musco, Randomized block Krylov methods for stronger and faster approximate singular value
       decomposition, NeurIPS, 2015.

    Examples
    --------
    >>> [gap_free_bound(iters, 1.56) for iters in (10, 100)]
    [0.400, 0.0319]
    >>> [gap_free_bound(iters, 1.56, accelerate="krylov") for iters in (10, 100)]
    [0.126, 0.00179]
    """
    return gap_free_loss(as_count(iters, "iters", least=1), tangent_of(start_angle), is_krylov(accelerate))


def random_start_angle(n: int, rank: int, *, columns: int | None = None, failure: float = 0.01) -> float:
    """An angle that a start with independent standard normal entries exceeds with small probability only.

    Parameters
    ----------
    n : int
        Number of rows of the start V₀.
    rank : int
        Dimension of the dominant subspace; ``dominant`` of the bounds that take the angle as ``start_angle``.
    columns : int, optional
        ℓ ≥ ``rank``, the number of columns of V₀; default: ``rank``. A few more make the angle much smaller.
    failure : float
        Probability, between 0 and 1, with which the angle may be larger.

    Returns
    -------
    float
        Radians.

    Notes
    -----
    tan θ₀ ≤ ‖G₂G₁⁺‖, where G₁ and G₂ are V₀ in the bases of the dominant subspace and of its complement, and only the
    ``rank`` directions of G₁'s row space matter in G₂. Half of ``failure`` goes to ‖G₂‖ ≤ √(n − q) + √q + √(2
    log(2/failure)) [2]_, the other half to ‖G₁⁺‖, for which [1]_ states P(‖G₁⁺‖ > x) ≤ (e√ℓ / (p x))ᵖ / √(2πp), p = ℓ −
    q + 1, from [3]_.

    References
    ----------
    .. [1] N. Halko, P. G. Martinsson, J. A. Tropp, Finding structure with randomness, SIAM Review 53(2), 2011,
       appendix.
    .. [2] K. R. Davidson, S. J. Szarek, Local operator theory, random matrices and Banach spaces, Handbook of the
       Geometry of Banach Spaces 1, 2001.
    .. [3] Z. Chen, J. J. Dongarra, Condition numbers of Gaussian random matrices, SIAM J. Matrix Anal. Appl. 27(3),
       2005.

    Examples
    --------
    >>> np.tan([random_start_angle(1000, 10, columns=columns) for columns in (10, 15, 20)])
    array([25981.55, 118.79, 55.90])
    """
    n, rank = as_count(n, "n", least=1), as_count(rank, "rank", least=1)
    columns = rank if columns is None else as_count(columns, "columns", least=rank)
    if columns > n:
        raise ValueError(f"`columns` is {columns}, above the {n} rows in `n`.")
    if not 0 < failure < 1:
        raise ValueError(f"`failure` is {failure}; a probability between 0 and 1 is needed.")
    if rank == n:
        return 0.0
    p = columns - rank + 1
    inverse = np.e * np.sqrt(columns) / p * (2 / (failure * np.sqrt(2 * np.pi * p))) ** (1 / p)
    rest = np.sqrt(n - rank) + np.sqrt(rank) + np.sqrt(2 * np.log(2 / failure))
    return float(np.arctan(rest * inverse))


def gap_free_loss(iters: int, tangent: float, krylov: bool) -> float:
    """:func:`gap_free_bound` for tan θ₀, without checks."""
    if iters == 1 or np.isinf(tangent):
        return float(tangent**2)
    loss = _largest_power_loss(2 * iters - 1, tangent**2)
    return min(loss, _largest_chebyshev_loss(iters - 1, tangent**2)) if krylov else loss


def _largest_power_loss(a: int, t2: float) -> float:
    """The maximum of (1 − x) t² xᵃ⁻¹ / (1 + t² xᵃ), whose logarithmic derivative, times x, falls through zero once."""
    x = _sign_change(lambda x: (a - 1) - x / (1 - x) - a * t2 * x**a / (1 + t2 * x**a), 0.0, 1.0)
    return float((1 - x) * t2 * x ** (a - 1) / (1 + t2 * x**a))


def _largest_chebyshev_loss(degree: int, t2: float) -> float:
    """The minimum over δ of max(t²/T(1 + 2δ)², δ t²/(1 + t²)): where a falling function meets a rising one."""
    rising = t2 / (1 + t2)

    def falling(delta: float) -> float:
        return float(t2 * chebyshev_decay(degree, 1 + 2 * delta))

    delta = _sign_change(lambda delta: falling(delta) - delta * rising, 0.0, 1 + t2)
    return float(max(falling(delta), delta * rising))


def _sign_change(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that is positive on its left becomes negative, by bisection to the last bit."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return low


def chebyshev_decay(degree: int, x: Array) -> Array:
    """1/T(x)² at x ≥ 1 for the Chebyshev polynomial T; its largest value in [−1, 1] is 1."""
    with np.errstate(over="ignore"):
        return (1 / np.cosh(degree * np.arccosh(x))) ** 2


def tangent_of(start_angle: float) -> float:
    """tan θ₀ for an angle between 0 and π/2, infinite where π/2 is meant."""
    if not 0 <= start_angle <= np.pi / 2:
        raise ValueError(f"`start_angle` is {start_angle}; an angle between 0 and π/2, in radians, is needed.")
    return np.inf if start_angle > np.pi / 2 - 1e-15 else float(np.tan(start_angle))


def is_krylov(accelerate: Acceleration) -> bool:
    """True for "krylov", False for None."""
    if accelerate not in (None, "krylov"):
        raise ValueError(f"`accelerate` is {accelerate!r}; it must be None or 'krylov'.")
    return accelerate == "krylov"

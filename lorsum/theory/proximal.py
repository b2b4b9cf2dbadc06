"""The bias that λ > 0, the proximal term, leaves in LoRSum."""

import numpy as np

from lorsum._checks import as_count
from lorsum.typing import Array


def reg_singular_values(s: Array, start: Array, reg: float, iters: int | None = None) -> Array:
    """Singular values of the iterates with λ > 0 where the start already has singular vectors of the target.

    Parameters
    ----------
    s : array_like
        Singular values σ of the target that belong to the start's singular vectors, in any order.
    start : array_like of the same shape
        The start's singular values s₀; its factors, which the proximal term holds on to, are balanced: U√s₀ and V√s₀.
    reg : float
        λ > 0.
    iters : int, optional
        K; default: the limit of K → ∞.

    Returns
    -------
    array
        x, in the order of ``s``. Where the singular vectors are the dominant ones, the squared error is Σ (x − σ)²
        above the optimum.

    Notes
    -----
    All of λ's effect on singular values, and none of its effect on singular vectors. Let W and U₀V₀ᵀ have the same
    singular vectors. The factors keep them, and each pair of columns is scaled by numbers u and v that follow, from c =
    √s₀::

        u ← (σ v + λ c) / (v² + λ),    v ← (σ u + λ c) / (u² + λ),    x = u v

    The limit is stationary for (u v − σ)² + λ(u − c)² + λ(v − c)². If s₀ ≤ 4(σ + λ), there is one such point with u, v
    > 0: u = v, the positive root of u³ + (λ − σ)u − λc, so that x = σ − λ(1 − √(s₀/σ)) + O(λ²). If s₀ is larger, u = v
    repels, and the limit is at u + v = c with x = σ + λ (unless an iterate happens to fall on u = v). A column that
    starts at zero stays there.

    For a start with other singular vectors see :func:`a_posteriori_bounds`, which takes iterates of any λ.

    Examples
    --------
    >>> reg_singular_values([2.0, 1.0], [1.0, 1.0], 0.1, iters=1)
    array([1.9976, 1.    ])
    >>> reg_singular_values([2.0, 1.0], [1.0, 1.0], 0.1)
    array([1.9712, 1.    ])
    """
    s, start = np.asarray(s, dtype=float), np.asarray(start, dtype=float)
    for name, values in (("s", s), ("start", start)):
        if not np.all(np.isfinite(values)) or np.any(values < 0):
            raise ValueError(f"`{name}` must hold finite, non-negative singular values.")
    if s.shape != start.shape:
        raise ValueError(f"`s` has shape {s.shape} and `start` {start.shape}: they must be equal.")
    if not 0 < reg < float("inf"):
        raise ValueError(f"`reg` is {reg}; it must be finite and above 0.")
    if iters is None:
        return _limit(s, start, reg)
    c = np.sqrt(start)
    u = v = c
    for _ in range(as_count(iters, "iters", least=0)):
        u = (s * v + reg * c) / (v**2 + reg)
        v = (s * u + reg * c) / (u**2 + reg)
    return u * v


def _limit(s: Array, start: Array, reg: float) -> Array:
    c = np.sqrt(start)
    low, high = np.minimum(np.sqrt(s), c), np.maximum(np.sqrt(s), c)  # the cubic changes sign in between
    for _ in range(100):
        u = (low + high) / 2
        above = u**3 + (reg - s) * u > reg * c
        low, high = np.where(above, low, u), np.where(above, u, high)
    x = np.where(start > 4 * (s + reg), s + reg, high**2)
    return np.where(start > 0, x, 0.0)

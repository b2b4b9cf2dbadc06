"""Floor 2: what the theory of subspace iteration predicts for LoRSum."""

import numpy as np

from lorsum._arrays import as_count

__all__ = ["contraction_rate"]


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
    s = np.asarray(s, dtype=float)
    if s.ndim != 1 or not np.all(np.isfinite(s)) or np.any(np.diff(s) > 0) or np.any(s < 0):
        raise ValueError("`s` must be one row of finite, non-negative, descending singular values.")
    rank = as_count(rank, "rank", least=1)
    if rank > len(s):
        raise ValueError(f"`rank` is {rank}, above the {len(s)} singular values in `s`.")
    if rank == len(s):
        return 0.0
    if s[rank - 1] == 0:
        raise ValueError(f"`s` is zero at position `rank` = {rank}: the dominant subspace is not unique.")
    return float((s[rank] / s[rank - 1]) ** 2)

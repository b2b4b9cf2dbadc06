"""LoRSum until its result is certified to be close to the truncated SVD."""

from typing import NamedTuple

from numpy.linalg import LinAlgError

from lorsum._arrays import as_float, computing_dtype, eps, frobenius, namespace_of
from lorsum._checks import as_count, as_rank, as_real
from lorsum._decompositions import svdvals
from lorsum._display import dtype_name
from lorsum._sums import namespace_of_sum, require_finite
from lorsum.alternating import lorsum
from lorsum.alternating.array_api import compressed
from lorsum.alternating.problem import check_init, result_dtype
from lorsum.diagnostics import Gap, gap
from lorsum.lowrank import LowRank, LowRankSum, MatrixLike, as_sum
from lorsum.typing import RNG, Acceleration, Array

PATIENCE = 3  # iterations without progress after which a stationary point is taken for what it is


class Certified(NamedTuple):
    """An approximation, its gap to the truncated SVD, measured on the result itself, and the iterations it took."""

    approx: LowRank
    gap: Gap
    iters: int


def lorsum_until(
    target: MatrixLike,
    tol: float,
    *,
    init: LowRank | None = None,
    max_iters: int = 1000,
    accelerate: Acceleration = None,
    rng: RNG = 0,
) -> Certified:
    """Alternating updates until the excess over the best approximation is certified to be below a tolerance.

    Parameters
    ----------
    target : LowRankSum or LowRank
        The matrix, shape (m, n), a sum of low-rank terms.
    tol : float
        Largest excess that is accepted: error ≤ (1 + tol) ‖W − W_r‖, Frobenius norms.
    init : LowRank, optional
        Where to start, and the rank; default: the first term.
    max_iters : int
        Iterations after which to give up.
    accelerate : {None, "krylov"}
        As for :func:`lorsum`; the block Krylov space is then built anew at each power of two of iterations.
    rng : None, int or numpy.random.Generator
        Source of the random direction that leaves a stationary point which is not the optimum.

    Returns
    -------
    Certified
        ``approx``, its measured ``gap``, and the number of iterations ``iters``.

    Raises
    ------
    LinAlgError
        If the tolerance is not reached in ``max_iters`` iterations.
    ValueError
        If an argument is out of range, or a term is not low-rank.

    Notes
    -----
    A vanishing residual is no certificate: started on the singular vectors v₁, v₂, v₄, the iteration is stationary, and
    misses v₃. Here the optimum itself is known: in orthonormal bases of the stacked factors the target is an R × R
    matrix with the same singular values, and the error of each iterate is measured against their tail. An iterate that
    stands still above the tolerance gets a random direction added, by which it leaves.

    Tolerances below rounding cannot be certified, and are an error: relative to ‖W‖ the error is known to about R ε.
    Where the optimum itself is zero to rounding in the target's dtype, as for a target of rank r, so must be the error;
    the measured excess may be infinite then.

    Examples
    --------
    >>> import numpy as np
    >>> A = LowRank(np.eye(6, 4) * [4.0, 3, 2, 1], np.eye(5, 4))
    >>> stuck = LowRank(np.eye(6, 4)[:, [0, 1, 3]], np.eye(5, 4)[:, [0, 1, 3]])
    >>> lorsum(A + 0 * A, init=stuck, iters=100).singular_values().round(6)
    array([4., 3., 1.])
    >>> lorsum_until(A, 1e-6, init=stuck).approx.singular_values().round(6)
    array([4., 3., 2.])
    """
    target = as_sum(target, "target")
    init = target.terms[0] if init is None else init
    tol, max_iters = _checked(target, init, tol), as_count(max_iters, "max_iters", least=1)

    dtype = result_dtype(target, init)
    computing = computing_dtype(namespace_of_sum(target), dtype)
    W, X, expanded = compressed(target.astype(computing), init.astype(computing))
    core = W.to_dense()
    largest = _largest_error(core, X.rank, tol)
    errors, done = [as_float(frobenius(core - X.to_dense()))], 0
    while errors[-1] > largest and done < max_iters:
        iters = min(max(done, 1), max_iters - done) if accelerate else 1
        extra = int(_stands_still(errors) and X.rank < min(core.shape))
        X = lorsum(W, init=X, iters=iters, accelerate=accelerate, gauge="balanced", oversample=extra, rng=rng)
        errors.append(as_float(frobenius(core - X.to_dense())))
        done += iters
    if errors[-1] > largest:
        raise LinAlgError(
            f"the error is {errors[-1]:.6g} after `max_iters` = {max_iters} iterations; `tol` asks for {largest:.6g}. "
            "Try `accelerate='krylov'` or truncated_svd, which is exact."
        )
    X = expanded(X).astype(dtype) if done else init.astype(dtype)
    measured = gap(X, target)
    rounding = _rounding(core, eps(namespace_of_sum(target), dtype))
    as_good_as_exact = measured.optimal <= rounding and measured.error <= rounding
    if measured.excess > tol and not as_good_as_exact:
        raise LinAlgError(
            f"rounding to {dtype_name(X)} leaves an excess of {measured.excess:.2g}, above `tol` = {tol}."
        )
    return Certified(X, measured, done)


def _largest_error(core: Array, rank: int, tol: float) -> float:
    """(1 + tol) times the Eckart–Young optimum, and what rounding adds to any measured error."""
    xp, s = namespace_of(core), svdvals(core)
    return (1 + tol) * as_float(frobenius(s[None, rank:])) + _rounding(core, eps(xp, core.dtype))


def _rounding(core: Array, unit: float) -> float:
    """What rounding adds to a measured error, for numbers of that unit roundoff: a few of them also where R = 1."""
    return 2 * (max(core.shape) + 8) * unit * as_float(frobenius(core))


def _stands_still(errors: list[float]) -> bool:
    """True if the last iterations brought next to nothing."""
    return len(errors) > PATIENCE and errors[-1] > (1 - 1e-3) * errors[-1 - PATIENCE]


def _checked(target: LowRankSum, init: LowRank, tol: float) -> float:
    """The tolerance as a float, after a look at all that is not its own check."""
    if not target.is_factored or len(target.shape) > 2:
        raise ValueError("`target` has a term that is no LowRank, or is a batch; one sum of low-rank terms is needed.")
    check_init(init, target)
    as_rank(init.rank, init.shape, "init.rank")
    require_finite(target=target, init=as_sum(init))
    number = as_real(tol, "tol")
    if not 0 <= number < float("inf"):
        raise ValueError(f"`tol` is {tol}; a finite number of at least 0 is needed.")
    return number

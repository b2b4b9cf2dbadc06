"""LoRSum: alternating least-squares updates that track the truncated SVD of a sum of low-rank matrices.

A call is read from top to bottom: ``lorsum`` makes a :class:`~lorsum.alternating.problem.Problem` of its arguments, a
:class:`~lorsum.alternating.plan.Plan` for it, and takes that way, in Numba kernels or in array code.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.linalg import LinAlgError

from lorsum._arrays import computing_dtype, is_finite, namespace_of, zeros_like
from lorsum._checks import as_array
from lorsum._operators import check_adjoints, is_operator
from lorsum._sums import require_finite
from lorsum.alternating.array_api import by_array_code, qr_half_step
from lorsum.alternating.numba import by_kernels
from lorsum.alternating.plan import Plan, planned
from lorsum.alternating.problem import Gauge, Method, Problem, Solver, as_reg, checked, simplified
from lorsum.lowrank import LowRank, LowRankSum, MatrixLike, as_sum
from lorsum.typing import RNG, Acceleration, Array, Factor, Scalar

__all__ = ["Iterate", "least_squares_factor", "lorsum", "lorsums", "solution"]

OVERFLOW = "`target` overflows its dtype in products of its factors, or an operator in it returns a NaN; scale it down."


class Iterate(NamedTuple):
    """What a callback of :func:`lorsum` receives: the start (iteration 0), then each iterate."""

    iteration: int
    approx: LowRank
    target: LowRankSum
    passes: int  # products with the target so far, each of which reads all of its factors


def lorsum(
    target: MatrixLike,
    *,
    init: LowRank | None = None,
    iters: int = 1,
    reg: Scalar = 0.0,
    first: Factor = "U",
    simultaneous: bool = False,
    metric: Any = None,
    method: Method = "auto",
    solver: Solver = "auto",
    gauge: Gauge = "paper",
    oversample: int = 0,
    accelerate: Acceleration = None,
    callback: Callable[[Iterate], object] | None = None,
    rng: RNG = 0,
) -> LowRank:
    """Low-rank approximation of a sum of low-rank matrices by alternating least squares, the sum never being formed.

    Each of the ``iters`` iterations solves for one factor with the other one fixed, then the other way round::

        U ← argmin ‖U Vᵀ − W‖² + λ‖U − U₀‖²  =  (W V + λ U₀) (VᵀV + λ I)⁻¹
        V ← argmin ‖U Vᵀ − W‖² + λ‖V − V₀‖²  =  (Wᵀ U + λ V₀) (UᵀU + λ I)⁻¹

    Parameters
    ----------
    target : LowRankSum or LowRank
        The matrix W = Σ cᵢ Aᵢ, shape (..., m, n). Terms may also be dense arrays or SciPy operators.
    init : LowRank, optional
        U₀ and V₀: where the iteration starts, what the proximal term holds on to, and the rank r of the result.
        Default: the first term of ``target``, without its coefficient.
    iters : int
        The number K of iterations; with 0 the start is returned.
    reg : float
        The weight λ ≥ 0 of the proximal term. Any λ > 0 leaves a bias: the iteration then does not reach the
        truncated SVD, and it depends on how ``init`` is split into factors.
    first : {"U", "V"}
        The factor that is updated first. The paper's equations start with U, its Listing 1 with V ("in"). Starting with
        the factor that is zero in a fresh LoRA adapter loses nothing; the other order does not move in its first half.
    simultaneous : bool
        Update both factors from the last iterate, as Algorithm 2 is printed; ``first`` then has no effect. With one
        iteration and λ → 0 this is the preconditioned gradient step of ScaledGD and Riemannian LoRA.
    metric : pair of metrics, optional
        (M_U, M_V): the approximation is in the norm ‖M_U^½ (·) M_V^½‖, and the terms after the first are gradients,
        which enter as M_U⁻¹ Aᵢ M_V⁻¹ (see Notes). Each is None for the identity, a vector for a diagonal, a positive
        definite matrix, or a :class:`lorsum.Damped` low-rank matrix.
    method : {"auto", "direct", "coefficients"}
        ``"direct"`` multiplies by all factors of ``target`` at each half-step. ``"coefficients"`` compresses the
        stacked factors once and iterates on small matrices, so that iterations cost next to nothing. ``"auto"`` takes
        what costs less: :func:`plan` tells which, and :class:`Plan` by what count. The iterates are the same up to
        rounding.
    solver : {"auto", "qr", "gram"}
        ``"qr"`` always orthogonalises, and loses no digits to the conditioning of the factors. ``"gram"`` always solves
        with the Gram matrix, which squares it, as the paper does. ``"auto"`` loses less than two digits: on NumPy
        arrays it takes the Cholesky factor of the Gram matrix where that holds, and orthogonalises elsewhere; in other
        array libraries it orthogonalises.
    gauge : {"paper", "balanced"}
        The factors of the result: those of the formulas above, or the same matrix as U√s and V√s (see
        :meth:`LowRank.balanced`), for a matrix whose factors live on from step to step.
    oversample : int
        Iterate at rank r + p and truncate to r at the end.
    accelerate : {None, "krylov"}
        ``"krylov"``: the best approximation of rank r in the span of all iterates, at the same number of products with
        the target; for λ = 0. The result is balanced.
    callback : callable, optional
        Called with an :class:`Iterate` for the start and after each iteration; :class:`lorsum.History` is one.
    rng : None, int or numpy.random.Generator
        Source of the random columns of ``oversample``. The default is a fixed one: results are reproducible.

    Returns
    -------
    LowRank
        The approximation of ``init``'s rank, in ``target``'s dtype; complex where ``init`` is. Its factors are those of
        the formulas above. Where λ = 0 leaves them free, and they are so badly conditioned that storing them would lose
        digits, the same matrix is returned with one factor orthonormal.

    Raises
    ------
    ValueError
        If an argument is out of range, the shapes of ``init`` and ``target`` differ, r exceeds min(m, n), or the input
        holds a NaN or an infinity (not checked under ``jax.jit``, ``torch.compile`` and ``torch.func``).
    TypeError
        If an argument is of the wrong kind, or the arrays belong to different libraries.
    LinAlgError
        If ``solver="gram"`` meets a singular Gram matrix.
    OverflowError
        If products of the factors leave the range of their dtype, or an operator in ``target`` returns a NaN.

    See Also
    --------
    plan : Which way a call is computed, and what it costs.
    truncated_svd : The limit of λ = 0 and many iterations, computed exactly.
    gap : How far a result is from it.

    Notes
    -----
    With λ = 0 the iteration is orthogonal (subspace) iteration on WWᵀ and WᵀW, and it contracts the angle to the
    dominant singular subspace by (σ_{r+1}/σ_r)² an iteration [1]_. Where a factor has dependent or zero columns, many
    solutions are equally good, and the nearest to U₀ (or V₀) is taken, in the scale in which the columns have the same
    size: what λ → 0 tends to for zero columns. So a zero factor of LoRA is no special case.

    On NumPy arrays the iteration runs in Numba kernels, which are compiled at the first call (some ten seconds, once on
    a machine: they are cached). Half a step reads each factor once, in blocks that stay in cache; nothing is copied but
    small terms. Kernels take real numbers of one precision and at most one dense term, with ``solver="auto"`` and
    without ``callback``, ``simultaneous`` and ``accelerate``; where columns are dependent to rounding they give up, and
    the operations of the array library take over, as for everything else. Results are the same up to rounding.

    With metrics this is LoRSum on L_Uᵀ W L_V, with M = L Lᵀ, and the proximal term weighted alike: no step is taken
    where the gradient is zero. That, and λ, differ from Algorithm 2 of [2]_ as printed; ``docs/differences.md`` says
    why.

    References
    ----------
    .. [1] Y. Saad, Numerical Methods for Large Eigenvalue Problems, SIAM, 2011, chapter 5.
    .. [2] A. J. Almansoori et al., Faster Than SVD, Smarter Than SGD: The OPLoRA Alternating Update, arXiv 2509.19977.

    Examples
    --------
    >>> import numpy as np
    >>> from lorsum import LowRank, gap, lorsum
    >>> rng = np.random.default_rng(0)
    >>> W = LowRank(rng.normal(size=(60, 4)), rng.normal(size=(40, 4)))
    >>> G = LowRank(rng.normal(size=(60, 9)), rng.normal(size=(40, 9)))
    >>> target = W - 0.01 * G
    >>> one, two = lorsum(target), lorsum(target, iters=2)
    >>> bool(gap(two, target).excess < gap(one, target).excess < 1e-4)
    True
    """
    options = first, simultaneous, metric, method, solver, gauge, accelerate, callback, rng
    problem = checked(Problem(target, init, iters, reg, oversample, *options))
    return solution(problem, planned(problem))


def lorsums(problems: Sequence[Problem]) -> list[LowRank]:
    """The solutions of several checked problems; where the kernels can, terms in common are read once."""
    if len(problems) > 1:
        plan = planned(*problems)
        X = by_kernels(problems, plan) if plan.backend == "numba" else None
        if X is not None:
            return X
    return [solution(problem, planned(problem)) for problem in problems]


def solution(problem: Problem, plan: Plan) -> LowRank:
    """The solution by the way that is planned, and by its fallback where the kernels give up."""
    simpler, back = simplified(problem)
    while plan.backend == "numba":
        found = by_kernels((simpler,), plan)
        if found is not None:  # and finite
            return found[0] if simpler is problem else _finite(back(found[0]), problem)
        plan = plan.fallback()
    if problem.iters == 0 or isinstance(problem.init.U, np.ndarray):  # nothing is read, or NumPy would warn of it
        require_finite(target=problem.target, init=as_sum(problem.init))
    with _errors_explained(problem):
        X = back(by_array_code(simpler, plan, _observer(problem, back)))
    return _finite(X, problem)


def least_squares_factor(W: Any, V: Array, U0: Array | None = None, reg: Scalar = 0.0) -> Array:
    """The U that minimises ‖U Vᵀ − W‖² + λ‖U − U₀‖², half a step of :func:`lorsum`.

    Parameters
    ----------
    W : LowRank, LowRankSum or array
        Shape (..., m, n).
    V : array, shape (..., n, r)
        The other factor.
    U0 : array, shape (..., m, r), optional
        What the proximal term holds on to; default: zero. With λ = 0 it decides what V's null space leaves open.
    reg : float
        λ ≥ 0.

    Returns
    -------
    array, shape (..., m, r)
        For U₀ = 0 this is W V (VᵀV + λI)⁻¹, the preconditioned gradient of ScaledGD where W is a gradient [1]_.

    References
    ----------
    .. [1] T. Tong, C. Ma, Y. Chi, Accelerating ill-conditioned low-rank matrix estimation via scaled gradient descent,
       JMLR 22(150), 2021.

    Examples
    --------
    >>> import numpy as np
    >>> G, V = LowRank(np.ones((4, 1)), np.ones((3, 1))), np.array([[2.0], [0.0], [0.0]])
    >>> least_squares_factor(G, V).ravel()
    array([0.5, 0.5, 0.5, 0.5])
    """
    W, V = as_sum(W, "W"), as_array(V, "V")
    xp, dtype = namespace_of(V), V.dtype
    computing = computing_dtype(xp, dtype)
    W, V = W.astype(computing), xp.astype(V, computing)
    U0 = zeros_like((*W.shape[:-1], V.shape[-1]), V) if U0 is None else xp.astype(U0, computing)
    U = qr_half_step(W, V, U0, as_reg(reg))
    return xp.astype(U, dtype) if computing != dtype else U


def _observer(problem: Problem, back: Callable[[LowRank], LowRank]) -> Callable[[int, LowRank], None]:
    """What the sweeps call with each iterate: the user's callback, or nothing."""
    if problem.callback is None:
        return lambda k, X: None
    callback = problem.callback

    def observe(k: int, X: LowRank) -> None:
        iterate = Iterate(k, back(X), problem.target, 2 * k)
        try:
            callback(iterate)
        except Exception as error:
            error.add_note(f"raised by `callback` at iteration {k}")
            raise

    return observe


@contextmanager
def _errors_explained(problem: Problem) -> Iterator[None]:
    """Say which argument was at fault when the array library gives up."""
    try:
        yield
    except Exception as error:
        notes = getattr(error, "__notes__", ())
        if any("by the operator" in note for note in notes):
            check_adjoints("target", filter(is_operator, problem.target.terms))
        if notes:  # the callback's own, or the operator's
            raise
        require_finite(target=problem.target, init=as_sum(problem.init))
        singular = type(error).__name__.endswith("LinAlgError")  # torch has one of its own
        if not singular and not isinstance(error, ValueError):
            raise
        if problem.solver != "gram" or not singular:
            raise OverflowError(OVERFLOW) from error
        raise LinAlgError(
            f"a solve broke down ({error}): the columns of a factor are dependent or zero. "
            "Try `solver='qr'`, or `reg` > 0."
        ) from error


def _finite(X: LowRank, problem: Problem) -> LowRank:
    """The result, or an error that names what is not finite."""
    if not is_finite(*X, *problem.init):  # of the start, λ = 0 reads one factor only
        require_finite(target=problem.target, init=as_sum(problem.init))
        raise OverflowError(OVERFLOW)
    return X

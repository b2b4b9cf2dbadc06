"""Floor 2: LoRSum, the alternating least-squares updates that track the truncated SVD of a sum of low-rank matrices."""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.linalg import LinAlgError

from lorsum._arrays import (
    as_array,
    as_count,
    as_float,
    as_number,
    as_rank,
    computing_dtype,
    is_complex,
    is_finite,
    is_scalar,
    is_traced,
    namespace_of,
    zeros_like,
)
from lorsum._by_kernels import by_kernels
from lorsum._half_steps import gram_half_step, in_the_papers_gauge, qr_half_step, solved
from lorsum._krylov import krylov
from lorsum._operators import check_adjoints, is_operator
from lorsum._preparation import prepared
from lorsum.lowrank import LowRank, LowRankSum, as_sum, check_addable, require_finite, require_finite_coefficients

__all__ = ["Iterate", "least_squares_factor", "lorsum"]


_CHOICES = {
    "first": ("U", "V"),
    "method": ("auto", "direct", "coefficients"),
    "solver": ("auto", "qr", "gram"),
    "gauge": ("paper", "balanced"),
    "accelerate": (None, "krylov"),
}


OVERFLOW = "`target` overflows its dtype in products of its factors, or an operator in it returns a NaN; scale it down."


class Iterate(NamedTuple):
    """What a callback of :func:`lorsum` receives: the start (iteration 0), then each iterate."""

    iteration: int
    approx: LowRank
    target: LowRankSum
    passes: int  # products with the target so far, each of which reads all of its factors


def lorsum(
    target,
    *,
    init=None,
    iters=1,
    reg=0.0,
    first="U",
    simultaneous=False,
    metric=None,
    method="auto",
    solver="auto",
    gauge="paper",
    oversample=0,
    accelerate=None,
    callback=None,
    rng=0,
):
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
        what costs fewer operations (see Notes). The iterates are the same up to rounding.
    solver : {"auto", "qr", "gram"}
        ``"qr"`` orthogonalises, and loses no digits to the conditioning of the factors; ``"gram"`` solves with the Gram
        matrix, which squares it, as the paper does. ``"auto"`` is ``"qr"``.
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
    small terms. The coefficients are those of the factors themselves, by the Gram matrices of both sides, where these
    lose less than two digits, and else by a QR of the stacked factors, as for other array libraries. Where columns are
    dependent to rounding, the general path takes over. Results are the same up to rounding.

    For m × n matrices and a sum of stacked rank R, ``"auto"`` counts multiplications at equal speed, as measured: K (m
    + n) (4Rr + 6r²) for the direct method against (m + n) (0.9R² + 40R + 2Rr) + 100R² + 10K R²r by Gram matrices, or 6
    (m + n) R² + 2R³ + 2 (m + n) Rr + K (8R²r + 12Rr²) by QR, which needs R < min(m, n).

    With metrics, algorithm 2 of [2]_ is corrected so that a zero gradient is a fixed point: it is LoRSum on
    L_Uᵀ W L_V, with M = L Lᵀ, and the proximal term is weighted alike.

    The proximal term is that of Listing 1 and equation 7 of [2]_; line 5 of Algorithm 2 misses a λI.

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
    target, init, reg = _checked(target, init, reg)
    iters, p = as_count(iters, "iters", least=0), as_count(oversample, "oversample", least=0)
    as_rank(init.rank, init.shape, "init.rank")
    if p:
        as_rank(init.rank + p, init.shape, "init.rank + oversample")
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` is a {type(callback).__name__}; a function of an Iterate is needed.")
    check_choices(first=first, method=method, solver=solver, gauge=gauge, accelerate=accelerate)
    if accelerate and (simultaneous or reg is not None):
        raise ValueError("`accelerate` is 'krylov', which needs `reg` = 0 and `simultaneous` = False.")
    if accelerate and solver == "gram":
        raise ValueError("`accelerate` is 'krylov', which orthogonalises, but `solver` is 'gram': use 'qr' or 'auto'.")

    balance = gauge == "balanced"
    for_kernels = solver == "auto" and iters > 0 and callback is None and not (simultaneous or accelerate)
    if for_kernels and metric is None and p == 0:
        X = by_kernels([(target, init, reg, balance)], iters, first, method)
        if X is not None:
            return X[0]
        if isinstance(init.U, np.ndarray):  # the kernels gave up: on what is dependent, or on what is not finite
            require_finite(target=target, init=as_sum(init))

    dtype = result_dtype(target, init)
    W, X0, undo = prepared(target, init, dtype, iters, first, metric, method, p, rng)

    def finish(X):
        for back in undo:
            X = back(X)
        return (X.balanced() if balance else X).astype(dtype)

    half_step = gram_half_step if solver == "gram" else qr_half_step
    sweep = krylov if accelerate else _simultaneous if simultaneous else _alternating
    with _errors_explained(target, init, solver):
        X = by_kernels([(W, X0, reg, False)], iters, first, method) if for_kernels and undo else None
        X = sweep(W, X0, iters, reg, first, half_step, _observer(callback, target, finish)) if X is None else X[0]
        X = finish(X)
    if iters == 0:
        require_finite(target=target)  # which nothing has read
    if not is_finite(*X, *init):  # of the first, λ = 0 reads one factor only
        require_finite(target=target, init=as_sum(init))
        raise OverflowError(OVERFLOW)
    return X


def lorsums(problems, *, iters, first, simultaneous, method):
    """``lorsum`` of several targets with low-rank first terms: what they have in common is read once.

    Parameters
    ----------
    problems : list of tuple
        A target, and options of its own: ``reg``, ``gauge`` and ``metric``.
    iters, first, simultaneous, method
        Options that all have.

    Returns
    -------
    list of LowRank
    """
    X = None
    if iters > 0 and not simultaneous and all([own.get("metric") is None for _, own in problems]):
        given = [
            (target, target.terms[0], _checked_reg(own.get("reg", 0.0)), own.get("gauge") == "balanced")
            for target, own in problems
        ]
        X = by_kernels(given, iters, first, method)
    if X is None:
        options = {"iters": iters, "first": first, "simultaneous": simultaneous, "method": method}
        X = [lorsum(target, **own, **options) for target, own in problems]
    return X


def least_squares_factor(W, V, U0=None, reg=0.0):
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
    dtype = V.dtype
    computing = computing_dtype(namespace_of(V), dtype)
    W, V = W.astype(computing), namespace_of(V).astype(V, computing)
    U0 = zeros_like((*W.shape[:-1], V.shape[-1]), V) if U0 is None else namespace_of(U0).astype(U0, computing)
    U = solved(qr_half_step, W, V, U0, _checked_reg(reg))
    return namespace_of(U).astype(U, dtype) if computing != dtype else U


def _alternating(W, X0, iters, reg, first, half_step, observe):
    """Equations 4 and 5: each factor from the newest other one."""
    U, V = X0
    S = T = None
    observe(0, X0)
    for k in range(iters):
        for side in "UV" if first == "U" else "VU":
            if side == "U":
                U, S, V, T = half_step(W, V, T, S, X0.U, reg)
            else:
                V, T, U, S = half_step(W.T, U, S, T, X0.V, reg)
        observe(k + 1, in_the_papers_gauge(U, S, V, T))
    return in_the_papers_gauge(U, S, V, T)


def _simultaneous(W, X0, iters, reg, first, half_step, observe):
    """Algorithm 2 as printed: both factors from the last iterate."""
    X = X0
    observe(0, X0)
    for k in range(iters):
        U = solved(half_step, W, X.V, X0.U, reg)
        V = solved(half_step, W.T, X.U, X0.V, reg)
        X = LowRank._of(U, V)
        observe(k + 1, X)
    return X


def _observer(callback, target, finish):
    """What the sweeps call with each iterate: the user's callback, or nothing."""
    if callback is None:
        return lambda k, X: None

    def observe(k, X):
        iterate = Iterate(k, finish(X), target, 2 * k)
        try:
            callback(iterate)
        except Exception as error:
            error.add_note(f"raised by `callback` at iteration {k}")
            raise

    return observe


@contextmanager
def _errors_explained(target, init, solver):
    """Say which argument was at fault when the array library gives up, or when its result is not finite."""
    try:
        yield
    except Exception as error:
        notes = getattr(error, "__notes__", ())
        if any("by the operator" in note for note in notes):
            check_adjoints("target", filter(is_operator, target.terms))
        if notes:  # the callback's own, or the operator's
            raise
        require_finite(target=target, init=as_sum(init))
        singular = type(error).__name__.endswith("LinAlgError")  # torch has one of its own
        if not singular and not isinstance(error, ValueError):
            raise
        if solver != "gram" or not singular:
            raise OverflowError(OVERFLOW) from error
        raise LinAlgError(
            f"a solve broke down ({error}): the columns of a factor are dependent or zero. "
            "Try `solver='qr'`, or `reg` > 0."
        ) from error


def _checked(target, init, reg):
    """The arguments that are matrices, and λ (None for 0, so that the formulas without it are taken)."""
    sum_ = as_sum(target, "target")
    if init is None:
        init = sum_.terms[0]
        if not isinstance(init, LowRank):
            raise ValueError("`init` is None and the first term of `target` is no LowRank: pass `init` to start from.")
    else:
        check_init(init, sum_)
    require_finite_coefficients(target=sum_)
    return sum_, init, _checked_reg(reg)


def result_dtype(target, init):
    """The target's dtype, of complex numbers also where the start alone is complex."""
    xp = target.namespace
    if xp.isdtype(init.dtype, "complex floating") and not xp.isdtype(target.dtype, "complex floating"):
        return xp.result_type(target.dtype, xp.complex64)
    return target.dtype


def check_init(init, target):
    """An error unless a start fits its target."""
    if not isinstance(init, LowRank):
        raise TypeError(f"`init` is a {type(init).__name__}; a LowRank is needed.")
    if init.shape != target.shape:
        raise ValueError(f"`init` has shape {init.shape} and `target` {target.shape}: they must be equal.")
    check_addable(target, as_sum(init), names=("target", "init"))


def _checked_reg(reg):
    if type(reg) is float and 0 <= reg < float("inf"):
        return reg or None  # the short way, for most
    if not is_scalar(reg):
        raise TypeError(f"`reg` is a {type(reg).__name__}; a number is needed.")
    if is_traced(reg):
        return reg
    given, reg = reg, as_number(reg, "reg")
    if is_complex(reg):
        raise TypeError(f"`reg` is {reg}; a real number is needed.")
    reg = as_float(reg)
    if not 0 <= reg < float("inf"):
        raise ValueError(f"`reg` is {reg}; it must be finite and at least 0.")
    if reg and getattr(given, "requires_grad", False):
        return given
    return reg or None


def check_choices(**chosen):
    """An error unless each option is one of its choices."""
    for name, value in chosen.items():
        choices = _CHOICES[name]
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
            raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, choices))}.")

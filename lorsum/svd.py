"""Truncated singular value decompositions: the answers that LoRSum is measured against."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

from array_api_compat import is_numpy_array
from numpy.linalg import LinAlgError

from lorsum import _numba
from lorsum._arrays import as_generator, computing_dtype, namespace_of, zeros_like
from lorsum._checks import as_count, as_rank, as_real
from lorsum._iterative import krylov, randomized, subspace, svd_of
from lorsum._operators import check_adjoints, is_operator
from lorsum._sums import arrays_of, compressed, namespace_of_sum, require_finite, require_finite_coefficients
from lorsum.lowrank import LowRank, LowRankSum, as_sum
from lorsum.typing import RNG, Array, Matrix, Scalar

__all__ = ["TruncatedSVD", "as_tolerance", "rank_for", "truncated_svd"]

Method: TypeAlias = Literal["auto", "factored", "lapack", "arpack", "propack", "lobpcg", "randomized", "subspace"]

_Triple: TypeAlias = tuple[Array, Array, Array]
_METHODS = get_args(Method)
_EXACT = ("factored", "lapack")
_KRYLOV = ("arpack", "propack", "lobpcg")
_HONOURED_BY = {
    "residual_tol": ("auto", *_KRYLOV, "subspace"),
    "oversample": ("randomized", "subspace"),
    "iters": ("randomized",),
    "max_iters": ("auto", *_KRYLOV, "subspace"),
}
_DEFAULT_MAX_ITERS = {"subspace": 1000, "lobpcg": 200}  # of the others: SciPy's


class TruncatedSVD(NamedTuple):
    """A truncated SVD ``U @ diag(s) @ Vh`` in NumPy's convention.

    Attributes
    ----------
    U : array, shape (..., m, r)
        Orthonormal left singular vectors.
    s : array, shape (..., r)
        Singular values, descending.
    Vh : array, shape (..., r, n)
        Orthonormal right singular vectors, conjugate-transposed.
    """

    U: Array
    s: Array
    Vh: Array

    def to_lowrank(self) -> LowRank:
        """The matrix as a :class:`LowRank` with the balanced factors U√s and V√s."""
        xp = namespace_of(self.U, self.s, self.Vh)
        root = xp.astype(xp.sqrt(self.s), self.U.dtype)[..., None, :]
        return LowRank._of(self.U * root, self.Vh.mT * root)


def truncated_svd(
    A: Matrix,
    rank: int | None = None,
    *,
    rtol: float | None = None,
    method: Method = "auto",
    residual_tol: float = 0.0,
    oversample: int | None = None,
    iters: int | None = None,
    max_iters: int | None = None,
    rng: RNG = 0,
) -> TruncatedSVD:
    """Best rank-r approximation of a matrix in the Frobenius and the spectral norm.

    Parameters
    ----------
    A : LowRankSum, LowRank, array or LinearOperator, shape (..., m, n)
        A sum is formed by ``"lapack"`` only.
    rank : int, optional
        r, between 1 and min(m, n). Either this or ``rtol`` is given.
    rtol : float, optional
        Take the smallest r ≥ 1 with ‖A − A_r‖ ≤ rtol ‖A‖ (Frobenius; 0 ≤ rtol < 1; for a batch, the smallest that
        will do for all its matrices). It needs all singular values, so that ``"auto"`` forms an operator.
    method : {"auto", "factored", "lapack", "arpack", "propack", "lobpcg", "randomized", "subspace"}
        Exact to rounding:

        - ``"factored"``: QR of the stacked factors and an SVD of the R × R core, R the sum of the terms' ranks, at
          O((m + n) R²) [1]_; needs a sum of low-rank terms.
        - ``"lapack"``: SVD of the dense matrix.

        Iterative, by products with A and Aᴴ alone; only the last two take a batch or another library than NumPy:

        - ``"arpack"``, ``"propack"``, ``"lobpcg"``: the solvers of :func:`scipy.sparse.linalg.svds`. Their result is
          refined by one orthogonal iteration, and checked.
        - ``"randomized"``: the range finder of Halko, Martinsson and Tropp with ``iters`` power iterations [2]_. An
          approximation, optimal up to a factor that depends on the decay of the singular values.
        - ``"subspace"``: orthogonal iteration with Rayleigh–Ritz projection, until it converges [3]_.

        ``"auto"`` is one of the first three; see the notes.
    residual_tol : float
        How well a result of the iterative methods but ``"randomized"`` has to converge: ‖A V − U diag(s)‖ ≤
        residual_tol σ₁. 0 asks for rounding level, which ``"subspace"`` cannot know where the terms of a sum cancel:
        give it there.
    oversample : int, optional
        ``"randomized"`` and ``"subspace"`` iterate on so many more columns than r (default 10).
    iters : int, optional
        Power iterations of ``"randomized"`` (default 2).
    max_iters : int, optional
        The largest number of iterations of ``"subspace"`` (default 1000), ``"lobpcg"`` (200) and ``"arpack"``
        (SciPy's), or the largest dimension of the Krylov space of ``"propack"`` (10 r + 200).
    rng : int, numpy.random.Generator or None
        Of the iterative methods' random start. Default: the seed 0, so that runs repeat; None: fresh entropy.

    Returns
    -------
    TruncatedSVD
        U and Vh in ``A``'s dtype; half precision is computed in float32.

    Raises
    ------
    ValueError
        If an argument is out of range, the method does not fit ``A`` or has no use for an option that is given, or
        ``A`` has a NaN or an infinity.
    TypeError
        If ``A`` is no matrix, or an argument is of the wrong kind.
    LinAlgError
        If an iterative method does not converge: the residual of Krylov methods exceeds max(residual_tol, √eps) σ₁, or
        the check finds a direction that has been missed, along which A is larger than σ_r.

    Notes
    -----
    Optimality is the Eckart–Young–Mirsky theorem. The factored method is the rounding of tensor trains; its singular
    values are exact to rounding, relative to the sizes of the terms.

    ``"auto"`` counts operations for a sum of low-rank terms: 8R(mp + nq) + S(p, q) for ``"factored"``, where p = min(m,
    R) and q = min(n, R), against 2mnR + S(m, n) for ``"lapack"``. S(p, q) = 6 max(p, q) min(p, q)² + 20 min(p, q)³ is
    the SVD, and the QRs count twice because they run at half the speed. A square matrix is at balance at R ≈ 0.85 n.
    With a dense term it is ``"lapack"``. With an operator it is ``"arpack"``, of SciPy's solvers the one that repeated
    and clustered singular values upset least, but ``"lapack"`` where m n ≤ 10⁶, 5r ≥ min(m, n) or ``rtol`` is given.

    Where singular values are equal or nearly so, a Krylov method may miss some of them, PROPACK most often. What it
    returns is therefore checked: the spectral norm of A − U diag(s) Vh is estimated from below, in a block Krylov space
    of 80 columns, and must not exceed σ_r. That finds a missed value that stands out from σ_r; of values closer
    together than it can tell apart, others than the largest may be returned, with an error of that distance. Nor do
    ARPACK and LOBPCG always converge inside of a narrow cluster, and ``"subspace"`` does not where more than r +
    ``oversample`` values form one: they raise then, unless ``residual_tol`` is as wide as the cluster. The exact
    methods take no notice of clusters. LOBPCG also breaks down, and raises, on a matrix of rank little above r.

    ARPACK and LOBPCG work with AᴴA, which costs them what is below √eps σ₁; the refinement restores most of it.

    ``rtol`` and ``"subspace"`` look at values, so that they do not work inside ``jax.jit`` and ``torch.func.vmap``, nor
    on meta tensors. The iterative methods draw NumPy's random numbers, which ``torch.compile`` does not follow.

    References
    ----------
    .. [1] I. V. Oseledets, Tensor-train decomposition, SIAM J. Sci. Comput. 33(5), 2011, algorithm 2.
    .. [2] N. Halko, P.-G. Martinsson, J. A. Tropp, Finding structure with randomness, SIAM Rev. 53(2), 2011,
       algorithms 4.4 and 5.1.
    .. [3] Y. Saad, Numerical Methods for Large Eigenvalue Problems, SIAM, 2011, chapter 5.

    Examples
    --------
    >>> import numpy as np
    >>> A = LowRank(np.eye(5, 2), np.eye(4, 2)) + LowRank(np.eye(5, 1), 2 * np.eye(4, 1))
    >>> truncated_svd(A, 2).s
    array([3., 1.])
    >>> truncated_svd(A, rtol=0.5).s
    array([3.])
    >>> truncated_svd(A, 2, method="randomized", rng=0).s
    array([3., 1.])
    """
    sum_ = as_sum(A, "A")
    r, rtol = _checked_size(sum_, rank, rtol)
    residual_tol = as_tolerance(residual_tol, "residual_tol")
    oversample = None if oversample is None else as_count(oversample, "oversample", least=0)
    _check_honoured(method, residual_tol=residual_tol or None, oversample=oversample, iters=iters, max_iters=max_iters)
    oversample = 10 if oversample is None else oversample
    method = _checked_method(sum_, method, r)
    iters = 2 if iters is None else as_count(iters, "iters", least=0)
    limit = _DEFAULT_MAX_ITERS.get(method, 0) if max_iters is None else as_count(max_iters, "max_iters", least=1)
    generator = None if method in _EXACT else as_generator(rng)
    _check_values(sum_, method)

    xp, dtype = namespace_of_sum(sum_), sum_.dtype
    W = sum_.astype(computing_dtype(xp, dtype))
    try:
        if method == "factored":
            U, s, Vh = _factored(W, r, rtol)
        elif method == "lapack":
            U, s, Vh = _lapack(W, r, rtol)
        elif method == "randomized":
            U, s, Vh = randomized(W, r, oversample, iters, generator)
        elif method == "subspace":
            U, s, Vh = subspace(W, r, oversample, limit, residual_tol, generator)
        else:
            U, s, Vh = krylov(W, r, method, limit, residual_tol, generator)
    except RuntimeError as error:
        if not type(error).__name__.endswith("LinAlgError"):  # torch has one of its own
            raise
        raise LinAlgError(str(error)) from error
    return TruncatedSVD(xp.astype(U, dtype, copy=False), s, xp.astype(Vh, dtype, copy=False))


def _factored(A: LowRankSum, rank: int, rtol: float) -> _Triple:
    missing = (rank or 1) - A.rank
    if missing > 0:  # zero columns, which QR completes to an orthonormal basis
        A = A + LowRank._of(*(zeros_like((*x.shape[:-1], missing), x) for x in A.terms[0]))
    Us, Vs = [term.U for term in A.terms], [term.V for term in A.terms]
    times_left, core, times_right = _numba.compressed(Us, Vs, A.coefficients) or _compressed(A)
    P, s, Zh = svd_of(core)
    r = rank or rank_for(s, rtol)
    return times_left(P[..., :r]), s[..., :r], times_right(Zh[..., :r, :].mT).mT


def _compressed(A: LowRankSum) -> tuple[Callable[[Array], Array], Array, Callable[[Array], Array]]:
    require_finite(A=A)
    Qu, core, Qv = compressed(A)
    return Qu.__matmul__, core, Qv.__matmul__


def _lapack(A: LowRankSum, rank: int, rtol: float) -> _Triple:
    U, s, Vh = svd_of(A.to_dense())
    r = rank or rank_for(s, rtol)
    return U[..., :r], s[..., :r], Vh[..., :r, :]


def rank_for(s: Array, rtol: float) -> int:
    """The smallest r ≥ 1 with ‖(s_{r+1}, s_{r+2}, …)‖ ≤ rtol ‖s‖, for descending values s of shape (..., R)."""
    xp = namespace_of(s)
    largest = s[..., :1]
    squares = (s / xp.where(largest > 0, largest, xp.ones_like(largest))) ** 2
    tails = xp.flip(xp.cumulative_sum(xp.flip(squares, axis=-1), axis=-1), axis=-1)  # with 0, 1, … values cut off
    needed = xp.sum(xp.astype(tails > rtol**2 * tails[..., :1], xp.int64), axis=-1)
    return max(1, int(xp.max(needed))) if 0 not in needed.shape else 1


# --- checks of the arguments ---


def _checked_size(A: LowRankSum, rank: int | None, rtol: float | None) -> tuple[int, float]:
    """The rank, 0 where ``rtol`` decides, and ``rtol``."""
    if (rank is None) == (rtol is None):
        raise ValueError(f"`rank` is {rank} and `rtol` {rtol}: exactly one of the two is needed.")
    if rank is None:
        return 0, as_tolerance(rtol, "rtol")
    return as_rank(rank, A.shape), 0.0


def as_tolerance(value: Scalar, name: str) -> float:
    """``value`` as a float t with 0 ≤ t < 1."""
    number = as_real(value, name)
    if not 0 <= number < 1:
        raise ValueError(f"`{name}` is {value!r}; 0 ≤ {name} < 1 is needed.")
    return number


def _check_honoured(method: Method, **options: float | None) -> None:
    """An error for an option that the method has no use for."""
    for name, value in options.items():
        if value is not None and method in _METHODS and method not in _HONOURED_BY[name]:
            others = ", ".join(map(repr, _HONOURED_BY[name]))
            raise ValueError(
                f"`{name}` is {value}, of which `method` {method!r} makes no use: leave it out, or take {others}."
            )


def _check_values(A: LowRankSum, method: Method) -> None:
    if method == "factored":
        require_finite_coefficients("A", A)  # the factors are looked at where something is amiss
    else:
        require_finite(A=A)
    if method != "lapack" or A.shape[-2] < A.shape[-1]:
        check_adjoints("A", filter(is_operator, A.terms))


def _checked_method(A: LowRankSum, method: Method, rank: int) -> Method:
    """The method that ``"auto"`` stands for, or the one asked for if it can do it."""
    if method not in _METHODS:
        raise ValueError(f"`method` is {method!r}; it must be one of {', '.join(map(repr, _METHODS))}.")
    if method == "auto":
        return _cheapest(A, rank)
    if method == "factored" and not A.is_factored:
        raise ValueError("`method` is 'factored', but a term of `A` is not a LowRank: use 'lapack'.")
    if not rank and method not in _EXACT:
        raise ValueError(
            f"`rtol` needs all singular values, and `method` {method!r} finds `rank` of them: use 'lapack'."
        )
    if method in _KRYLOV:
        _check_krylov(A, method, rank)
    return method


def _check_krylov(A: LowRankSum, method: Method, rank: int) -> None:
    if len(A.shape) > 2 or not all(map(is_numpy_array, arrays_of(A).values())):
        raise ValueError(f"`method` is {method!r}, which takes one NumPy matrix: use 'subspace' or 'randomized'.")
    m, n = A.shape
    numbers = "complex" if A.dtype.kind == "c" else "real"
    most = min(m, n) - {"propack": 0, "lobpcg": 1, "arpack": 1 + (numbers == "complex")}[method]
    if rank > most:
        raise ValueError(
            f"`rank` is {rank}, but `method` {method!r} finds at most {most} singular values of a {numbers} {m} × {n} "
            "matrix: use 'lapack'."
        )


def _cheapest(A: LowRankSum, rank: int) -> Method:
    """The method that ``"auto"`` stands for, by the notes of :func:`truncated_svd`."""
    m, n = A.shape[-2:]
    if A.is_factored:
        R = sum(term.rank for term in A.terms)
        p, q = min(m, R), min(n, R)
        factored = 8 * R * (m * p + n * q) + _svd_flops(p, q)
        return "factored" if factored < 2 * m * n * R + _svd_flops(m, n) else "lapack"
    small = not rank or m * n <= 10**6 or 5 * rank >= min(m, n)
    return "lapack" if small or not any(map(is_operator, A.terms)) else "arpack"


def _svd_flops(m: int, n: int) -> int:
    return 6 * max(m, n) * min(m, n) ** 2 + 20 * min(m, n) ** 3

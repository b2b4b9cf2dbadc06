"""How far an approximation is from the truncated SVD, measured without forming either."""

from typing import Any, NamedTuple

from lorsum._arrays import (
    as_float,
    computing_dtype,
    conj,
    eps,
    eye_like,
    frobenius,
    is_finite,
    namespace_of,
    zeros_like,
)
from lorsum._checks import as_array, as_count, as_rank, common_namespace
from lorsum._decompositions import best_of_rank, column_space, svdvals, triangle
from lorsum._display import html_table, text_table
from lorsum._linear import check_addable
from lorsum._sums import in_double, require_finite, stacked
from lorsum.lowrank import LowRank, LowRankSum, MatrixLike, as_sum
from lorsum.svd import truncated_svd
from lorsum.typing import Array

__all__ = ["Gap", "History", "gap", "principal_angles"]


class Gap(NamedTuple):
    """How far an approximation X of W is from the best one of rank r, W_r; Frobenius norms.

    Attributes
    ----------
    error : float or array
        ‖W − X‖.
    optimal : float or array
        ‖W − W_r‖, the smallest error that rank r allows.
    excess : float or array
        error / optimal − 1; where ``optimal`` is zero to rounding, 0 or infinity, as the error is zero or not.
    distance : float or array
        ‖X − W_r‖ / ‖W_r‖; where W_r is zero, 0 or infinity, as X is zero or not.
    """

    error: Any
    optimal: Any
    excess: Any
    distance: Any


def gap(approx: LowRank, target: MatrixLike, rank: int | None = None) -> Gap:
    """Distance of a low-rank approximation from the best one, without forming either matrix.

    Parameters
    ----------
    approx : LowRank
        The approximation X, shape (..., m, n).
    target : LowRankSum, LowRank or array
        The matrix W, same shape.
    rank : int, optional
        Rank r of the competitor W_r, the truncated SVD of W. Default: ``approx.rank``.

    Returns
    -------
    Gap
        ``error``, ``optimal``, ``excess`` and ``distance``: floats, or arrays over the batch dimensions.

    Raises
    ------
    ValueError
        If the shapes differ, ``rank`` is out of range, or the input has a NaN or an infinity.
    TypeError
        If an argument is no matrix, or the two belong to different array libraries.
    OverflowError
        If products of factors leave the range of double precision.

    Notes
    -----
    QR of the stacked factors of W and X leaves an R × R core with all that is asked for, R the sum of the ranks, so
    the cost is O((m + n) R²). The difference is taken on the core before any norm: ‖W‖² − 2⟨W, X⟩ + ‖X‖² would
    cancel. The measurement is made in float64 where the array library has it, whatever the dtype of the factors. A
    dense or operator term is formed, of course. Optimality of W_r is the Eckart–Young–Mirsky theorem; where σ_r =
    σ_{r+1} it is not unique, and ``distance`` is to one of the best.

    Floats carry no gradient. Inside of ``jax.jit``, ``torch.compile`` and ``torch.func`` the numbers stay arrays, and
    checks on values are skipped. In JAX all four can be differentiated there, once, with respect to the factors of
    both; where a norm is zero, and has no derivative, that is 0. In PyTorch derivatives are those of the QR, which has
    them where the stacked factors of W and X have full rank: an X in the span of W has none. Elsewhere differentiate
    ``(W - X).to_dense()``.

    Examples
    --------
    >>> import numpy as np
    >>> from lorsum import LowRank, gap, truncated_svd
    >>> W = 3 * LowRank(np.eye(4, 1), np.eye(3, 1)) + LowRank(np.eye(4, 2), np.ones((3, 2)))
    >>> gap(truncated_svd(W, 1).to_lowrank(), W).excess < 1e-12
    True
    """
    W, X = as_sum(target, "target"), as_sum(approx, "approx")
    if X.shape != W.shape:
        raise ValueError(f"`approx` has shape {X.shape} and `target` {W.shape}: they must be equal.")
    check_addable(W, X)
    most = X.rank
    rank = as_rank(most if rank is None else rank, W.shape)
    require_finite(target=W, approx=X)

    W, X = _cores(in_double(W), in_double(X))
    if not is_finite(W, X):
        raise OverflowError("`target` or `approx` overflows double precision; scale both down.")
    xp = namespace_of(W)
    s, W_r = best_of_rank(W, rank)
    error, optimal = frobenius(W - X), frobenius(s[..., None, rank:])
    best = frobenius(s[..., None, :rank])
    rounding = 2 * max(W.shape[-2:]) * eps(xp, W.dtype) * frobenius(W)
    above = error - optimal
    if rank >= most:  # nothing is better than the best, but for rounding
        above = xp.clip(above, min=0.0)
    excess = _ratio(above, optimal, zero=error <= rounding, below=optimal <= rounding)
    apart = frobenius(X - W_r)
    distance = _ratio(apart, best, zero=apart == 0, below=best == 0)
    return Gap(*map(_plain, (error, optimal, excess, distance)))


def principal_angles(A: Array, B: Array) -> Array:
    """Principal angles between the column spaces of A and B, accurate also where they are tiny.

    Parameters
    ----------
    A, B : array, shape (..., n, p) and (..., n, q)
        Columns that span the subspaces. They may be dependent, or zero, to rounding.

    Returns
    -------
    array, shape (..., min(p, q))
        Angles in radians, descending, between 0 and π/2. Directions that dependent columns leave out are π/2 away: the
        dimensions are taken to be p and q.

    Raises
    ------
    ValueError
        If the columns have different lengths, or hold a NaN or an infinity.

    Notes
    -----
    Small angles come from their sines, the singular values of (I − AAᴴ)B, and large ones from their cosines [1]_: the
    arccosine alone bottoms out at 1e-8 in double precision.

    References
    ----------
    .. [1] A. V. Knyazev, M. E. Argentati, Principal angles between subspaces in an A-based scalar product, SIAM J. Sci.
       Comput. 23(6), 2002.

    Examples
    --------
    >>> import numpy as np
    >>> principal_angles(np.array([[1.0], [0.0]]), np.array([[1.0], [1e-12]]))
    array([1.e-12])
    """
    A, B = as_array(A, "A"), as_array(B, "B")
    xp = common_namespace(A=A, B=B)
    dtype = computing_dtype(xp, xp.result_type(A.dtype, B.dtype))
    A, B = (xp.astype(X, dtype, copy=False) for X in (A, B))
    if A.shape[-2] != B.shape[-2]:
        raise ValueError(f"`A` has columns of length {A.shape[-2]} and `B` {B.shape[-2]}: they must be equal.")
    for name, array in (("A", A), ("B", B)):
        if not is_finite(array):
            raise ValueError(f"`{name}` has a NaN or an infinity.")
    if A.shape[-1] < B.shape[-1]:
        A, B = B, A
    if B.shape[-1] == 0:
        return zeros_like((*B.shape[:-2], 0), xp.abs(B))
    A, B = column_space(A), column_space(B)
    inner = conj(A).mT @ B
    cosines = svdvals(inner)
    # A direction that B lacks is a zero column here, and at a right angle: one more row says so to the sines
    lacking = xp.all(B == 0, axis=-2, keepdims=True)
    beside = xp.astype(lacking, B.dtype) * eye_like(B.shape[-1], B)
    sines = xp.flip(svdvals(xp.concat([B - A @ inner, beside], axis=-2)), axis=-1)
    angles = xp.where(cosines**2 < 0.5, xp.acos(xp.clip(cosines, max=1.0)), xp.asin(xp.clip(sines, max=1.0)))
    return xp.flip(angles, axis=-1)


class History:
    """A callback for :func:`lorsum.lorsum` that records what a convergence plot needs.

    It prints as a table, draws itself with :meth:`plot` and exports with :meth:`to_dict`. Each quantity is a list with
    one entry an iteration, the start first. A history that is used again starts anew.

    Parameters
    ----------
    rank : int, optional
        Rank of the truncated SVD to compare with; default: the iterates' own.

    Attributes
    ----------
    iteration : list of int
        0 for the start, then 1, 2, …
    error, optimal, excess, distance : list of float
        As in :class:`Gap`.
    angle : list of float
        Largest principal angle, in radians, between the iterate's and the optimal subspace, the worse of left and
        right. An iterate that lacks a direction, such as a zero factor of LoRA, is π/2 away; where the target has fewer
        directions than the rank, those it has are looked for.
    condition : list of float
        2-norm condition number of the factors, the worse of the two.
    passes : list of int
        Products with the target so far, each of which reads all of its factors once.

    Examples
    --------
    >>> import numpy as np
    >>> from lorsum import History, LowRank, lorsum
    >>> rng = np.random.default_rng(0)
    >>> W, G = (LowRank(rng.normal(size=(30, 3)), rng.normal(size=(20, 3))) for _ in range(2))
    >>> history = History()
    >>> X = lorsum(W - 0.1 * G, iters=3, callback=history)
    >>> history.iteration, history.passes
    ([0, 1, 2, 3], [0, 2, 4, 6])
    >>> history.excess[3] < history.excess[1]
    True
    """

    columns = ("iteration", "error", "optimal", "excess", "distance", "angle", "condition", "passes")

    def __init__(self, rank: int | None = None) -> None:
        self.rank = None if rank is None else as_count(rank, "rank", least=1)
        self._start()

    def _start(self) -> None:
        self.iteration: list[int] = []
        self.error: list[float] = []
        self.optimal: list[float] = []
        self.excess: list[float] = []
        self.distance: list[float] = []
        self.angle: list[float] = []
        self.condition: list[float] = []
        self.passes: list[int] = []
        self._target: Any = None
        self._best: Any = None

    def __call__(self, iterate: Any) -> None:
        """Record one :class:`lorsum.Iterate`."""
        if iterate.iteration == 0:
            self._start()
        X, target = iterate.approx, iterate.target
        if X.U.ndim > 2:
            raise ValueError("`callback` is a History, which follows one matrix; the target is a batch.")
        rank = self.rank or X.rank
        if self._target is not target:
            self._target, self._best = target, truncated_svd(in_double(target), rank)
        U, V = in_double(as_sum(X)).terms[0]
        measured = gap(X, target, rank)
        present = _above_rounding(self._best.s, target.shape)
        angles = [_largest_angle(best[:, :present], X) for best, X in ((self._best.U, U), (self._best.Vh.mT, V))]
        values = {
            "iteration": iterate.iteration,
            **measured._asdict(),
            "angle": max(angles),
            "condition": max(_condition(U), _condition(V)),
            "passes": iterate.passes,
        }
        for column in self.columns:
            getattr(self, column).append(values[column])

    def __len__(self) -> int:
        return len(self.iteration)

    def to_dict(self) -> dict[str, list[Any]]:
        """All that was recorded, as a dict of lists that :mod:`json` can write."""
        return {column: list(getattr(self, column)) for column in self.columns}

    def __bool__(self) -> bool:
        return True  # also before the first iteration: a callback is there or not, whatever it has recorded

    def plot(self, axes: Any = None, **style: Any) -> Any:
        """Draw the excess and the largest angle against the iteration, on a logarithmic scale.

        Values of rounding size, which a logarithmic scale would stretch over most of the figure, are left out.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Where to draw; default: a new figure.
        **style
            Passed on to ``Axes.semilogy``; ``label`` stands before the names of the two curves.

        Returns
        -------
        matplotlib Axes
        """
        if axes is None:
            import matplotlib.pyplot as plt

            axes = plt.figure(figsize=(6, 4), layout="constrained").gca()
        label = style.pop("label", "")
        for values, name, line in ((self.excess, "excess over the SVD", "-"), (self.angle, "largest angle", "--")):
            shown = [value if value > 1e-15 else float("nan") for value in values]
            options = {"marker": "o", "linestyle": line, "label": f"{label} {name}".strip(), **style}
            (curve,) = axes.semilogy(self.iteration, shown, **options)
            style.setdefault("color", curve.get_color())
        axes.set_xlabel("iteration K")
        axes.grid(alpha=0.3)
        axes.legend()
        return axes

    def _rows(self) -> list[tuple[Any, ...]]:
        return list(zip(*(getattr(self, column) for column in self.columns), strict=True))

    def __repr__(self) -> str:
        return text_table(self.columns, self._rows())

    def _repr_html_(self) -> str:
        return html_table("LoRSum, iteration by iteration", self.columns, self._rows())


def _cores(W: LowRankSum, X: LowRankSum) -> tuple[Array, Array]:
    """Two cores with the norms, differences and singular values of W and X: both in the basis of all their factors."""
    if not (W.is_factored and X.is_factored):
        return W.to_dense(), X.to_dense()
    U, V = stacked(W + X)
    Ru, Rv = triangle(U), triangle(V)
    k = sum(term.rank for term in W.terms)
    return Ru[..., :k] @ Rv[..., :k].mT, Ru[..., k:] @ Rv[..., k:].mT


def _ratio(above: Array, below_: Array, *, zero: Array, below: Array) -> Array:
    """above / below_, with 0 and infinity where the denominator is zero."""
    xp = namespace_of(below_)
    safe = xp.where(below, xp.ones_like(below_), below_)
    limit = xp.where(zero, xp.zeros_like(below_), xp.full_like(below_, float("inf")))
    return xp.where(below, limit, above / safe)


def _plain(x: Array) -> Array:
    return as_float(x) if x.ndim == 0 else x


def _above_rounding(s: Array, shape: tuple[int, ...]) -> int:
    """How many singular values of a matrix of that shape are not zero to rounding."""
    return sum(value > max(shape) * eps(namespace_of(s), s.dtype) * as_float(s[0]) for value in map(as_float, s))


def _largest_angle(A: Array, B: Array) -> float:
    return as_float(principal_angles(A, B)[0]) if A.shape[-1] else 0.0


def _condition(A: Array) -> float:
    s = svdvals(A)
    largest, smallest = as_float(s[0]), as_float(s[-1])
    return largest / smallest if smallest > 0 else float("inf")  # of Python's numbers, which overflow in silence

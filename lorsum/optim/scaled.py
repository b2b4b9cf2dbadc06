"""Scaled OPLoRA: the step is measured, and rounded, in a metric that is estimated from the gradients (appendix B)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from lorsum._arrays import as_generator, namespace_of, normal, zeros_like
from lorsum.alternating import lorsum
from lorsum.lowrank import LowRank, as_sum
from lorsum.metrics import Damped, Diagonal
from lorsum.optim._options import check_options, descending, lr_at
from lorsum.optim.factors import checked_gradient, leaves
from lorsum.optim.oplora import OPLoRA, require_adapter
from lorsum.optim.rule import Reads
from lorsum.typing import RNG, Array, Scalar


class Scale(Protocol):
    """How a metric is estimated: what :class:`ScaledOPLoRA` asks of its ``scale``.

    One that needs the rows of S and X, so that ``update`` gets no gradient but a ``LowRank(Sᵀ, Xᵀ)``, says so by
    ``reads_rows = True``.
    """

    def init(self, W: Any, rng: Any) -> Any:
        """The estimates before the first step."""

    def update(self, D: Any, G: Any) -> Any:
        """The estimates after a gradient."""

    def metric(self, D: Any, count: Any) -> Any:
        """The pair (M_U, M_V) after ``count`` updates."""


class ScaledOPLoRAState(NamedTuple):
    """Steps done, the momentum M (None without momentum), and the estimates of the scale."""

    count: Any
    M: LowRank | None
    D: Any


@dataclass(frozen=True, kw_only=True)
class _LowRankScale:
    """Running averages D ← LoRSum(βD + (1 − β) new) of two positive semidefinite matrices; M = (D + δI)^γ."""

    power: ClassVar[float]
    moments: ClassVar[Callable[..., Any]]

    rank: int = 8
    smoothing: Scalar = 0.95
    damping: Scalar = 1e-3
    iters: int = 1

    def __post_init__(self) -> None:
        check_options(self)

    def init(self, W: LowRank, rng: RNG) -> tuple[Any, Any]:
        """Zero, with one random factor each: two zero factors would stay zero for ever."""
        W = LowRank(*leaves(W))  # in the precision to compute in

        def zero(factor: Array) -> LowRank:
            *batch, d, _ = factor.shape
            shape = (*batch, d, min(self.rank, d))
            return LowRank(zeros_like(shape, factor), normal(shape, factor, rng))

        return zero(W.U), zero(W.V)

    def update(self, D: tuple[Any, Any], G: Any) -> tuple[Any, ...]:
        """Both averages, after a gradient."""
        beta = self.smoothing
        return tuple(
            lorsum(beta * old + (1 - beta) * new, iters=self.iters, gauge="balanced")
            for old, new in zip(D, self.moments(G), strict=True)
        )

    def metric(self, D: tuple[Any, Any], count: Any) -> tuple[Any, ...]:
        """The averages without their bias towards the zero they started from, damped."""
        unbiased = 1 - self.smoothing**count
        return tuple(Damped(LowRank(A.U / unbiased, A.V), self.damping, self.power) for A in D)


@dataclass(frozen=True, kw_only=True)
class KFAC(_LowRankScale):
    """K-FAC's metric: running averages of SᵀS / B and XᵀX / B (algorithm 1, line 8).

    Parameters
    ----------
    rank : int
        Rank of the averages.
    smoothing : float
        β in [0, 1).
    damping : float
        δ > 0, added to the averages' diagonals. Outside the directions that are kept a step is scaled by 1/δ on each
        side, so that ``lr`` must fall with δ.
    iters : int
        Iterations of LoRSum for the averages.
    output_scale : float
        What S must be multiplied by to hold the gradients of single examples: B where the loss is a mean over B.

    References
    ----------
    J. Martens, R. Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, arXiv 1503.05671.
    """

    power = 1.0
    reads_rows = True

    output_scale: Scalar = 1.0

    def moments(self, G: Any) -> tuple[Any, Any]:
        """SᵀS / B and XᵀX / B of a gradient Sᵀ X over B rows."""
        if not isinstance(G, LowRank):
            raise TypeError(f"`G` is a {type(G).__name__}; K-FAC needs S and X, a LowRank(Sᵀ, Xᵀ).")
        return (self.output_scale**2 / G.rank) * LowRank(G.U, G.U), (1 / G.rank) * LowRank(G.V, G.V)


@dataclass(frozen=True, kw_only=True)
class Shampoo(_LowRankScale):
    """Shampoo's metric: running averages of G Gᵀ and GᵀG, to the power 1/4.

    Parameters
    ----------
    rank, smoothing, damping, iters
        As for :class:`KFAC`.

    References
    ----------
    V. Gupta, T. Koren, Y. Singer, Shampoo: preconditioned stochastic tensor optimization, arXiv 1802.09568.
    """

    power = 0.25

    def moments(self, G: Any) -> tuple[Any, Any]:
        """G Gᵀ and GᵀG, from G's factors."""
        if not isinstance(G, LowRank):
            G = as_sum(G, "G").to_dense()
            return as_sum(G @ G.mT), as_sum(G.mT @ G)
        return LowRank(G.U @ (G.V.mT @ G.V), G.U), LowRank(G.V @ (G.U.mT @ G.U), G.V)


@dataclass(frozen=True, kw_only=True)
class DiagonalScale:
    """A diagonal metric: running averages of the squared norms of G's rows and columns, to a fractional power.

    Parameters
    ----------
    power : float
        γ; 1/4 on both sides divides a gradient by the root of a second moment, as Adafactor does.
    smoothing, damping
        As for :class:`KFAC`.
    """

    power: Scalar = 0.25
    smoothing: Scalar = 0.95
    damping: Scalar = 1e-8

    def __post_init__(self) -> None:
        check_options(self)

    def init(self, W: LowRank, rng: RNG) -> tuple[Any, Any]:
        """Zeros; nothing here is random."""
        return tuple(0 * factor[..., 0] for factor in leaves(W))

    def update(self, D: tuple[Any, Any], G: Any) -> tuple[Any, ...]:
        """Both averages, after a gradient."""
        beta = self.smoothing
        return tuple(beta * old + (1 - beta) * new for old, new in zip(D, _squared_norms(G), strict=True))

    def metric(self, D: tuple[Any, Any], count: Any) -> tuple[Any, ...]:
        """The averages without their bias towards zero, damped."""
        unbiased = 1 - self.smoothing**count
        return tuple(Diagonal((d / unbiased + self.damping) ** self.power) for d in D)


def _squared_norms(G: Any) -> tuple[Array, Array]:
    """Of G's rows and of its columns: the diagonals of G Gᵀ and GᵀG."""
    if isinstance(G, LowRank):
        U, V = G
        xp = namespace_of(U)
        return xp.sum(U @ (V.mT @ V) * U, axis=-1), xp.sum(V @ (U.mT @ U) * V, axis=-1)
    G = as_sum(G, "G").to_dense()
    xp = namespace_of(G)
    return xp.sum(G * G, axis=-1), xp.sum(G * G, axis=-2)


@dataclass(frozen=True, kw_only=True)
class ScaledOPLoRA(OPLoRA):
    """OPLoRA in a metric: ``W ← LoRSum(W − η M_U⁻¹ (G + αM) M_V⁻¹)``, the best approximation in ‖M_U^½ (·) M_V^½‖.

    The momentum M is a gradient and is kept as in :class:`OPLoRA`.

    Parameters
    ----------
    lr, momentum, momentum_rank, iters, reg, first, simultaneous, method, weight_decay, maximize
        As for :class:`OPLoRA`: the decay is not scaled by the metric.
    scale : Scale, optional
        :class:`KFAC`, :class:`Shampoo`, :class:`DiagonalScale` or your own; default: the identity, which is OPLoRA.

    Notes
    -----
    The averages start at zero and are divided by 1 − βᵗ, as Adam's; the paper starts them at a random matrix whose
    expectation is the identity.

    References
    ----------
    A. J. Almansoori et al., Faster Than SVD, Smarter Than SGD: The OPLoRA Alternating Update, arXiv 2509.19977,
    algorithm 1 and appendix B.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> W = LowRank(rng.normal(size=(6, 2)), rng.normal(size=(5, 2)))
    >>> S, X = rng.normal(size=(8, 6)), rng.normal(size=(8, 5))
    >>> rule = ScaledOPLoRA(lr=0.1, momentum=0.9, scale=KFAC(rank=3, damping=0.1))
    >>> W, state = rule.step(W, LowRank(S.T, X.T), rule.init(W, rng=0))
    >>> W, state.D[1]
    (LowRank(6 × 5, rank 2, float64), LowRank(5 × 5, rank 3, float64))
    """

    scale: Scale | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and not hasattr(self.scale, "metric"):
            raise TypeError(f"`scale` is {self.scale!r}; KFAC(), Shampoo(), DiagonalScale() or None is needed.")

    def reads(self, rank: int) -> Reads:
        """What OPLoRA reads, or what the scale does: rows of S and X for K-FAC, all of G for the others."""
        if self.scale is None or self.method == "coefficients":
            return super().reads(rank)
        return Reads("rows" if getattr(self.scale, "reads_rows", False) else "matrix")

    def init(self, W: LowRank, *, rng: RNG = 0) -> ScaledOPLoRAState:
        """State before the first step."""
        rng = as_generator(rng)  # one stream of random numbers for the momentum and the scale
        count, M = super().init(W, rng=rng)
        return ScaledOPLoRAState(count, M, None if self.scale is None else self.scale.init(W, rng))

    def step(self, W: LowRank, G: Any, state: ScaledOPLoRAState) -> tuple[LowRank, ScaledOPLoRAState]:
        """``(W, state)`` after a step along G, the gradient with respect to the matrix W."""
        require_adapter(W)
        count, metric, D, G = state.count + 1, None, state.D, descending(G, self.maximize)
        if self.scale is not None:
            G = checked_gradient(W, G)
            D = self.scale.update(D, G.terms[0] if len(G.terms) == 1 and G.coefficients == (1,) else G)
            metric = self.scale.metric(D, count)
        W, M = self._moved(W, G, state.M, lr_at(self.lr, state.count), metric)
        return W, ScaledOPLoRAState(count, M, D)

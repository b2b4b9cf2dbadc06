"""OPLoRA: the step W − ηG − ηαM, rounded to the adapter's rank by LoRSum."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lorsum._arrays import namespace_of, normal, zeros_like
from lorsum._decompositions import column_space
from lorsum.alternating import lorsums
from lorsum.alternating.problem import Problem, check_choices, checked
from lorsum.lowrank import LowRank, as_sum
from lorsum.optim._options import check_options, decayed, descending, is_used, lr_at
from lorsum.optim.factors import checked_gradient, leaves
from lorsum.optim.rule import Reads, Schedule
from lorsum.typing import RNG, Factor, Scalar


class OPLoRAState(NamedTuple):
    """Steps done, and the momentum M as a low-rank matrix (None without momentum)."""

    count: Any
    M: LowRank | None


@dataclass(frozen=True, kw_only=True)
class OPLoRA:
    """Optimally preconditioned LoRA (algorithm 1 of [1]_).

    ``W ← LoRSum(W − ηG − ηαM)``, then ``M ← LoRSum(αM + G)``: the step is taken with the whole momentum, and the
    momentum rounded to its own rank afterwards (equation 9).

    Parameters
    ----------
    lr : float or callable
        Learning rate η, or a function of the step.
    momentum : float
        α in [0, 1).
    momentum_rank : int, optional
        Rank of M; default: the adapter's. A larger one follows SVDLoRA more closely.
    iters : int
        The number K of alternating iterations, for W and for M.
    reg : float
        λ of the proximal term for W, before it is multiplied by the learning rate. M has none, as in equation 9.
    first : {"U", "V"}
        The factor that is updated first.
    simultaneous : bool
        Update both factors at once, which with one iteration is preconditioned LoRA.
    method : str
        As for :func:`lorsum.lorsum`.
    weight_decay : float
        Decoupled, of the product: the coefficient of W in the target is 1 − η · weight_decay in place of 1. M is not
        concerned.
    maximize : bool
        Ascend: a step along −G.

    Notes
    -----
    M is balanced after each update, M = (U√s)(V√s)ᵀ, and has no λ. Not balanced, its factors drift apart in the paper's
    mini-batch task with K = 1: without λ to norms of 2e11 and 4e-9; with λ on M too, until it outweighs the smaller
    one's Gram matrix, and the median excess climbs back from 59 at epoch 50 to 1.6e3 at epoch 100 (balanced: 15).

    References
    ----------
    .. [1] A. J. Almansoori et al., Faster Than SVD, Smarter Than SGD: The OPLoRA Alternating Update, arXiv 2509.19977.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> W = LowRank(rng.normal(size=(6, 2)), rng.normal(size=(5, 2)))
    >>> G = LowRank(rng.normal(size=(6, 3)), rng.normal(size=(5, 3)))
    >>> rule = OPLoRA(lr=0.1, momentum=0.9)
    >>> W, state = rule.step(W, G, rule.init(W, rng=0))
    >>> W, state.M
    (LowRank(6 × 5, rank 2, float64), LowRank(6 × 5, rank 2, float64))
    """

    lr: Scalar | Schedule
    momentum: Scalar = 0.0
    momentum_rank: int | None = None
    iters: int = 1
    reg: Scalar = 1e-3
    first: Factor = "U"
    simultaneous: bool = False
    method: Literal["auto", "direct", "coefficients"] = "auto"
    weight_decay: Scalar = 0.0
    maximize: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        check_choices(first=self.first, method=self.method)

    def reads(self, rank: int) -> Reads:
        """Of G what the half-steps multiply it by: K times the factors of W, and with momentum those of M."""
        if self.method == "coefficients":  # compresses stacked factors, which G must have
            return Reads("rows")
        return Reads("products", self.iters * (rank + is_used(self.momentum) * (self.momentum_rank or rank)))

    def init(self, W: LowRank, *, rng: RNG = 0) -> Any:
        """State before the first step. M = 0, with one random factor: two zero factors would stay zero for ever."""
        require_adapter(W)
        if not is_used(self.momentum):
            return OPLoRAState(0, None)
        *batch, m, n = W.shape
        rank = min(self.momentum_rank or W.rank, m, n)
        U, V = leaves(W)
        return OPLoRAState(0, LowRank(zeros_like((*batch, m, rank), U), normal((*batch, n, rank), V, rng)))

    def step(self, W: LowRank, G: Any, state: Any) -> tuple[LowRank, Any]:
        """``(W, state)`` after a step along G, the gradient with respect to the matrix W."""
        require_adapter(W)
        W, M = self._moved(W, descending(G, self.maximize), state.M, lr_at(self.lr, state.count))
        return W, OPLoRAState(state.count + 1, M)

    def _moved(
        self, W: LowRank, G: Any, M: LowRank | None, lr: Scalar, metric: Any = None
    ) -> tuple[LowRank, LowRank | None]:
        """W and M after a step (algorithm 1, lines 16 to 20); M is None without momentum."""
        G, options = checked_gradient(W, G), {"reg": lr * self.reg, "metric": metric}
        target = decayed(W, lr, self.weight_decay) - lr * G
        if M is None:
            (stepped,) = self._rounded((target, options))
            return stepped.astype(W.dtype), None
        target, momentum = target - lr * self.momentum * M, self.momentum * M + G
        stepped, rounded = self._rounded((target, options), (momentum, {"gauge": "balanced"}))
        return stepped.astype(W.dtype), rounded.astype(M.dtype)

    def _rounded(self, *problems: tuple[Any, dict[str, Any]]) -> list[LowRank]:
        """LoRSum of targets, each with options of its own beside this rule's."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in ("iters", "first", "simultaneous", "method")}
        return lorsums([checked(Problem(target, **own, **shared)) for target, own in problems])


@dataclass(frozen=True, kw_only=True)
class ProjectedOPLoRA(OPLoRA):
    """OPLoRA with LoFT's momentum, projected at each step on what the adapter's factors can express.

    ``W ← LoRSum(W − ηG − ηα P_W(M))``, then ``M ← P_W(αM + G)``, where P_W(A) = P_U A + A P_V − P_U A P_V, P_U and
    P_V the orthogonal projections on the columns of U and V: the tangent space of the rank-r matrices at W.

    Parameters
    ----------
    lr, momentum, iters, reg, first, simultaneous, method, weight_decay, maximize
        As for :class:`OPLoRA`; M has rank 2r, so ``momentum_rank`` must stay None.

    Notes
    -----
    The paper writes the projection for each factor on its own, M_U V_tᵀ = (G + αM_{t−1}) P_V and the same for U; the
    tangent projection is the one matrix that has both, and needs no earlier iterates [1]_.

    References
    ----------
    .. [1] N. Tastan et al., LoFT: Low-rank adaptation that behaves like full fine-tuning, arXiv 2505.21289.

    Examples
    --------
    >>> import numpy as np
    >>> W = LowRank(np.eye(6, 1), np.eye(5, 1))
    >>> rule = ProjectedOPLoRA(lr=0.1, momentum=0.9)
    >>> _, state = rule.step(W, np.ones((6, 5)), rule.init(W))
    >>> int(np.count_nonzero(state.M.to_dense().round(8)))  # the first row and the first column
    10
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum_rank is not None:
            raise ValueError(f"`momentum_rank` is {self.momentum_rank}; a projected M has rank 2r, leave it None.")

    def reads(self, rank: int) -> Reads:
        """Of G what the half-steps multiply it by, and with momentum what projects it."""
        if self.method == "coefficients":
            return Reads("rows")
        return Reads("products", self.iters * rank + is_used(self.momentum) * rank)

    def init(self, W: LowRank, *, rng: RNG = 0) -> Any:
        """State before the first step. ``rng`` is not used: nothing here is random."""
        require_adapter(W)
        xp = namespace_of(W.U)
        zeros = [xp.concat([xp.zeros_like(factor)] * 2, axis=-1) for factor in leaves(W)]
        return OPLoRAState(0, LowRank(*zeros) if is_used(self.momentum) else None)

    def _moved(
        self, W: LowRank, G: Any, M: LowRank | None, lr: Scalar, metric: Any = None
    ) -> tuple[LowRank, LowRank | None]:
        """W and M after a step; M is None without momentum."""
        if M is None:
            return super()._moved(W, G, M, lr, metric)
        G = checked_gradient(W, G)
        target = decayed(W, lr, self.weight_decay) - lr * G - lr * self.momentum * tangent_projection(W, M)
        (stepped,) = self._rounded((target, {"reg": lr * self.reg, "metric": metric}))
        return stepped.astype(W.dtype), tangent_projection(W, self.momentum * M + G).astype(M.dtype)


def tangent_projection(W: LowRank, A: Any) -> LowRank:
    """P_U A + A P_V − P_U A P_V as a matrix of rank 2r: what a first-order change of U and V can express."""
    xp, A = namespace_of(W.U), as_sum(A, "A")
    Qu, Qv = map(column_space, leaves(W))
    left, right = A.T @ Qu, A @ Qv
    right = right - Qu @ (Qu.mT @ right)
    return LowRank(xp.concat([Qu, right], axis=-1), xp.concat([left, Qv], axis=-1))


def require_adapter(W: Any) -> None:
    """An error unless W is a low-rank matrix."""
    if not isinstance(W, LowRank):
        raise TypeError(f"`W` is a {type(W).__name__}; this rule trains a LowRank. SGD and AdamW take other arrays.")

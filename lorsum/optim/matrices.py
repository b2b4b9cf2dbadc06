"""Rules that keep m × n matrices: what LoRA avoids, and what OPLoRA is compared with."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from lorsum._arrays import computing_dtype, namespace_of
from lorsum.lowrank import LowRank, as_sum
from lorsum.optim._options import check_options, decayed, descending, is_used, lr_at
from lorsum.optim.factors import SGD, SGDState, checked_gradient
from lorsum.optim.oplora import require_adapter
from lorsum.optim.rule import Reads, Schedule
from lorsum.svd import truncated_svd
from lorsum.typing import RNG, Scalar


class SVDLoRAState(NamedTuple):
    """Steps done, and the momentum as a dense matrix (None without momentum)."""

    count: Any
    M: Any


@dataclass(frozen=True, kw_only=True)
class SVDLoRA:
    """The step that OPLoRA approximates: the truncated SVD of the full step, with a full-rank momentum.

    ``M ← αM + G;  W ← SVD_r((1 − η · weight_decay) W − ηM)``. Without momentum nothing m × n is formed.

    Parameters
    ----------
    lr, momentum, weight_decay, maximize
        As for :class:`OPLoRA`.

    Examples
    --------
    >>> import numpy as np
    >>> from lorsum import LowRank
    >>> W, rule = LowRank(np.zeros((2, 1)), np.zeros((2, 1))), SVDLoRA(lr=0.5)
    >>> G = 2 * (W.to_dense() - np.diag([2.0, 1.0]))
    >>> rule.step(W, G, rule.init(W))[0].to_dense()
    array([[2., 0.],
           [0., 0.]])
    """

    lr: Scalar | Schedule
    momentum: Scalar = 0.0
    weight_decay: Scalar = 0.0
    maximize: bool = False

    def __post_init__(self) -> None:
        check_options(self)

    def reads(self, rank: int) -> Reads:
        """All of G."""
        return Reads("matrix")

    def init(self, W: LowRank, *, rng: RNG = 0) -> SVDLoRAState:
        """State before the first step. ``rng`` is not used: nothing here is random."""
        require_adapter(W)
        W = W.astype(computing_dtype(namespace_of(W.U), W.dtype))
        return SVDLoRAState(0, 0 * W.to_dense() if is_used(self.momentum) else None)

    def step(self, W: LowRank, G: Any, state: SVDLoRAState) -> tuple[LowRank, SVDLoRAState]:
        """``(W, state)`` after a step along G, the gradient with respect to the matrix W."""
        require_adapter(W)
        lr, M = lr_at(self.lr, state.count), checked_gradient(W, descending(G, self.maximize))
        if state.M is not None:
            M = as_sum(self.momentum * state.M + M.to_dense()).astype(state.M.dtype)
        stepped = truncated_svd(decayed(W, lr, self.weight_decay) - lr * M, W.rank).to_lowrank().astype(W.dtype)
        return stepped, SVDLoRAState(state.count + 1, None if state.M is None else M.to_dense())


@dataclass(frozen=True, kw_only=True)
class Full(SGD):
    """Full training: gradient descent with momentum on the dense matrix, the upper bound.

    A low-rank W is made dense at the first step and stays so.

    Parameters
    ----------
    lr, momentum, weight_decay, maximize
        As for :class:`SGD`.

    Examples
    --------
    >>> import numpy as np
    >>> rule = Full(lr=0.5)
    >>> W, state = rule.step(np.zeros((2, 2)), np.eye(2), rule.init(np.zeros((2, 2))))
    >>> W
    array([[-0.5,  0. ],
           [ 0. , -0.5]])
    """

    def reads(self, rank: int) -> Reads:
        """All of G."""
        return Reads("matrix")

    def init(self, W: Any, *, rng: RNG = 0) -> SGDState:
        """State before the first step. ``rng`` is not used: nothing here is random."""
        return super().init(_dense(W), rng=rng)

    def step(self, W: Any, G: Any, state: SGDState) -> tuple[Any, SGDState]:
        """``(W, state)`` after a step along G, the gradient with respect to the matrix W."""
        return super().step(_dense(W), G, state)


def _dense(W: Any) -> Any:
    return W.to_dense() if hasattr(W, "to_dense") else W

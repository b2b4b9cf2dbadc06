"""A rule that is not lorsum's, as a user writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from lorsum import LowRank, optim


class Momentum(NamedTuple):
    count: Any
    M: Any


@dataclass(frozen=True, kw_only=True)
class OneSided:
    """Gradient descent with momentum on U alone; V keeps its orthogonal columns."""

    lr: float
    momentum: float = 0.5

    def init(self, W, *, rng=None):
        return Momentum(0, 0 * W.U)

    def step(self, W, G, state):
        M = self.momentum * state.M + G @ W.V
        return LowRank(W.U - self.lr * M, W.V), Momentum(state.count + 1, M)


class ThriftyOneSided(OneSided):
    def reads(self, rank):
        return optim.Reads("products", rank)

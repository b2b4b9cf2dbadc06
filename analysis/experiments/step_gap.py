"""How far a step lands from the truncated SVD of what it approximates."""

from typing import NamedTuple

from lorsum import LowRank, LowRankSum, gap
from lorsum.typing import Array

__all__ = ["StepGap", "step_gap"]


class StepGap(NamedTuple):
    """The two measures of `step_gap`."""

    excess: float
    missed: float


def step_gap(stepped: LowRank, target: LowRankSum | Array, W: LowRank) -> StepGap:
    """How far a step from W lands from the truncated SVD T_r of what it was to reach.

    Returns
    -------
    StepGap
        ``excess`` = ‖target − W⁺‖ / ‖target − T_r‖ − 1, and ``missed`` = ‖W⁺ − T_r‖ / ‖W − T_r‖, the share of the way
        that was missed: 0 lands on the truncated SVD, 1 is as far from it as not to move at all.
    """
    after, before = gap(stepped, target), gap(W, target)
    return StepGap(after.excess, after.distance / before.distance if before.distance else 0.0)

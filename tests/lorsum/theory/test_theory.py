import numpy as np
import pytest
import scipy.linalg
from reference import dense
from strategies import normal_lowrank, with_spectrum

from lorsum import gap, lorsum
from lorsum.theory import contraction_rate


@pytest.mark.parametrize(
    ("s", "rank", "rate"),
    [([4, 2, 1], 2, 0.25), ([4, 2, 1], 1, 0.25), ([3, 3], 1, 1), ([2, 1], 2, 0), ([1, 0, 0], 1, 0), ([5], 1, 0)],
)
def test_the_rate_is_the_squared_ratio_of_singular_values(s, rank, rate):
    assert contraction_rate(s, rank) == rate


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_it_is_what_one_iteration_measures(rank):
    rng = np.random.default_rng(0)
    s = np.array([8.0, 5, 3, 2, 1, 0.5])
    A = with_spectrum(rng, 12, 10, s)
    init = normal_lowrank(rng, 12, 10, rank)
    dominant = scipy.linalg.svd(dense(A))[0][:, :rank]
    before, after = (lorsum(A, init=init, iters=k) for k in (9, 10))
    tangents = [np.tan(scipy.linalg.subspace_angles(X.U, dominant)[0]) for X in (before, after)]
    assert tangents[1] / tangents[0] == pytest.approx(contraction_rate(s, rank), rel=0.02)
    # the excess error is quadratic in the angle
    assert gap(after, A).excess / gap(before, A).excess == pytest.approx(contraction_rate(s, rank) ** 2, rel=0.05)


@pytest.mark.parametrize(
    ("s", "rank", "kind", "message"),
    [
        ([1.0, 2.0], 1, ValueError, "`s` must be"),
        ([1.0, -1.0], 1, ValueError, "`s` must be"),
        ([np.nan, 1.0], 1, ValueError, "`s` must be"),
        ([np.inf, 1.0], 1, ValueError, "`s` must be"),
        ([[2.0, 1.0]], 1, ValueError, "`s` must be"),
        ([2.0, 1.0], 3, ValueError, "`rank` is 3, above the 2"),
        ([2.0, 1.0], 0, ValueError, "`rank` is 0"),
        ([2.0, 1.0], 1.0, TypeError, "`rank` is 1.0"),
        ([1.0, 0.0, 0.0], 2, ValueError, "`s` is zero at position `rank` = 2"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused(s, rank, kind, message):
    with pytest.raises(kind, match=message):
        contraction_rate(s, rank)

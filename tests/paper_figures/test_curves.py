"""Medians over the seeds and their intervals."""

import numpy as np
import pytest

from paper_figures.curves import median_interval


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_interval_of_few_seeds_is_their_range(seeds):
    values = np.random.default_rng(seeds).normal(size=(seeds, 4))
    median, low, high = median_interval(values)
    np.testing.assert_array_equal([median, low, high], [np.median(values, 0), values.min(0), values.max(0)])


def test_the_interval_of_many_seeds_is_narrower_and_reproducible():
    values = np.random.default_rng(0).normal(size=50)
    median, low, high = median_interval(values)
    assert values.min() < low < median < high < values.max()
    assert median_interval(values) == (median, low, high)

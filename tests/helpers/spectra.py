"""Hypothesis strategy: singular values of every kind."""

import numpy as np
from hypothesis import strategies as st


def spectra(rng, k):
    """Even, decaying, clustered, tied and rank-deficient ones."""
    return st.sampled_from(
        [
            rng.uniform(0.05, 1, k),
            np.geomspace(1, 1e-3, k),
            1 / np.arange(1.0, k + 1),
            rng.choice([1.0, 0.9, 0.3], k),
            1 - 1e-3 * rng.uniform(size=k),
            np.where(np.arange(k) <= k // 2, rng.uniform(0.5, 1, k), 0),
        ]
    ).map(lambda s: np.sort(s)[::-1])

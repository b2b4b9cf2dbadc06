"""Hypothesis strategies: matrices to sum, and sums to approximate."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lorsum import LowRank, LowRankSum


class Problem(NamedTuple):
    """An adapter W and a gradient G, to be rounded to W's rank."""

    W: LowRank
    G: LowRank

    @property
    def target(self):
        return LowRankSum([self.W, self.G], [1, -0.1])


def seeds():
    return st.integers(0, 2**32 - 1)


def generators():
    return seeds().map(np.random.default_rng)


def normal_lowrank(rng, m, n, rank, dtype=np.float64):
    """A low-rank matrix with normal factors, complex ones for a complex dtype."""

    def factor(d):
        X = rng.normal(size=(d, rank))
        return (X + 1j * rng.normal(size=(d, rank)) if np.issubdtype(dtype, np.complexfloating) else X).astype(dtype)

    return LowRank(factor(m), factor(n))


def orthonormal(rng, n, k):
    return scipy.linalg.qr(rng.normal(size=(n, k)), mode="economic")[0]


def gauge_of_condition(rng, r, condition):
    """An r × r matrix of that condition number, ill-conditioned in no particular direction."""
    return orthonormal(rng, r, r) * np.geomspace(1, 1 / condition, r) @ orthonormal(rng, r, r)


def with_spectrum(rng, m, n, s):
    """The low-rank matrix P diag(s) Qᵀ, P and Q random and orthonormal."""
    return LowRank(orthonormal(rng, m, len(s)) * s, orthonormal(rng, n, len(s)))


@st.composite
def problems(draw, dtype=np.float64, smallest=1, largest=12):
    """Adapters of any rank up to full and gradients of any rank, with normal factors."""
    m, n = draw(st.tuples(*[st.integers(smallest, largest)] * 2))
    rng = draw(generators())
    W = normal_lowrank(rng, m, n, draw(st.integers(1, min(m, n))), dtype)
    return Problem(W, normal_lowrank(rng, m, n, draw(st.integers(1, largest)), dtype))


def small_integers(shape):
    """Arrays that float64 adds and multiplies without rounding."""
    return hnp.arrays(np.float64, shape, elements=st.integers(-8, 8).map(float))


@st.composite
def exact_lowrank(draw, shape):
    """Low-rank matrices with small whole numbers in their factors: dependent and zero columns among them."""
    *batch, m, n = shape
    rank = draw(st.integers(1, 3))
    return LowRank(draw(small_integers((*batch, m, rank))), draw(small_integers((*batch, n, rank))))

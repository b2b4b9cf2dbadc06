"""What a call takes, against arrays and tensors of known size."""

import numpy as np
import pytest

import lorsum as ls

torch = pytest.importorskip("torch")

from analysis.benchmarks import memory  # noqa: E402  (needs the above)

MIB = 2**20


def test_the_peak_of_tensors_shows_those_of_known_size():
    held = []
    peak, kept = memory.grown_tensors(lambda: held.extend([torch.ones(MIB // 4), torch.ones(MIB).sum()]))
    assert peak - 5 * MIB in range(100)
    assert kept - MIB in range(100)


def test_the_peak_of_tensors_shows_what_an_operation_takes_inside():
    A = torch.rand(512, 512)
    peak, kept = memory.grown_tensors(lambda: torch.linalg.svdvals(A))  # in a copy
    assert peak >= A.nbytes
    assert kept == 0


def test_the_peak_of_arrays_shows_those_of_known_size():
    peak, kept = memory.grown_arrays(lambda: [np.ones(MIB // 8), np.ones(MIB // 2).sum()])
    assert peak - 5 * MIB in range(10_000)
    assert kept - MIB in range(10_000)


def test_the_peak_shows_a_matrix_that_was_formed():
    W = ls.LowRank(np.ones((600, 2)), np.ones((500, 2)))
    matrix = 600 * 500 * 8
    assert memory.peak_of(lambda: W.to_dense().sum()).temporaries >= matrix
    assert memory.peak_of(lambda: W.to_dense()).total >= matrix
    assert memory.peak_of(lambda: W.to_dense()).temporaries < 0.1 * matrix
    assert memory.peak_of(lambda: W @ np.ones(500)).total < 0.1 * matrix

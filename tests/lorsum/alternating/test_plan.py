"""The plan says what lorsum does, and why, before anything is computed."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator
from strategies import normal_lowrank

from lorsum import LowRank, lorsum, plan

RNG = np.random.default_rng(0)
W, G = normal_lowrank(RNG, 400, 300, 4), normal_lowrank(RNG, 400, 300, 8)
TARGET = W - 0.1 * G


@pytest.mark.parametrize(
    ("target", "options", "way", "backend", "why"),
    [
        (TARGET, {}, "direct", "numba", "it costs least"),
        (TARGET, {"iters": 50}, "Gram coefficients", "numba", "it costs least"),
        (TARGET, {"method": "coefficients"}, "Gram coefficients", "numba", "`method` is 'coefficients'"),
        (TARGET, {"iters": 50, "method": "direct"}, "direct", "numba", "`method` is 'direct'"),
        (TARGET, {"iters": 50, "solver": "qr"}, "QR coefficients", "array API", "`solver` is 'qr'"),
        (TARGET, {"accelerate": "krylov"}, "direct", "array API", "`accelerate` is 'krylov'"),
        (TARGET, {"simultaneous": True}, "direct", "array API", "`simultaneous` is True"),
        (TARGET, {"callback": print}, "direct", "array API", "`callback` sees each iterate"),
        (W + G.to_dense(), {}, "direct", "numba", "it costs least"),
        (W + G.to_dense() + G.to_dense(), {}, "direct", "array API", "two terms are dense"),
        (W + aslinearoperator(np.eye(400, 300)), {}, "direct", "array API", "a term is an operator"),
        (TARGET * 1j, {}, "direct", "array API", "a coefficient is complex, or traced"),
        (LowRank(*map(torch.as_tensor, W)), {}, "QR coefficients", "array API", "arrays are of torch"),
    ],
)
def test_plans(target, options, way, backend, why):
    planned = plan(target, **options)
    assert (planned.way, planned.backend, planned.why) == (way, backend, why)
    assert next(iter(planned.cost)) == way
    assert way in repr(planned) and way in planned._repr_html_()


def test_what_takes_over():
    gram = plan(TARGET, iters=50)
    assert gram.fallback().way == "direct" and gram.fallback().backend == "numba"
    assert gram.fallback().fallback().backend == "array API"
    asked = plan(TARGET, method="coefficients").fallback()
    assert (asked.way, asked.backend) == ("QR coefficients", "array API")


def test_a_plan_refuses_what_lorsum_refuses():
    for function in (plan, lorsum):
        with pytest.raises(ValueError, match="`method` is 'coefficients', but a term"):
            function(W + G.to_dense(), method="coefficients")

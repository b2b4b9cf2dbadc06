"""Data and factors spread over eight devices give what one device gives, and what is sent between them is thin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

M, N, RANK, ROWS, LAYERS = 256, 192, 4, 32, 2
DATA, FACTORS, BOTH = [8, 1], [1, 8], [4, 2]  # devices that the batch is spread over, and the rows of the factors
CASES = [
    {"optimizer": "oplora", "gradient": "pairs", "mesh": DATA, "options": {"momentum": 0.9}},
    {"optimizer": "oplora", "gradient": "pairs", "mesh": FACTORS, "options": {"momentum": 0.9}},
    {
        "optimizer": "oplora",
        "gradient": "pairs",
        "mesh": BOTH,
        "options": {"momentum": 0.9, "iters": 8, "method": "direct"},
    },
    {"optimizer": "projected_oplora", "gradient": "pairs", "mesh": BOTH, "options": {"momentum": 0.9}},
    {"optimizer": "preconditioned_sgd", "gradient": "pairs", "mesh": BOTH, "options": {"momentum": 0.9}},
    {"optimizer": "preconditioned_adamw", "gradient": "pairs", "mesh": DATA, "lr": 0.02},
]


@pytest.fixture(scope="module")
def results():
    """In a process of its own, where JAX starts with eight devices."""
    worker = Path(__file__).with_name("sharded_worker.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(worker), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_eight_devices_give_what_one_gives(results, number):
    assert max(results[number]["off"]) <= 1e-5
    assert min(results[number]["moved"]) > 0.1


@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_is_sent_is_thin(results, number):
    """Both layers' products with the gradient at most: not S and X, and nothing of the layers' size."""
    sent = results[number]["sent"]
    assert sent
    thin = LAYERS * M * 2 * RANK  # the projected momentum has twice the rank
    assert thin < LAYERS * ROWS * N < M * N
    assert max(size for _, size in sent) <= 1.1 * thin


def test_spread_data_are_summed_up_in_three_products(results):
    """K = 1: G V for W and for M, Gᵀ U for each, of both layers at once; neither factor is gathered."""
    sent = results[0]["sent"]
    assert {name for name, _ in sent} == {"all-reduce"}
    assert len(sent) <= 4

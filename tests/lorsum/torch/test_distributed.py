"""Two processes under DistributedDataParallel, against one process on the whole batch."""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorsum import optim
from lorsum.torch import LoRALinear, adapters
from lorsum.torch._distributed import cheapest

WORKER = Path(__file__).with_name("distributed_worker.py")
spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

momentum = {"momentum": 0.9}
CASES = {
    "OPLoRA": {"optimizer": "OPLoRA", "options": {**momentum, "iters": 2}},
    "OPLoRA without momentum": {"optimizer": "OPLoRA"},
    "clipped": {"optimizer": "OPLoRA", "options": momentum, "clip": 0.05},
    "ascending": {"optimizer": "OPLoRA", "options": momentum, "multiply": -0.5},
    "decayed": {"optimizer": "OPLoRA", "options": momentum, "decay": 0.9},
    "accumulated": {"optimizer": "OPLoRA", "options": momentum, "micro": 2},
    "accumulated without sync": {"optimizer": "OPLoRA", "options": momentum, "micro": 2, "no_sync": True},
    "pairs": {"optimizer": "OPLoRA", "options": {**momentum, "gradient": "pairs"}},
    "dense": {"optimizer": "OPLoRA", "options": {**momentum, "gradient": "dense"}},
    "products": {"optimizer": "OPLoRA", "sizes": (12, 60, 50), "options": {"gradient": "dense", "debug": True}},
    "products in double": {"optimizer": "OPLoRA", "sizes": (12, 60, 50), "options": momentum, "dtype": "float64"},
    "ProjectedOPLoRA": {"optimizer": "ProjectedOPLoRA", "options": momentum},
    "PreconditionedSGD": {"optimizer": "PreconditionedSGD", "options": momentum},
    "PreconditionedAdamW": {"optimizer": "PreconditionedAdamW"},
    "SVDLoRA": {"optimizer": "SVDLoRA", "options": momentum},
    "KFAC": {"optimizer": "ScaledOPLoRA", "options": {"scale": "KFAC", "lr": 1e-4}, "steps": 3},
    "Shampoo": {"optimizer": "ScaledOPLoRA", "options": {"scale": "Shampoo", "lr": 1e-3}},
    "experts": {"task": "experts"},
    "experts, dense": {"task": "experts", "options": {"gradient": "dense"}},
    "uneven OPLoRA": {"task": "uneven", "optimizer": "OPLoRA", "options": {**momentum, "iters": 2}},
    "uneven OPLoRA, pairs": {"task": "uneven", "optimizer": "OPLoRA", "options": {**momentum, "gradient": "pairs"}},
    "uneven OPLoRA, accumulated": {
        "task": "uneven",
        "optimizer": "OPLoRA",
        "options": momentum,
        "micro": 2,
        "no_sync": True,
    },
    "uneven OPLoRA, averaged twice a step": {
        "task": "uneven",
        "optimizer": "OPLoRA",
        "options": {**momentum, "gradient": "pairs", "debug": True},
        "micro": 2,
    },
    "uneven ProjectedOPLoRA": {"task": "uneven", "optimizer": "ProjectedOPLoRA", "options": momentum},
    "uneven PreconditionedSGD": {"task": "uneven", "optimizer": "PreconditionedSGD", "options": momentum},
    "uneven PreconditionedAdamW": {"task": "uneven", "optimizer": "PreconditionedAdamW"},
    "uneven SVDLoRA": {"task": "uneven", "optimizer": "SVDLoRA", "options": momentum},
    "uneven Shampoo": {"task": "uneven", "optimizer": "ScaledOPLoRA", "options": {"scale": "Shampoo", "lr": 1e-3}},
    "uneven KFAC": {
        "task": "uneven",
        "optimizer": "ScaledOPLoRA",
        "options": {"scale": "KFAC", "lr": 1e-4},
        "steps": 3,
    },
}
FAULTS = {
    "an expert without a gradient": {"task": "experts", "options": {"missing": "error"}},
    "experts, not wrapped": {"task": "experts", "ddp": False},
    "uneven K-FAC, accumulated": {**CASES["uneven KFAC"], "micro": 2},
    "not wrapped": {"optimizer": "OPLoRA", "ddp": False, "options": {"debug": True}},
    "other random numbers": {"optimizer": "OPLoRA", "options": {"rng": "rank"}},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all cases, in both processes."""
    folder = tmp_path_factory.mktemp("gloo")
    with open(folder / "cases.pickle", "wb") as file:
        pickle.dump({**CASES, **FAULTS}, file)
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(rank), "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_on_the_whole_batch(case, results):
    expected = worker.trained(CASES[case])
    for result in results:
        assert not isinstance(result[case], str), result[case]
        tolerance = 1e-12 if CASES[case].get("dtype") == "float64" else 1e-5
        for actual, whole in zip(result[case]["matrices"], expected["matrices"], strict=True):
            assert relative(actual, whole) <= tolerance
    start = worker.experts() if case.startswith("experts") else worker.network(CASES[case].get("sizes", (12, 10, 9)))
    moved = [
        relative(a.matrix().to_dense().double(), x.double())
        for a, x in zip(adapters(start), expected["matrices"], strict=True)
    ]
    assert min(moved) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_processes_stay_the_same_bit_for_bit(case, results):
    one, two = (result[case] for result in results)
    assert len(one["state"]) > 0
    for x, y in zip(one["parameters"] + one["state"], two["parameters"] + two["state"], strict=True):
        assert torch.equal(x, y)


def test_the_traffic_is_told(results):
    """Float32: products and sums of d numbers are 4 d bytes for each of two processes, rows 4 N (m + n)."""
    traffic = {case: results[0][case]["traffic"] for case in CASES}
    # 2 · (4 + 4 rows of two forward passes) on 10 × 12 and 9 × 10: 8 rows take 8 · 22 numbers, the sum 120
    assert traffic["SVDLoRA"] == {"2": ("sum", 4 * 120), "3": ("sum", 4 * 90)}
    assert traffic["OPLoRA without momentum"] == {"2": ("products", 4 * 22 * 3), "3": ("products", 4 * 19 * 3)}
    assert traffic["OPLoRA"] == {"2": ("sum", 4 * 120), "3": ("sum", 4 * 90)}  # 2 iterations of W and M: 12 columns
    assert traffic["KFAC"] == {"2": ("rows", 4 * 8 * 22), "3": ("rows", 4 * 8 * 19)}
    assert traffic["products in double"] == {"2": ("products", 8 * 72 * 6), "3": ("products", 8 * 110 * 6)}


def test_gradients_that_are_not_averaged_are_named(results):
    for result in results:
        assert "`2`: its .grad is no multiple of the mean over the processes" in result["not wrapped"]


def test_an_expert_without_a_gradient_is_named_in_all_processes(results):
    for result in results:
        assert "`experts.1` has no gradient" in result["an expert without a gradient"]


def test_a_gradient_in_one_process_alone_is_named_in_all(results):
    for result in results:
        message = "`experts.1` has .grad in the processes [0] but not in [1]: it is not averaged"
        assert result["experts, not wrapped"].startswith(message)


def test_kfac_within_join_is_refused_where_its_rows_would_be_counted_twice(results):
    assert "within `join`, K-FAC needs one averaged backward pass a step" in results[1]["uneven K-FAC, accumulated"]


def test_other_random_numbers_in_each_process_are_refused(results):
    for result in results:
        assert result["other random numbers"].startswith("`rng` is not the same in all processes")


def test_the_cheapest_way_is_taken():
    (adapter,) = adapters(LoRALinear((400, 120), rank=8))
    rule = optim.OPLoRA(lr=0.1, momentum=0.9)

    def way(rows, rule=rule, count=2):
        return cheapest(rule, adapter, rows, count)

    assert way([64, 64]) == "products"  # 16 columns against 64 rows
    assert way([10, 4]) == "rows"
    assert way([10, 4], count=4) == "products"  # each process would send its rows to three others
    assert way([10, -1]) == "products"
    assert way([64, 64], optim.OPLoRA(lr=0.1, momentum=0.9, iters=8)) == "rows"
    assert way([200, 200], optim.OPLoRA(lr=0.1, momentum=0.9, iters=8)) == "sum"
    assert way([64, 64], optim.SVDLoRA(lr=0.1)) == "rows"
    assert way([500, 500], optim.SVDLoRA(lr=0.1)) == "sum"
    assert way([500, 500], optim.ScaledOPLoRA(lr=0.1, scale=optim.KFAC())) == "rows"


def test_a_group_of_one_process_needs_no_averaging(tmp_path):
    """Where every process trains a model of its own."""
    from torch import distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        result = worker.train(CASES["OPLoRA"])
    finally:
        dist.destroy_process_group()
    assert result["traffic"] == {}

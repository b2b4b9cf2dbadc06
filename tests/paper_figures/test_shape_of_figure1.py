"""The shape of Figure 1, from real runs at the paper's size."""

import numpy as np
import pytest

from analysis.experiments.records import run_study
from analysis.studies import linear
from paper_figures.curves import methods


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The runs that the facts below are about: a hundred epochs where the end matters, else five."""

    def to_the_end(config):
        few = config["method"] == "oplora" and config["iters"] <= 8
        if config["task"] == "full batch":
            return few or config["method"] in ("lora sgd", "lora adamw")
        return config["method"] == "svdlora" or (few and config["iters"] < 8 and "momentum_rank" not in config)

    configs = [config for config in linear.configurations(epochs=100) if to_the_end(config)]
    configs += [config for config in linear.configurations(epochs=5) if config["method"] in ("svdlora", "oplora")]
    return run_study(linear.run, configs, tmp_path_factory.mktemp("linear"), workers=2, progress=False)


def excess(real, task, method, epoch, *, epochs=100, **wanted):
    """Median excess after an epoch."""
    (found,) = methods(real, task=task, method=method, epochs=epochs, **wanted)
    return np.median(found.values("excess")[:, epoch])


@pytest.mark.slow
def test_svdlora_is_there_after_one_full_batch_step(real):
    (svd,) = methods(real, task="full batch", method="svdlora", epochs=5)
    assert np.max(np.abs(svd.values("excess")[:, 1]) / svd.values("best")) <= 1e-12


@pytest.mark.slow
def test_more_iterations_bring_a_full_batch_step_closer(real):
    first = [excess(real, "full batch", "oplora", 1, epochs=5, iters=K) for K in (1, 2, 8, 32, 128)]
    assert first == sorted(first, reverse=True)


@pytest.mark.slow
def test_oplora_ends_ahead_of_first_order_lora(real):
    rivals = min(excess(real, "full batch", method, -1) for method in ("lora sgd", "lora adamw"))
    assert all(excess(real, "full batch", "oplora", -1, iters=K) < rivals for K in (1, 2, 8))
    assert all(excess(real, "full batch", "oplora", 5, epochs=5, iters=K) < rivals for K in (32, 128))


@pytest.mark.slow
def test_oplora_ends_below_svdlora_on_mini_batches(real):
    assert excess(real, "mini-batch", "oplora", -1, iters=2) < excess(real, "mini-batch", "svdlora", -1)


@pytest.mark.slow
def test_one_iteration_still_improves_late_on_mini_batches(real):
    assert excess(real, "mini-batch", "oplora", -1, iters=1) < excess(real, "mini-batch", "oplora", 50, iters=1)


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2, 8])
def test_a_larger_momentum_rank_is_closer_to_svdlora_early(real, K):
    svd = excess(real, "mini-batch", "svdlora", 1, epochs=5)
    ranks = [{"momentum_rank": None}, {"momentum_rank": 16}, {"momentum_rank": 32}]
    distances = [abs(excess(real, "mini-batch", "oplora", 1, epochs=5, iters=K, **rank) - svd) for rank in ranks]
    assert distances == sorted(distances, reverse=True)

import numpy as np
import pytest

from analysis.studies.linear import configurations, run


def config_of(method, *, epochs, **wanted):
    found = configurations(seeds=1, epochs=epochs)
    return next(config for config in found if config["method"] == method and wanted.items() <= config.items())


def test_every_configuration_is_another_one_and_the_third_panel_differs_by_the_momentums_rank():
    configs = configurations(seeds=2)
    assert len({repr(sorted(config.items())) for config in configs}) == len(configs) == 2 * (11 + 12 + 6)
    assert {config["momentum_rank"] for config in configs if "momentum_rank" in config} == {16, 32}


def test_svdlora_is_there_after_one_full_batch_step():
    results = run(config_of("svdlora", epochs=1, task="full batch"))
    assert abs(results["excess"][1]) / results["best"] < 1e-12
    assert results["step_missed"] == [pytest.approx(0, abs=1e-6)]


def test_mini_batches_lower_the_excess_and_steps_miss_a_part_of_the_way():
    results = run(config_of("oplora", epochs=3, task="mini-batch", iters=2))
    assert (np.diff(results["excess"]) < 0).all()
    assert results["gap_epoch"] == [1, 2, 3]
    assert all(0 < missed < 1 for missed in results["step_missed"])

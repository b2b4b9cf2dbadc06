"""The table of step times in both frameworks."""

import numpy as np

from analysis.benchmarks import step_time
from analysis.experiments.environment import environment
from analysis.studies.lenet5.study import METHODS


def test_a_row_for_each_method_and_the_ratio_of_the_medians():
    results = {"torch": [0.004, 0.002, 0.003], "jax": [0.006, 0.007, 0.0045], "compilation": 2.5}
    records = [
        {"config": config, "results": results, "environment": environment()} for config in step_time.configurations()
    ]
    rows = [" ".join(line.split()) for line in step_time.page(records).splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(METHODS)
    assert rows[0] == "| OPLoRA ×1 | 3.0 | 6.0 | 2.00 | 2.5 |"


def test_both_frameworks_are_timed(monkeypatch):
    monkeypatch.setattr(step_time, "BATCHES", 2)
    config = next(config for config in step_time.configurations() if config["method"] == "lora sgd")
    results = step_time.run(config, rounds=2)
    assert np.shape(results["torch"]) == np.shape(results["jax"]) == (2,)
    assert min(*results["torch"], *results["jax"], results["compilation"]) > 0

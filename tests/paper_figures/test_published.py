"""The paper's numbers, beside what Table 1 prints of them."""

import math

import pytest

from analysis.experiments.methods import METHODS, configuration
from paper_figures.published import _rows, published

ACCURACY = "average test accuracy (%)"


@pytest.mark.parametrize(
    ("method", "options", "mnist", "cifar"),
    [
        ("lora sgd", {}, (98.27, 0.069), (24.66, 0.254)),
        ("preconditioned adamw", {}, (98.32, 0.056), (28.15, 0.477)),
        ("projected oplora", {"iters": 8}, (98.54, 0.118), (28.23, 0.201)),
        ("oplora", {"iters": 2}, (98.55, 0.100), (26.47, 0.178)),
        ("full", {}, (98.77, 0.111), (32.24, 0.398)),
    ],
)
def test_table_1(method, options, mnist, cifar):
    config = configuration(method, lr=0.1, **options)
    assert published(config, "MNIST", ACCURACY) == mnist
    assert published(config, "CIFAR-100", ACCURACY) == cifar


def test_a_learning_rate_is_for_any_number_of_iterations_and_has_no_deviation():
    value, std = published(configuration("projected oplora", lr=0.1, iters=2), "MNLI", "learning rate")
    assert value == 5e-3 and math.isnan(std)


def test_what_the_paper_does_not_have_is_none():
    assert published(configuration("full adamw", lr=0.1), "MNIST", ACCURACY) is None
    assert published(configuration("oplora", lr=0.1, iters=4), "MNIST", ACCURACY) is None


def test_both_columns_are_whole_and_name_methods_of_the_table():
    for task in ("MNIST", "CIFAR-100"):
        assert len([key for key in _rows() if key[:2] == (task, ACCURACY)]) == 12
    assert {method for *_, method, _ in _rows()} <= METHODS.keys()

"""LeNet5 on MNIST: the network and the rates of the protocol, learning, and resuming."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killed_runs import resumed

from analysis.experiments.records import read_records
from analysis.studies.lenet5 import in_torch, network, study
from lorsum import datasets

SOURCE = "made-up digits, 7 + 3 images"
LEARNING_RATES = {
    "svdlora": 0.01,
    "full": 0.05,
    "full adamw": 0.001,
    "lora sgd": 0.002,
    "lora adamw": 0.001,
    "preconditioned sgd": 0.02,
    "preconditioned adamw": 0.02,
    "oplora": 0.02,
    "projected oplora": 0.02,
}


@pytest.fixture
def few(monkeypatch):
    """A thousand training images and two hundred test images in place of all."""
    digits = datasets.mnist(download=False)
    images, labels = network.resized(digits.train_images[:1200]), torch.from_numpy(digits.train_labels[:1200])
    monkeypatch.setattr(in_torch, "data", lambda: (images[:1000], labels[:1000], images[1000:], labels[1000:]))


def config_of(method, *, epochs, **wanted):
    found = study.configurations(seeds=1, epochs=epochs, source=SOURCE)
    return next(c for c in found if c["method"] == method and wanted.items() <= c.items())


def trained_count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# The protocol


def test_the_network_has_lenet5s_parameters():
    assert trained_count(network.network(0, init=None)) == 61_706
    model = network.network(0)
    convolutions, biases = 6 * 25 + 6 + 16 * 6 * 25 + 16, 120 + 84 + 10
    assert trained_count(model) == convolutions + biases + 8 * (400 + 120 + 120 + 84 + 84 + 10)
    assert {layer.scaling for layer in model if hasattr(layer, "scaling")} == {1}


def test_an_image_of_32_pixels_becomes_400_features():
    model = network.network(0)
    assert model[:7](torch.zeros(2, 1, 32, 32)).shape == (2, 400)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_pooling_before_tanh_is_pooling_after_it():
    model, x = network.network(0), torch.randn(3, 1, 32, 32)
    convolution, pool, tanh = model[:3]
    torch.testing.assert_close(tanh(pool(convolution(x))), pool(tanh(convolution(x))), rtol=0, atol=0)


def test_all_methods_of_the_table_with_the_papers_rates():
    configs = study.configurations(source=SOURCE)
    column = configs[: 3 * 13]
    assert {config["init"] for config in column} == {"normal"}
    assert [config["seed"] for config in column] == sorted(config["seed"] for config in column)
    assert {(config["init"], config["method"]) for config in configs[3 * 13 :]} == {
        ("uniform", method) for method in ("lora sgd", "lora adamw", "preconditioned adamw")
    }
    for config in configs:
        assert config["lr"] == LEARNING_RATES[config["method"]]
        assert (config["epochs"], config["batch"], config["rank"]) == (20, 64, 8)
        assert config.get("momentum", 0.9) == 0.9 and config.get("reg", 1e-3) == 1e-3
    for family in ("oplora", "projected oplora"):
        assert {config["iters"] for config in configs if config["method"] == family} == {1, 2, 8}


@pytest.mark.parametrize("method", LEARNING_RATES)
def test_convolutions_and_biases_are_trained_at_the_adapters_rate(method):
    config = config_of(method, epochs=1)
    optimizer = in_torch.optimizer_of(config, network.network(0))
    assert {group["lr"] for group in optimizer.param_groups} == {LEARNING_RATES[method]}
    asked = {"weight_decay": 1e-4} if method.endswith("adamw") else {"momentum": 0.9}
    assert all(asked.items() <= group.items() for group in optimizer.param_groups)
    rules = [group["others"]["rule"] for group in optimizer.param_groups if "others" in group]
    assert set(rules) <= {"AdamW" if method.endswith("adamw") else "SGD"}


def test_the_start_of_A_is_told_by_its_spread():
    spread = {init: network.network(0, init=init)[7].lora_A.weight.std().item() for init in ("normal", "uniform")}
    assert spread == pytest.approx({"normal": 1.0, "uniform": 1 / np.sqrt(3 * 400)}, rel=0.05)


def test_equal_seeds_have_equal_networks_that_start_as_the_frozen_one():
    x = torch.randn(4, 1, 32, 32)
    torch.testing.assert_close(network.network(3)(x), network.network(3, init=None)(x))
    for p, q in zip(network.network(3).parameters(), network.network(3).parameters(), strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(network.network(3)[0].weight, network.network(4)[0].weight)


def test_images_are_resized_and_normalised():
    x = network.resized(np.full((2, 28, 28), 255, np.uint8))
    assert x.shape == (2, 1, 32, 32)
    torch.testing.assert_close(x, torch.full_like(x, (1 - 0.1307) / 0.3081))


# Training


@pytest.mark.parametrize("method", ["oplora", "svdlora", "lora sgd", "full"])
def test_a_few_steps_lower_the_loss(few, method):
    results = in_torch.run(config_of(method, epochs=3))
    assert results["loss"][-1] < 0.9 * results["loss"][0]
    assert len(results["accuracy"]) == len(results["seconds"]) == 3


@pytest.mark.parametrize("method", LEARNING_RATES)
def test_a_run_that_was_killed_goes_on_bit_for_bit(few, tmp_path, monkeypatch, method):
    config = config_of(method, epochs=3)
    whole = in_torch.run(config, checkpoints=tmp_path / "whole")
    again = resumed(monkeypatch, in_torch, config, tmp_path / "killed")

    assert again["loss"] == whole["loss"] and again["accuracy"] == whole["accuracy"]
    (last,), (other,) = ((tmp_path / name).glob("*.pt") for name in ("whole", "killed"))
    for name, value in torch.load(last, weights_only=True)["model"].items():
        assert torch.equal(value, torch.load(other, weights_only=True)["model"][name])


def test_the_study_leaves_records_and_no_checkpoints(few, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "METHODS", study.METHODS[:1])
    monkeypatch.setattr(study.datasets, "mnist", lambda: SimpleNamespace(source=SOURCE))
    records = study.main(tmp_path, seeds=1, epochs=1, workers=1)
    assert read_records(tmp_path, method="oplora", seed=0) == records
    assert {"config", "results", "environment", "seconds"} <= set(records[0])
    assert not list((tmp_path / "checkpoints").iterdir())

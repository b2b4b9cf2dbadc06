"""LeNet5 in JAX beside the same in PyTorch: the network, the steps, whole epochs, and resuming."""

import sys
from subprocess import run
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from killed_runs import resumed
from torch.nn import functional as F

import lorsum.jax
from analysis.experiments.methods import label, rule_of
from analysis.experiments.records import read_records, record_path
from analysis.studies.lenet5 import in_jax, in_torch, network, network_in_jax, study
from lorsum import datasets
from lorsum.jax._pytrees import is_low_rank

SOURCE = "made-up digits, 7 + 3 images"
CONFIGS = study.configurations(seeds=1, epochs=3, source=SOURCE, framework="jax")
METHODS = {label(config): config for config in CONFIGS if config["init"] == "normal"}


@pytest.fixture(autouse=True)
def _compiled_fast(monkeypatch):
    """Steps are few here, and compiling them well would take most of the time."""
    monkeypatch.setitem(in_jax.COMPILER, "xla_backend_optimization_level", 0)


@pytest.fixture
def few(monkeypatch):
    """960 training images, fifteen batches, and two hundred test images in place of all."""
    return in_place_of_all(monkeypatch, 960)


def in_place_of_all(monkeypatch, count):
    digits = datasets.mnist(download=False)
    images, labels = network.resized(digits.train_images[:1200]), torch.from_numpy(digits.train_labels[:1200])
    parts = images[:count], labels[:count], images[1000:], labels[1000:]
    monkeypatch.setattr(in_torch, "data", lambda: parts)
    monkeypatch.setattr(in_jax, "data", lambda: tuple(jnp.asarray(part.numpy()) for part in parts))
    return parts


# The network


@pytest.mark.parametrize("init", ["normal", "uniform", None])
def test_the_network_is_pytorchs(init):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, 32, 32, generator=generator)
    model = network.network(3, init=init)
    with torch.no_grad():
        for layer in model:
            if hasattr(layer, "lora_B"):
                torch.nn.init.normal_(layer.lora_B.weight, std=0.01, generator=generator)  # zero would hide the adapter
        expected = model(x).numpy()
    np.testing.assert_allclose(network_in_jax.converted(model)(jnp.asarray(x.numpy())), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("init", ["normal", None])
def test_as_much_is_trained(init):
    params, _ = lorsum.jax.partition(network_in_jax.converted(network.network(0, init=init)), others=True)
    count = sum(p.numel() for p in network.network(0, init=init).parameters() if p.requires_grad)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_a_convolution_is_xlas():
    rng = np.random.default_rng(0)
    x, kernel, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 4, 9, 8), (5, 3, 5, 5), (5,)))
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("CNHW", "OIHW", "CNHW"))
    found = network_in_jax.Convolution(kernel, bias)(x)
    np.testing.assert_allclose(found, expected + bias[:, None, None, None], rtol=1e-4, atol=1e-4)


# Configurations


def test_pytorchs_configurations_and_records_names_stay_as_they_were():
    configs = study.configurations(source="MNIST, 60,000 + 10,000 images")
    assert all("framework" not in config for config in configs)
    oplora = next(config for config in configs if config["method"] == "oplora")
    assert record_path("", oplora).name == "lenet5-oplora-iters1-rank8-seed0-d7890e4091.json"


def test_jaxs_configurations_say_so_and_are_else_the_same():
    plain = study.configurations(seeds=1, epochs=3, source=SOURCE)
    assert [{**config, "framework": "jax"} for config in plain] == CONFIGS


@pytest.mark.parametrize(("module", "absent"), [("in_torch", "jax"), ("study", "torch")])
def test_one_framework_does_without_the_other_and_drawing_records_without_both(module, absent):
    program = f"import sys; import analysis.studies.lenet5.{module}; assert {absent!r} not in sys.modules"
    run([sys.executable, "-c", program], check=True)


# Training


def losses_in_pytorch(optimizer, model, images, labels):
    for x, y in zip(images.split(64), labels.split(64), strict=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        yield loss.item()


def losses_in_jax(training, trained, images, labels):
    step = jax.jit(training.step, compiler_options=in_jax.COMPILER)
    for x, y in zip(images.split(64), labels.split(64), strict=True):
        trained, loss = step(trained, jnp.asarray(x.numpy()), jnp.asarray(y.numpy()))
        yield float(loss)


def with_pytorchs_draws(config, trained, optimizer):
    """The optimizer's state with the random factors that PyTorch's momentum starts with."""
    params, state = trained
    adapters = (leaf for leaf in jax.tree.leaves(params, is_leaf=is_low_rank) if is_low_rank(leaf))
    seeds = (known.seed for known in optimizer._adapters)

    def drawn(leaf):
        if not is_low_rank(leaf):
            return leaf
        rng = np.random.default_rng(next(seeds))
        return rule_of(config).init(next(adapters), rng=rng).M

    return params, jax.tree.map(drawn, state, is_leaf=is_low_rank)


@pytest.mark.parametrize(
    "method",
    ["OPLoRA ×1", "projected OPLoRA ×2", "SVDLoRA", "preconditioned SGD", "LoRA SGD", "full AdamW"],
)
def test_the_steps_are_pytorchs(few, method):
    images, labels, config = *few[:2], METHODS[method]
    model = network.network(0, init=None if method.startswith("full") else "normal")
    optimizer = in_torch.optimizer_of(config, model)
    training, trained = in_jax.training_of(config)
    if "OPLoRA" in method:
        trained = with_pytorchs_draws(config, trained, optimizer)
    theirs = list(losses_in_pytorch(optimizer, model, images, labels))
    ours = list(losses_in_jax(training, trained, images, labels))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert np.ptp(theirs) > 0.01  # it is not that nothing moves


def test_a_few_steps_lower_the_loss(few):
    results = in_jax.run(METHODS["preconditioned AdamW"])
    assert results["loss"][-1] < 0.9 * results["loss"][0]
    assert set(results) == {"loss", "accuracy", "seconds"}
    assert {len(values) for values in results.values()} == {3}
    assert {type(value) for values in results.values() for value in values} == {float}


def test_a_run_that_was_killed_goes_on_bit_for_bit(few, tmp_path, monkeypatch):
    config = METHODS["OPLoRA ×1"]
    whole = in_jax.run(config, checkpoints=tmp_path / "whole")
    again = resumed(monkeypatch, in_jax, config, tmp_path / "killed")

    assert again["loss"] == whole["loss"] and again["accuracy"] == whole["accuracy"]
    (last,), (other,) = ((tmp_path / name).glob("*.npz") for name in ("whole", "killed"))
    with np.load(last) as last, np.load(other) as other:
        for name in set(last) - {"results"}:
            np.testing.assert_array_equal(last[name], other[name])


def test_whole_epochs_are_pytorchs_the_order_of_the_images_and_the_shorter_last_batch_too(monkeypatch):
    in_place_of_all(monkeypatch, 1000)
    config = METHODS["full"] | {"epochs": 2, "lr": 0.01}
    theirs, ours = in_torch.run(config), in_jax.run(config)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.005)


def test_the_study_leaves_records_and_no_checkpoints(few, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "METHODS", [METHODS["full"]])
    monkeypatch.setattr(study.datasets, "mnist", lambda: SimpleNamespace(source=SOURCE))
    records = study.main(tmp_path, seeds=1, epochs=1, workers=1, framework="jax")
    assert read_records(tmp_path, framework="jax") == records
    assert "jax" in records[0]["environment"]["versions"]
    assert not list((tmp_path / "checkpoints").iterdir())

import pytest

from analysis.studies import mnist
from lorsum import datasets


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Twelve batches in place of all."""
    digits = datasets.mnist(download=False)
    images, labels = mnist._inputs(digits.train_images[:968]), digits.train_labels[:968]
    monkeypatch.setattr(mnist, "_data", lambda: (images[:768], labels[:768], images[768:], labels[768:]))


def run(method, **wanted):
    found = mnist.configurations(seeds=1, epochs=2, source="some digits")
    return mnist.run(
        next(config for config in found if config["method"] == method and wanted.items() <= config.items())
    )


@pytest.mark.parametrize(("method", "options"), [("oplora", {"iters": 1}), ("lora adamw", {}), ("svdlora", {})])
def test_the_loss_falls_and_some_steps_are_measured(method, options):
    results = run(method, **options)
    assert results["loss"][1] < results["loss"][0]
    assert len(results["accuracy"]) == len(results["seconds"]) == 2
    assert results["gap_step"] == [2, 6, 10, 14, 18, 22]
    assert (max(results["step_missed"]) < 1e-3) == (method == "svdlora")


def test_full_training_has_no_step_to_measure():
    assert run("full")["gap_step"] == []

"""What a training step costs: the measures against known answers, the verdicts, and a run of small models."""

from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

import tiny_bert  # noqa: E402  (need the above)

from analysis.benchmarks.recording import collected  # noqa: E402
from analysis.benchmarks.training_cost import measurements, optimizers, page  # noqa: E402
from analysis.benchmarks.training_cost.__main__ import command  # noqa: E402
from lorsum import datasets  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend

STATES = {
    "AdamW": 2,
    "PEFT's LoRA+": 2,
    "PEFT's Riemannian AdamW": 2,
    "PreconditionedAdamW": 2,
    "PreconditionedSGD": 1,
    "OPLoRA K=1": 1,
    "OPLoRA K=8": 1,
    "OPLoRA K=1, overlap": 1,
}
COMPARED = ("AdamW", "AdamW again", "PEFT's LoRA+", "OPLoRA K=1", "OPLoRA K=1, overlap")


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    monkeypatch.setattr(datasets, "mnist", partial(datasets.mnist, download=False))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Configurations of a small encoder's time and memory, and of LeNet5's, in few rounds."""
    folder = tmp_path_factory.mktemp("cost")
    tiny_bert.write(folder)
    encoder = {"data": str(folder / "data"), "batch": 4, "length": 12, "rounds": 2}
    return {"lenet5": {"batch": 8, "rounds": 2}, str(folder / "model"): encoder}


# Measures


def test_the_step_counts_what_the_backward_pass_left():
    model, x = torch.nn.Linear(1000, 500, bias=False), torch.ones(1, 1000)
    task = optimizers.Setup(model, lambda model, x: model(x).sum(), [x])
    training = optimizers.Training(task, lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    weight = model.weight.nbytes
    for peak in measurements.peaks(training, x)["tensors"]:  # the gradient in both, which SGD adds without a temporary
        assert weight <= peak < 1.01 * weight


@pytest.mark.parametrize(("name", "multiple"), STATES.items())
def test_states_in_multiples_of_the_adapters(name, multiple):
    if name not in optimizers.OPTIMIZERS:
        pytest.skip("this PEFT has no such optimizer")
    task = optimizers.setup({"model": "lenet5", "batch": 4, "seed": 0})
    training = optimizers.Training(task, optimizers.OPTIMIZERS[name])
    training.step(task.batches[0])
    factors = measurements.factors(training.model)
    assert measurements.state_nbytes(training.optimizer, factors) == multiple * sum(p.nbytes for p in factors)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Timed:
    """A training whose parts take the seconds that it is told, more and more of them as the machine slows down."""

    def __init__(self, clock, gradients, stepped):
        self.clock, self.optimizer, self.rounds = clock, self, 0
        self.parts = gradients, stepped

    def gradients(self, batch):
        self.rounds += 1
        self.clock.now += self.rounds * self.parts[0]

    def step(self):
        self.clock.now += self.rounds * self.parts[1]


def test_overheads_are_those_of_the_rounds():
    clock = Clock()
    timed = {"AdamW": Timed(clock, 2, 0.5), "OPLoRA K=1": Timed(clock, 2.25, 1)}
    seconds = measurements.step_seconds(timed, [None], 5, clock)
    assert [taken.shape for taken in seconds.values()] == [(5, 2), (5, 2)]
    assert seconds["AdamW"][0] == pytest.approx((8, 2))  # after the rounds that warm up
    expected = page.Overhead(total=0.375, hooks=0.125, step=0.25, low=0.375, high=0.375)
    assert page.overhead(seconds, "OPLoRA K=1") == pytest.approx(expected)


# What is trained


def test_copies_start_equal_and_share_what_is_frozen(small):
    for config in ({"model": name, "seed": 0, **options} for name, options in small.items()):
        task = optimizers.setup(config)
        first, second = (optimizers.Training(task, optimizers.OPTIMIZERS["OPLoRA K=1"]) for _ in range(2))
        pairs = list(zip(first.model.parameters(), second.model.parameters(), strict=True))
        assert all(torch.equal(p, q) and (p is q) != p.requires_grad for p, q in pairs)
        first.step(task.batches[0])
        moved = [
            not torch.equal(*both) for both in zip(*map(measurements.factors, (first.model, task.model)), strict=True)
        ]
        assert sum(moved) >= len(moved) / 2  # B at least: it was zero
        assert all(map(torch.equal, second.model.parameters(), task.model.parameters()))


# The runs and their page


def test_a_run_of_small_models(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measurements, "MODELS", small)
    monkeypatch.setattr(measurements, "OPTIMIZERS", {name: optimizers.OPTIMIZERS[name] for name in COMPARED})
    arguments = ["--records", str(tmp_path / "records"), "--output", str(tmp_path)]
    command(arguments)
    text = (tmp_path / "training-cost.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "OPLoRA K=1 on LeNet5: state / adapters | ≤ 2 ×, as AdamW | 1 × | pass" in " ".join(text.split())
    records = collected(tmp_path / "training-cost.json")
    assert len(records) == 4
    for record in records:
        entries = [value for value in record["results"].values() if isinstance(value, dict)]
        assert all(list(entry) == record["config"]["optimizers"] for entry in entries)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    command(arguments)  # nothing is measured again
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}


def test_the_published_page_is_what_its_records_say():
    docs = Path(__file__).parents[3] / "docs"
    assert docs.joinpath("training-cost.md").read_text(encoding="utf-8") == page.page(
        collected(docs / "training-cost.json")
    )


def _record(model, task, results):
    config = {"model": model, "task": task, "batch": 64, "rounds": 2}
    environment = {
        "cpu": "some",
        "cpu_count": 2,
        "time": "2026-01-01T00:00",
        "git": None,
        "python": "3",
        "versions": {},
    }
    numbers = {"parameters": 1000, "trained": 100, "lora": 10}
    names = list(next(iter(results.values())))
    return {"config": config | {"optimizers": names}, "results": numbers | results, "environment": environment}


def test_verdicts():
    processor = {"AdamW": [[1.0, 0.1]] * 2, "OPLoRA K=1": [[1.0, 0.19]] * 2, "OPLoRA K=8": [[1.1, 0.2]] * 2}
    seconds = {name: [[2.0, 0.2]] * 2 for name in processor}
    state = {"AdamW": 80, "OPLoRA K=1": 40, "OPLoRA K=8": 120}
    peaks = {name: [2000, 1000] for name in state}
    memory = {"lora_state": state, "state": state, "captured": state, "tensors": peaks, "arrays": peaks}
    times = {"seconds": seconds, "processor": processor}
    text = page.page([_record("lenet5", "time", times), _record("minilm", "memory", memory)])
    assert "Of AdamW's wall time 50% was the processor's" in text
    rows = [" ".join(line.split()) for line in text.splitlines() if line.startswith("| OPLoRA")]
    for start in (
        "| OPLoRA K=1 on LeNet5: overhead of a step | ≤ 10% | 9.0% | pass |",
        "| OPLoRA K=8 on LeNet5: overhead of a step | ≤ 15% | 20.0% | **miss** | hooks 10.0%, step 10.0%; by the wall",
        "| OPLoRA K=1 on MiniLM: overhead of a step | ≤ 5% | – | not measured |",
        "| OPLoRA K=1 on MiniLM: state / adapters | ≤ 2 ×, as AdamW | 1 × | pass |",
        "| OPLoRA K=8 on MiniLM: state / adapters | ≤ 2 ×, as AdamW | 3 × | **miss** |",
        "| OPLoRA K=8 | 3 | 0.117 KiB | 3.91 KiB | 1.95 KiB | 0.977 KiB | 0.117 KiB | 4.02 KiB |",
    ):
        assert any(row.startswith(start) for row in rows), start

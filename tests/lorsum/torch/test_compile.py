"""Capture inside of torch.compile, in whole graphs."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorsum.torch import LoRALinear, OPLoRA

pytestmark = pytest.mark.filterwarnings("default")  # the compiler's are not ours to mend
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Network(nn.Module):
    """A layer that is called four times, twice on the same input."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice = LoRALinear((12, 10), 3, alpha=5, dropout=dropout), LoRALinear((10, 10), 2)
        for layer in (self.first, self.twice):
            nn.init.normal_(layer.lora_B.weight, std=0.3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.twice(torch.tanh(self.twice(h))) + self.twice(h) + self.twice(h)


def batch(rows):
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(rows))


def gradients(model, run, optimizer):
    optimizer.zero_grad()
    torch.manual_seed(1)
    for rows in (4, 5, 6):
        run(batch(rows)).square().mean().backward()
    return {name: G.to_dense() if hasattr(G, "to_dense") else G for name, G in optimizer.gradients().items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, G in actual.items():
        assert float((G - expected[name]).norm()) <= 1e-5 * float(expected[name].norm()), name


@every_backend
@pytest.mark.parametrize("form", ["pairs", "dense"])
def test_whole_graphs(backend, form):
    model = Network()
    optimizer = OPLoRA(model, lr=0.1, debug=True, gradient=form)
    expected = gradients(model, model, optimizer)
    assert_same(gradients(model, torch.compile(model, backend=backend, fullgraph=True), optimizer), expected)
    optimizer.step()


@every_backend
def test_training(backend):
    """The weights change under the compiled code, and it captures at every step."""

    def trained(compiled):
        model = Network()
        optimizer = OPLoRA(model, lr=0.05, momentum=0.9, debug=True)
        run = torch.compile(model, backend=backend) if compiled else model
        for step in range(5):
            optimizer.zero_grad()
            run(batch(4 + step)).square().mean().backward()
            optimizer.step()
        return {adapter.name: adapter.matrix().to_dense() for adapter in optimizer.adapters}

    assert_same(trained(True), trained(False))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_dropout_and_autocast(backend):
    """Autograd's own gradients of A and B are compared with, since compiled dropout draws other numbers."""
    model = Network(dropout=0.3)
    optimizer = OPLoRA(model, lr=0.1, debug=True)
    run = torch.compile(model, backend=backend, fullgraph=True)
    run(batch(8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = run(batch(8))
    outputs.float().square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_checkpointing_inside(backend):
    model = Network()
    optimizer = OPLoRA(model, lr=0.1, debug=True)
    expected = gradients(model, model, optimizer)
    run = torch.compile(lambda x: checkpoint(model, x, use_reentrant=False), backend=backend)
    assert_same(gradients(model, run, optimizer), expected)


def test_graph_breaks():
    model = Network()
    optimizer = OPLoRA(model, lr=0.1, debug=True)
    expected = gradients(model, model, optimizer)

    def run(x):
        h = model.first(x)
        torch._dynamo.graph_break()
        h = torch.tanh(h)
        return model.twice(torch.tanh(model.twice(h))) + model.twice(h) + model.twice(h)

    assert_same(gradients(model, torch.compile(run, backend="aot_eager"), optimizer), expected)


def test_code_compiled_before_the_optimizer_was_made_is_named():
    model = nn.Sequential(LoRALinear((12, 10), 3))
    run = torch.compile(model, backend="aot_eager")
    run(batch(4)).square().mean().backward()
    optimizer = OPLoRA(model, lr=0.1)
    run(batch(4)).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"`0` has \.grad, but no call .* compiled code ran before"):
        optimizer.step()
    torch.compiler.reset()
    optimizer.zero_grad()
    run(batch(4)).square().mean().backward()
    optimizer.step()


def test_no_gradient_no_capture():
    model = Network()
    optimizer = OPLoRA(model, lr=0.1)
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        run(batch(4))
    assert optimizer.gradients() == {}

"""What is held between steps: nothing of backward passes whose gradient never comes, or has been cleared."""

import tracemalloc

import pytest
import torch
from torch import nn

from lorsum.torch import LoRALinear, OPLoRA


def network():
    torch.manual_seed(0)
    return nn.Sequential(*(LoRALinear((64, 64), rank=2) for _ in range(3)))


def frozen(model, optimizer, step):
    if step == 5:
        model[2].requires_grad_(False)
    model(torch.randn(16, 64)).square().mean().backward()
    optimizer.step()
    model.zero_grad()


def frozen_between_forward_and_backward(model, optimizer, step):
    loss = model(torch.randn(16, 64)).square().mean()
    weights = model[2].lora_A.weight, model[2].lora_B.weight
    for p in weights:
        p.requires_grad_(False)
    loss.backward()
    optimizer.step()
    for p in weights:
        p.requires_grad_(True)
    model.zero_grad()


def inputs_alone(model, optimizer, step):
    x = torch.randn(16, 64, requires_grad=True)
    torch.autograd.grad(model(x).square().mean(), x)


def a_jacobian(model, optimizer, step):
    """Row by row from one graph, without a forward pass in between."""
    x = torch.randn(64, requires_grad=True)
    y = model(x)
    for i in range(3):
        torch.autograd.grad(y[i], x, retain_graph=True)
    torch.autograd.backward(y[0], inputs=[x])


def cleared_by_the_model(model, optimizer, step):
    model(torch.randn(16, 64)).square().mean().backward()
    optimizer.step()
    model.zero_grad()


def a_backward_pass_that_fails(model, optimizer, step):
    x = torch.randn(16, 64, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(y).square().mean().backward()
    model.zero_grad()


LOOPS = [
    frozen,
    frozen_between_forward_and_backward,
    inputs_alone,
    a_jacobian,
    cleared_by_the_model,
    a_backward_pass_that_fails,
]


def held(optimizer):
    """Bytes of all tensors that the optimizer's captures reach."""
    total = 0
    for capture in optimizer._captures:
        gradients = [capture.gradient, *capture._staged.values()]
        total += sum(gradient.nbytes for gradient in gradients)
    return total


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
def test_memory_is_flat(loop, overlap):
    """Over 500 steps no more tensors are alive than after 20, nor bytes of Python objects."""
    model = network()
    optimizer = OPLoRA(model, lr=1e-3, overlap=overlap)
    sizes = []
    for step in range(520):
        loop(model, optimizer, step)
        sizes.append(held(optimizer))
    assert max(sizes[20:]) <= max(sizes[:20])
    model.zero_grad()
    model(torch.randn(16, 64))
    assert held(optimizer) == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_no_object_stays(loop):
    model = network()
    optimizer = OPLoRA(model, lr=1e-3)
    for step in range(10):
        loop(model, optimizer, step)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for step in range(10, 110):
            loop(model, optimizer, step)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 100 * 500  # a dict, a list or a closure at each step is more


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("form", ["pairs", "dense"])
def test_nothing_is_held_in_the_next_forward_pass(set_to_none, form):
    model = network()
    optimizer = OPLoRA(model, lr=1e-3, gradient=form)
    held_in_it = []
    for _ in range(2):
        model(torch.randn(16, 64)).square().mean().backward()
        assert min(optimizer.gradient_nbytes().values()) > 0
        optimizer.step()
        model.zero_grad(set_to_none=set_to_none)
        handle = model[2].register_forward_hook(lambda *_: held_in_it.append(held(optimizer)))
        model(torch.randn(16, 64))
        handle.remove()
        assert set(optimizer.gradient_nbytes().values()) == {0}
    assert held_in_it == [0, 0]


def test_gradients_of_an_adapter_alone_can_be_cleared():
    model = network()
    optimizer = OPLoRA(model, lr=1e-3)
    model(torch.randn(16, 64)).square().mean().backward()
    for p in model[1].parameters():
        p.grad = None
    assert [nbytes > 0 for nbytes in optimizer.gradient_nbytes().values()] == [True, False, True]
    assert list(optimizer.gradients()) == ["0", "2"]

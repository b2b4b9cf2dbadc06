"""Steps that start in the backward pass: the results are the same, whatever happens between it and the step."""

import threading

import pytest
import torch
from torch import nn

from lorsum.torch import OPLoRA, SVDLoRA, _overlap, add_lora


def network():
    torch.manual_seed(0)
    model = add_lora(nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 6)), 3)
    for layer in model[::2]:
        nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model


def backward(model, step):
    (model(torch.randn(4, 12, generator=torch.Generator().manual_seed(step))) ** 2).mean().backward()


def nothing(model, optimizer):
    pass


def clipped(model, optimizer):
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def clipped_by_nothing(model, optimizer):
    nn.utils.clip_grad_norm_(model.parameters(), 1e6)


def another_backward(model, optimizer):
    backward(model, 99)


def begun_anew(model, optimizer):
    model.zero_grad()
    backward(model, 99)


def a_new_learning_rate(model, optimizer):
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


def other_weights(model, optimizer):
    with torch.no_grad():
        model[0].lora_A.weight.mul_(1.1)


def decayed(model, optimizer):
    """Through .data, which the version counter does not tell."""
    for layer in model[::2]:
        layer.lora_A.weight.data.mul_(0.9)


def swapped(model, optimizer):
    """Other memory, as where averaged weights are put in."""
    for layer in model[::2]:
        layer.lora_B.weight.data = 0.5 * layer.lora_B.weight.data


def swapped_and_back(model, optimizer):
    for p in model.parameters():
        kept = p.data
        p.data = torch.zeros_like(kept)
        p.data = kept


def another_momentum(model, optimizer):
    for state in optimizer.state.values():
        for name, x in state.items():
            if name != "step":
                x.mul_(0.5)


def another_momentum_unseen(model, optimizer):
    """Through .data."""
    for state in optimizer.state.values():
        for name, x in state.items():
            if name != "step":
                x.data.mul_(0.5)


def ascending(model, optimizer):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.neg_()


def rescaled_and_inputs_differentiated(model, optimizer):
    """The captured gradients are scaled in a backward pass that adds nothing to them."""
    ascending(model, optimizer)
    x = torch.randn(2, 12, requires_grad=True)
    torch.autograd.grad(model(x).sum(), x)


def zeroed_and_not_added_to(model, optimizer):
    model.zero_grad(set_to_none=False)


BETWEEN = [
    decayed,
    swapped,
    swapped_and_back,
    another_momentum,
    another_momentum_unseen,
    ascending,
    rescaled_and_inputs_differentiated,
    zeroed_and_not_added_to,
    nothing,
    clipped,
    clipped_by_nothing,
    another_backward,
    begun_anew,
    a_new_learning_rate,
    other_weights,
]


def trained(between, overlap, Optimizer=OPLoRA):
    model = network()
    optimizer = Optimizer(model, lr=0.05, momentum=0.9, overlap=overlap)
    for step in range(5):
        optimizer.zero_grad()
        backward(model, step)
        between(model, optimizer)
        optimizer.step()
    held = [x for p in model.parameters() if p in optimizer.state for x in optimizer.state[p].values()]
    return [p.detach() for p in model.parameters()] + held


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("Optimizer", [OPLoRA, SVDLoRA])
def test_results_are_the_same_bit_for_bit(between, Optimizer):
    for one, other in zip(trained(between, True, Optimizer), trained(between, False, Optimizer), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("between", BETWEEN)
def test_steps_are_computed_in_the_backward_pass_and_taken_where_they_are_good(between, monkeypatch):
    threads = []

    def recorded(*arguments, stepped=_overlap.stepped):
        threads.append(threading.current_thread().name)
        return stepped(*arguments)

    monkeypatch.setattr(_overlap, "stepped", recorded)
    monkeypatch.setattr("lorsum.torch._trained_adapter.stepped", recorded)
    model = network()
    optimizer = OPLoRA(model, lr=0.05, momentum=0.9, overlap=True)
    backward(model, 0)
    between(model, optimizer)
    before = len(threads)
    optimizer.step()
    in_step = [name for name in threads if not name.startswith("lorsum")]
    of_all = {clipped, a_new_learning_rate, decayed, swapped, another_momentum, another_momentum_unseen, ascending}
    of_all |= {zeroed_and_not_added_to}
    expected = 3 if between in of_all else 1 if between is other_weights else 0
    assert len(in_step) == expected
    assert before <= len(threads)
    assert any(name.startswith("lorsum") for name in threads)


def test_a_step_begins_before_the_backward_pass_has_ended():
    """The last layer's step is done while the first layer's gradient waits for it."""
    model = network()
    optimizer = OPLoRA(model, lr=0.05, overlap=True)
    done = []

    def wait(grad):
        last, *_ = begun = [trained.begun for trained in reversed(optimizer._adapters) if trained.begun is not None]
        last.future.result(timeout=60)
        done.append(len(begun))

    x = torch.randn(4, 12, requires_grad=True)
    x.register_hook(wait)
    h = model[0](x)
    h.register_hook(wait)
    model[1:](h).square().mean().backward()
    assert done == [2, 3]
    optimizer.step()


def test_a_gradient_that_was_zeroed_is_not_stepped_along():
    """The step that was begun is not taken, nor that of an adapter whose gradient was taken away."""
    model = network()
    optimizer = OPLoRA(model, lr=0.05, overlap=True)
    before = [adapter.matrix().to_dense() for adapter in optimizer.adapters]
    backward(model, 0)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    backward(model, 1)
    optimizer.zero_grad()
    optimizer.step()
    for adapter, W in zip(optimizer.adapters, before, strict=True):
        torch.testing.assert_close(adapter.matrix().to_dense(), W, rtol=1e-3, atol=1e-6)  # λ moves it a little


def test_one_can_wait_for_the_steps_that_were_begun():
    for overlap in (True, False):
        model = network()
        optimizer = OPLoRA(model, lr=0.05, overlap=overlap)
        backward(model, 0)
        optimizer.synchronize()
        assert not overlap or all(trained.begun.future.done() for trained in optimizer._adapters)
        optimizer.step()


def test_errors_are_raised_in_the_step():
    model = network()
    optimizer = OPLoRA(model, lr=0.05, overlap=True)
    (model(torch.ones(4, 12)) * torch.inf).sum().backward()
    with pytest.raises((ValueError, RuntimeError)) as raised:
        optimizer.step()
    assert "`0`" in str(raised.value) + "".join(getattr(raised.value, "__notes__", []))

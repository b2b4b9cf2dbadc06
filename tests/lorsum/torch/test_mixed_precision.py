"""Autocast and loss scaling: unscaling and clipping act on .grad, and the captured gradient follows."""

import copy

import pytest
import torch
from torch import nn

from lorsum.torch import OPLoRA, PreconditionedAdamW, add_lora


def network():
    torch.manual_seed(0)
    model = add_lora(nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8)), 3, alpha=6)
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model


def batch(step, rows=16):
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(step))


def loss_of(outputs):
    return (outputs.float() ** 2).mean()


def matrices(optimizer):
    return [adapter.matrix().to_dense() for adapter in optimizer.adapters]


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("Optimizer", [OPLoRA, PreconditionedAdamW])
@pytest.mark.parametrize("clip", [None, 0.02])
@pytest.mark.parametrize("unscaled_first", [False, True])
def test_loss_scaling_changes_nothing(Optimizer, clip, unscaled_first):
    """In single precision with a power of two, bit for bit: the factor c is found exactly."""
    plain, scaled = network(), network()
    optimizers = Optimizer(plain, lr=0.05), Optimizer(scaled, lr=0.05, debug=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for step in range(5):
        optimizers[0].zero_grad()
        loss_of(plain(batch(step))).backward()
        optimizers[1].zero_grad()
        scaler.scale(loss_of(scaled(batch(step)))).backward()
        if clip or unscaled_first:
            scaler.unscale_(optimizers[1])
        if clip:
            for model in (plain, scaled):
                nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizers[0].step()
        scaler.step(optimizers[1])
        scaler.update()
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(p, q)


def test_clipping_multiplies_the_captured_gradient():
    clipped, plain = network(), network()
    optimizers = OPLoRA(clipped, lr=0.05), OPLoRA(plain, lr=0.05)
    for model in (clipped, plain):
        loss_of(model(batch(0))).backward()
    norm = nn.utils.clip_grad_norm_(clipped.parameters(), 0.01)
    for name, G in optimizers[0].gradients().items():
        expected = optimizers[1].gradients()[name].to_dense() * 0.01 / norm
        assert relative(G.to_dense(), expected) < 1e-5


def test_skipped_steps_leave_no_trace():
    """An overflow: the scaler skips the step, and the next gradient starts anew."""
    model, twin = network(), network()
    optimizer, expected = OPLoRA(model, lr=0.05, momentum=0.9), OPLoRA(twin, lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        overflows = step in (1, 4)
        model.zero_grad()  # the model's own, which knows nothing of captures
        scaler.scale(loss_of(model(batch(step))) * (torch.inf if overflows else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        if not overflows:
            expected.zero_grad()
            loss_of(twin(batch(step))).backward()
            expected.step()
    assert scaler.get_scale() == 2.0**8
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    assert int(optimizer.state[model[0].lora_B.weight]["step"]) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clip", [None, 0.02])
def test_training_under_autocast_follows_training_in_single(dtype, clip):
    model, twin = network(), network()
    optimizer, expected = OPLoRA(model, lr=0.05, momentum=0.5, debug=True), OPLoRA(twin, lr=0.05, momentum=0.5)
    start = matrices(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=dtype == torch.float16)
    for step in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_of(model(batch(step)))
        scaler.scale(loss).backward()
        expected.zero_grad()
        loss_of(twin(batch(step))).backward()
        if clip:
            scaler.unscale_(optimizer)
            for x in (model, twin):
                nn.utils.clip_grad_norm_(x.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        expected.step()
    for actual, other, before in zip(matrices(optimizer), matrices(expected), start, strict=True):
        assert relative(actual - before, other - before) < (0.1 if dtype == torch.bfloat16 else 0.02)


def test_autocast_keeps_inputs_in_half_precision():
    model = network()
    optimizer = OPLoRA(model, lr=0.05, gradient="pairs")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model(batch(0)))
    loss.backward()
    assert optimizer.gradient_nbytes() == {"0": 16 * 22 * 2, "2": 16 * 18 * 2}


def test_accumulation_under_loss_scaling():
    model, twin = network(), network()
    optimizer, expected = OPLoRA(model, lr=0.05), OPLoRA(twin, lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for x in batch(0).chunk(4):
        scaler.scale(loss_of(model(x)) / 4).backward()
    scaler.step(optimizer)
    loss_of(twin(batch(0))).backward()
    expected.step()
    for actual, other in zip(matrices(optimizer), matrices(expected), strict=True):
        assert relative(actual, other) < 1e-5


def test_clipping_each_entry_is_refused_by_name():
    model = network()
    optimizer = OPLoRA(model, lr=0.05)
    loss_of(model(batch(0))).backward()
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    with pytest.raises(RuntimeError, match=r"`0`: after the backward pass lora_A\.grad was multiplied by"):
        optimizer.step()


def test_zeroed_gradients_are_a_step_of_zero():
    model = network()
    optimizer = OPLoRA(model, lr=0.05)
    before = copy.deepcopy(matrices(optimizer))
    loss_of(model(batch(0))).backward()
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()
    optimizer.step()
    for actual, other in zip(matrices(optimizer), before, strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-5, atol=1e-6)

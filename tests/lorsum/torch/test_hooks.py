"""Hooks of others on the same modules and weights: what they change is captured as autograd has it, or refused by name.

The captured gradient G is compared with autograd's at every step: A.grad = BᵀG and B.grad = G Aᵀ.
"""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as all_modules

from lorsum.torch import LoRALinear, OPLoRA, add_lora


def network():
    torch.manual_seed(0)
    model = add_lora(nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 12)), 3, alpha=6)
    for layer in model[::2]:
        nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model


def backward(model, seed=0):
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    (model(x).square().mean() + model(x).sum() / 50).backward()


def assert_exact(optimizer):
    """The captured gradients are those of autograd."""
    gradients = optimizer.gradients()
    for adapter in optimizer.adapters:
        G = gradients[adapter.name]
        G = G.to_dense() if hasattr(G, "to_dense") else G
        torch.testing.assert_close(G @ adapter.A.detach().T, adapter.B.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(adapter.B.detach().T @ G, adapter.A.grad, rtol=1e-4, atol=1e-6)


# --- on modules: what leaves X, lora_A's output and S one product ---


def looking_forward(model):
    for module in model.modules():
        module.register_forward_hook(lambda *_: None, always_call=True)
        module.register_forward_hook(lambda *_, **__: None, with_kwargs=True, prepend=True)
        module.register_forward_pre_hook(lambda *_: None)


def looking_backward(model):
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
        module.register_full_backward_pre_hook(lambda *_: None)


def other_inputs(model):
    model[0].lora_A.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def inputs_by_keyword(model):
    model[0].lora_A.register_forward_pre_hook(lambda module, args, kwargs: ((), {"input": args[0]}), with_kwargs=True)


def other_outputs(model):
    model[0].lora_B.register_forward_hook(lambda module, args, output: output * 2)


def other_outputs_prepended(model):
    model[0].lora_B.register_forward_hook(lambda module, args, output: output * 2, prepend=True)


def outputs_in_place(model):
    model[0].lora_B.register_forward_hook(lambda module, args, output: output.mul_(2))


def other_gradients_of_outputs(model):
    model[0].lora_B.register_full_backward_pre_hook(lambda module, grad: (2 * grad[0],))


def copies_in_between(model):
    model[0].lora_B.register_forward_pre_hook(lambda module, args: (args[0].clone(),))


def hooks_on_tensors(model):
    def scale(module, args, output):
        output.register_hook(lambda grad: 3 * grad)

    model[0].lora_B.register_forward_hook(scale)


EXACT = [
    looking_forward,
    looking_backward,
    other_inputs,
    inputs_by_keyword,
    other_outputs,
    other_outputs_prepended,
    outputs_in_place,
    other_gradients_of_outputs,
    copies_in_between,
    hooks_on_tensors,
]


@pytest.mark.parametrize("before", [True, False], ids=["registered before", "registered after"])
@pytest.mark.parametrize("form", ["pairs", "dense"])
@pytest.mark.parametrize("hooks", EXACT)
def test_hooks_that_leave_a_product(hooks, form, before):
    model = network()
    if before:
        hooks(model)
    optimizer = OPLoRA(model, lr=1e-3, gradient=form, debug=True)
    if not before:
        hooks(model)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        assert_exact(optimizer)
        optimizer.step()


def test_gradients_changed_in_place_when_autograd_is_through_with_them():
    """What is kept of S is not the memory that a hook is given."""

    def wipe(module, inputs, outputs):
        outputs[0].zero_()

    model = network()
    optimizer = OPLoRA(model, lr=1e-3, gradient="pairs", debug=True)
    model[2].lora_B.register_full_backward_hook(wipe)  # with scaling, S is no memory of another branch
    backward(model)
    assert_exact(optimizer)
    optimizer.step()


# --- on modules: what does not ---


def other_output_of_lora_A(model):
    model[0].lora_A.register_forward_hook(lambda module, args, output: 2 * output)


def output_of_lora_A_in_place(model):
    model[0].lora_A.register_forward_hook(lambda module, args, output: output.mul_(2))


def output_of_lora_A_in_place_first(model):
    model[0].lora_A.register_forward_hook(lambda module, args, output: output.mul_(2), prepend=True)


def other_gradient_of_lora_A(model):
    model[0].lora_A.register_full_backward_pre_hook(lambda module, grad: (2 * grad[0],))


def other_gradient_in_between(model):
    model[0].lora_B.register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))


def other_gradient_of_the_tensor_in_between(model):
    def double_gradient(module, args, output):
        output.register_hook(lambda grad: 2 * grad)

    model[0].lora_A.register_forward_hook(double_gradient)


def a_hook_on_lora_A_alone(model):
    model[0].lora_A.weight.register_hook(lambda grad: 2 * grad)


def a_mask(model):
    model[0].lora_A.weight.register_hook(lambda grad: grad * (torch.arange(12) < 6))


REFUSED = [
    other_output_of_lora_A,
    output_of_lora_A_in_place,
    output_of_lora_A_in_place_first,
    other_gradient_of_lora_A,
    other_gradient_in_between,
    other_gradient_of_the_tensor_in_between,
    a_hook_on_lora_A_alone,
    a_mask,
]


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("hooks", REFUSED)
def test_hooks_that_leave_none_are_refused_by_name(hooks, step):
    """At every step, not only where it is compared with autograd anyway."""
    model = network()
    optimizer = OPLoRA(model, lr=1e-3)
    for i in range(step - 1):
        optimizer.zero_grad()
        backward(model, i)
        optimizer.step()
    optimizer.zero_grad()
    hooks(model)
    with pytest.raises(RuntimeError, match="`0`"):
        backward(model)
        optimizer.step()


def test_hooks_on_all_modules():
    def double(module, args, output):
        return 2 * output if isinstance(module, nn.Linear) and module.out_features == 10 else None

    model = network()
    optimizer = OPLoRA(model, lr=1e-3)
    handle = all_modules.register_module_forward_hook(double)
    try:
        with pytest.raises(RuntimeError, match="`0`"):
            backward(model)
            optimizer.step()
    finally:
        handle.remove()
    optimizer.zero_grad()
    backward(model)
    assert_exact(optimizer)
    optimizer.step()


# --- on weights ---


@pytest.mark.parametrize("factor", [None, 0.5, -1.0])
def test_hooks_on_both_weights(factor):
    model = network()
    optimizer = OPLoRA(model, lr=1e-3, debug=True)
    for p in [p for p in model.parameters() if p.requires_grad]:
        p.register_hook(lambda grad: None if factor is None else factor * grad)
    backward(model)
    backward(model, 1)
    assert_exact(optimizer)
    optimizer.step()


@pytest.mark.parametrize("before", [True, False], ids=["registered before", "registered after"])
def test_hooks_after_accumulation_that_change_it(before):
    """G is (G₁ / 2 + G₂) / 2."""

    def halve(p):
        p.grad.mul_(0.5)

    model = network()
    optimizers = [] if before else [OPLoRA(model, lr=1e-3, debug=True)]
    for p in [p for p in model.parameters() if p.requires_grad]:
        p.register_post_accumulate_grad_hook(halve)
    optimizer = OPLoRA(model, lr=1e-3, debug=True) if before else optimizers[0]
    backward(model)
    backward(model, 1)
    assert_exact(optimizer)
    optimizer.step()


def test_outputs_changed_in_place_by_the_model():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = LoRALinear((12, 10), rank=3)
            nn.init.normal_(self.layer.lora_B.weight)

        def forward(self, x):
            h = self.layer.lora_B(self.layer.lora_A(x))
            h *= 2
            return torch.relu_(h)

    model = InPlace()
    optimizer = OPLoRA(model, lr=1e-3, debug=True)
    for shape in ((12,), (4, 12), (2, 3, 12)):
        optimizer.zero_grad()
        model(torch.randn(shape)).square().sum().backward()
        assert_exact(optimizer)
        optimizer.step()

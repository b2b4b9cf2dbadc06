"""Transforms of a model while an optimizer lives: the model goes on working under them, and a step whose gradient went
past the capture is refused by name."""

import copy
import io

import pytest
import torch
from torch import func, nn
from torch.autograd import forward_ad

from lorsum.torch import LoRALinear, OPLoRA


def network():
    torch.manual_seed(0)
    model = nn.Sequential(LoRALinear((6, 5), rank=2, alpha=3), nn.Tanh(), LoRALinear((5, 4), rank=2))
    for layer in model[::2]:
        nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model


def batch():
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


def loss_of(outputs):
    return outputs.square().mean() + outputs.sum() / 9


def of_parameters(model):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return func.grad(lambda parameters: loss_of(func.functional_call(model, parameters, (batch(),))))(parameters)


def of_inputs(model):
    return func.grad(lambda x: loss_of(model(x)))(batch())


def a_batch_by_vmap(model):
    return func.vmap(model)(batch())


def gradients_of_examples(model):
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return loss_of(func.functional_call(model, parameters, (x,)))

    return func.vmap(func.grad(loss), in_dims=(None, 0))(parameters, batch())


def an_ensemble(model):
    with torch.no_grad():
        stacked = func.stack_module_state([copy.deepcopy(model) for _ in range(2)])
    x = batch()
    return func.vmap(lambda p, b: func.functional_call(model, (p, b), (x,)))(*stacked)


def forward_mode(model):
    return func.jvp(model, (batch(),), (torch.ones(3, 6),))


def forward_mode_of_autograd(model):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(batch(), torch.ones(3, 6))))


def jacobians(model):
    return func.jacrev(model)(batch()), func.jacfwd(model)(batch()), torch.autograd.functional.jacobian(model, batch())


def a_hessian(model):
    return func.hessian(lambda x: loss_of(model(x)))(batch())


def a_trace(model):
    traced = torch.jit.trace(model, batch())
    torch.jit.save(traced, io.BytesIO())
    return traced(batch())


def an_exported_program(model):
    program = torch.export.export(model, (batch(),))
    assert not any("lorsum" in str(node.target) for node in program.graph.nodes)
    return program.module()(batch())


def a_symbolic_trace(model):
    return torch.fx.symbolic_trace(model)(batch())


def a_replaced_state(model):
    return func.functional_call(model, {name: p.detach() * 2 for name, p in model.named_parameters()}, (batch(),))


TRANSFORMS = [
    of_parameters,
    of_inputs,
    a_batch_by_vmap,
    gradients_of_examples,
    an_ensemble,
    forward_mode,
    forward_mode_of_autograd,
    jacobians,
    a_hessian,
    a_trace,
    an_exported_program,
    a_symbolic_trace,
    a_replaced_state,
]


def tensors_in(x):
    if isinstance(x, torch.Tensor):
        return [x.detach()]
    parts = x.values() if isinstance(x, dict) else x
    return [tensor for part in parts for tensor in tensors_in(part)]


@pytest.mark.filterwarnings("default")  # torch.jit and the exporter tell that they are old
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_models_go_on_working(transform):
    """The results are those of a model without an optimizer, nothing is captured, and training goes on."""
    model = network()
    expected = tensors_in(transform(copy.deepcopy(model)))
    optimizer, other = OPLoRA(model, lr=0.05, debug=True), network()
    optimizer_of_other = OPLoRA(other, lr=0.05)
    for _ in range(2):
        for one, two in zip(tensors_in(transform(model)), expected, strict=True):
            torch.testing.assert_close(one, two)
        assert set(optimizer.gradient_nbytes().values()) == {0}
        for each, its in ((model, optimizer), (other, optimizer_of_other)):
            its.zero_grad()
            loss_of(each(batch())).backward()
            transform(each)
            its.step()
        expected = tensors_in(transform(copy.deepcopy(other)))
        torch.testing.assert_close(model[0].weight, other[0].weight)
        optimizer.zero_grad()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("late", [False, True], ids=["step 1", "step 3"])
@pytest.mark.parametrize("besides", [False, True], ids=["alone", "beside a captured call"])
@pytest.mark.parametrize("run", ["vmap", "trace", "fast weights"])
def test_steps_by_what_was_not_captured_are_refused(run, besides, late):
    model = network()
    optimizer = OPLoRA(model, lr=0.05)
    for _ in range(2 * late):
        optimizer.zero_grad()
        loss_of(model(batch())).backward()
        optimizer.step()
    optimizer.zero_grad()
    if besides:
        loss_of(model(batch())).backward()
    if run == "vmap":
        outputs = func.vmap(model)(batch())
    elif run == "trace":
        outputs = torch.jit.trace(model, batch())(batch())
    else:
        fast = {name: p - 0.1 * torch.ones_like(p) for name, p in model.named_parameters()}
        outputs = func.functional_call(model, fast, (batch(),))
    loss_of(outputs).backward()
    with pytest.raises(RuntimeError, match="`0`"):
        optimizer.step()


def test_a_functional_call_with_the_parameters_themselves_is_captured():
    model = network()
    optimizer = OPLoRA(model, lr=0.05, debug=True)
    loss_of(func.functional_call(model, dict(model.named_parameters()), (batch(),))).backward()
    optimizer.step()

"""Parameter groups: one for each that is given, under every scheduler, whatever rules train what is in it."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from lorsum import optim
from lorsum.torch import (
    LoRALinear,
    OPLoRA,
    PreconditionedAdamW,
    PreconditionedSGD,
    ProjectedOPLoRA,
    ScaledOPLoRA,
    SVDLoRA,
    adapters,
)

LR = 0.05
RULES = {
    "OPLoRA": (OPLoRA, {"momentum": 0.9}),
    "OPLoRA without momentum": (OPLoRA, {}),
    "ProjectedOPLoRA": (ProjectedOPLoRA, {"momentum": 0.9}),
    "ScaledOPLoRA": (ScaledOPLoRA, {"scale": optim.Shampoo(rank=3, damping=0.1)}),
    "PreconditionedSGD": (PreconditionedSGD, {"momentum": 0.9}),
    "PreconditionedAdamW": (PreconditionedAdamW, {}),
    "SVDLoRA": (SVDLoRA, {"momentum": 0.9}),
}
OTHERS = {"default": None, "SGD": optim.SGD(lr=0.01, momentum=0.5), "AdamW": optim.AdamW(lr=0.01)}
SCHEDULERS = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[LR] * len(o.param_groups), total_steps=10),
    "OneCycleLR without momentum": lambda o: lr_scheduler.OneCycleLR(o, LR, total_steps=10, cycle_momentum=False),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, LR, step_size_up=3),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda step: min(1, step / 4)] * len(o.param_groups)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), LoRALinear((8, 7), rank=3), nn.Tanh(), LoRALinear((7, 6), rank=2))
    for layer in (model[2], model[4]):
        nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model.double()


def beside(model):
    return [p for name, p in model.named_parameters() if "lora" not in name and p.requires_grad]


def factors(model):
    return [p for name, p in model.named_parameters() if "lora" in name]


def backward(model, step):
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    loss = (model(x) ** 2).mean()
    loss.backward()
    return loss.item()


def reference_for(rule, others, parameters):
    """torch's optimizer of the parameters beside the adapters."""
    cls, options = RULES[rule]
    if isinstance(OTHERS[others], optim.AdamW) or (others == "default" and cls is PreconditionedAdamW):
        return torch.optim.AdamW(parameters, lr=LR if others == "default" else 0.01)
    momentum = options.get("momentum", 0.0) if others == "default" else 0.5
    return torch.optim.SGD(parameters, lr=LR if others == "default" else 0.01, momentum=momentum)


@pytest.mark.filterwarnings("ignore::UserWarning")  # CyclicLR and SequentialLR warn of themselves
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("rule", RULES)
def test_schedulers_move_both_rules(rule, others, scheduler, tensor):
    """What is beside the adapters follows in proportion, and in its momentum, as torch's optimizers would."""
    model, twin = network(), network()
    cls, options = RULES[rule]
    lr = torch.tensor(LR, dtype=torch.float64) if tensor else LR
    optimizer = cls(model, lr=lr, others=OTHERS[others], **options)
    schedule = SCHEDULERS[scheduler](optimizer)
    expected = reference_for(rule, others, beside(twin))
    (group,), (its,) = optimizer.param_groups, expected.param_groups
    own, rates = its["lr"], []
    for step in range(5):
        rates.append(float(group["lr"]))
        its["lr"] = own * rates[-1] / LR
        if "max_momentum" in group:
            momentum = group["betas"][0] if "betas" in group else group["momentum"]
            its |= {"momentum": momentum, "betas": (momentum, 0.999)}
        with torch.no_grad():
            for p, q in zip(factors(twin), factors(model), strict=True):
                p.copy_(q)
        expected.zero_grad()
        backward(twin, step)
        expected.step()
        optimizer.zero_grad()
        loss = backward(model, step)
        optimizer.step()
        schedule.step(loss) if scheduler == "ReduceLROnPlateau" else schedule.step()
    assert scheduler == "ReduceLROnPlateau" or len(set(rates)) > 1
    for p, q in zip(beside(model), beside(twin), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
    assert not any(map(torch.equal, factors(model), factors(network())))


def test_a_learning_rate_in_a_tensor_is_read_at_each_step():
    """Schedulers change it in place."""
    model, twin = network(), network()
    lr = torch.tensor(LR)
    optimizer, expected = OPLoRA(model, lr=lr), OPLoRA(twin, lr=LR)
    for step in range(3):
        lr.fill_(LR / (step + 1))
        expected.param_groups[0]["lr"] = lr.item()
        for m, o in ((model, optimizer), (twin, expected)):
            o.zero_grad()
            backward(m, step)
            o.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_groups_have_options_of_their_own():
    model = network()
    optimizer = OPLoRA([{"params": model[2], "lr": 0.0}, {"params": [model[4], model[0]]}], lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.1]
    before = [p.detach().clone() for p in model.parameters()]
    backward(model, 0)
    optimizer.step()
    still = [torch.equal(p, q) for p, q in zip(model[2].parameters(), network()[2].parameters(), strict=True)]
    assert all(still)
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert sum(moved) == 5  # of two layers with adapters the one that moves: its bias, A and B; and the linear layer


@pytest.mark.parametrize("others", OTHERS)
def test_a_group_stays_one_group(others):
    """As many as are given, in which each parameter is once; schedulers take lists of that length."""
    model = network()
    given = [
        {"params": model[2]},
        {"params": adapters(model[4]), "lr": 0.2},
        {"params": [("bias", model[4].base.bias)], "lr": 0.3},
        {"params": [], "lr": 0.4},
        {"params": [model[0], model[0].weight], "lr": 0.5},
    ]
    optimizer = OPLoRA(given, lr=0.1, others=OTHERS[others])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 2, 1, 0, 2]
    name = "SGD" if others == "default" else others
    assert [group["rule"] for group in optimizer.param_groups] == ["OPLoRA", "OPLoRA", name, name, name]
    lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.2, 0.3, 0.4, 0.5], total_steps=5)
    backward(model, 0)
    optimizer.step()


def test_others_alone_have_their_own_rate():
    model = network()
    optimizer = OPLoRA([{"params": model[2]}, {"params": model[0]}], lr=0.1, others=optim.AdamW(lr=0.01))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    assert optimizer.param_groups[0]["others"]["lr"] == 0.01
    assert optimizer.param_groups[0]["others"]["beside_lr"] == 0.1


def test_groups_can_be_added():
    model = network()
    optimizer = OPLoRA(model[2], lr=0.1)
    optimizer.add_param_group({"params": model[4], "lr": 0.2, "iters": 3})
    optimizer.add_param_group({"params": model[0].weight, "lr": 0.3})
    assert [adapter.name for adapter in optimizer.adapters] == ["LoRALinear", "LoRALinear (2)"]
    assert [adapter.shape for adapter in optimizer.adapters] == [(7, 8), (6, 7)]
    assert [(g["rule"], g["lr"]) for g in optimizer.param_groups] == [("OPLoRA", 0.1), ("OPLoRA", 0.2), ("SGD", 0.3)]
    for step in range(2):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": model[2]})
    assert len(optimizer.param_groups) == len(optimizer._groups) == 3


def test_models_of_one_group_have_gradients_of_their_own():
    """Also where their adapters have the same names."""
    first, second = network(), network()
    optimizer = OPLoRA([first, second], lr=0.1)
    assert [adapter.name for adapter in optimizer.adapters] == ["2", "4", "2 (2)", "4 (2)"]
    backward(first, 0)
    backward(second, 1)
    gradients = optimizer.gradients()
    for adapter in optimizer.adapters:
        torch.testing.assert_close(
            adapter.B.grad, gradients[adapter.name] @ adapter.A.detach().T, rtol=1e-9, atol=1e-11
        )


def test_what_is_beside_frozen_adapters_is_trained():
    model = network()
    optimizer, expected = OPLoRA(model, lr=0.1), [p - 0.1 for p in beside(model)]
    for adapter in optimizer.adapters:
        adapter.A.requires_grad_(False)
        adapter.B.requires_grad_(False)
    with pytest.raises(RuntimeError, match="all adapters of the optimizer are frozen: 2, 4"):
        optimizer.step()
    sum(p.sum() for p in beside(model)).backward()
    optimizer.step()
    for p, q in zip(beside(model), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_the_loss_is_one():
    """What is beside the adapters is trained for the same sign of it."""
    model, twin = network(), network()
    optimizer = OPLoRA(model, lr=0.1, maximize=True, others=optim.SGD(lr=0.1))
    expected = torch.optim.SGD(beside(twin), lr=0.1, maximize=True)
    backward(model, 0)
    backward(twin, 0)
    optimizer.step()
    expected.step()
    for p, q in zip(beside(model), beside(twin), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


# --- bad input ---


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("of", "kind"),
    [
        (trained, ValueError),
        (lambda model: model.parameters(), ValueError),
        (lambda model: model.named_parameters(), ValueError),
        (lambda model: [{"params": trained(model)}], ValueError),
        (lambda model: [{"params": list(model.named_parameters()), "lr": 0.1}], ValueError),
        (lambda model: dict(model.named_parameters()), TypeError),
        (lambda model: model[2].lora_A.weight, TypeError),
    ],
)
def test_parameters_in_place_of_a_module_are_refused(of, kind):
    with pytest.raises(kind, match=r"pass the module .*instead of"):
        OPLoRA(of(network()), lr=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda model: [model, 3], "`params` holds a int; a module, an adapter, a parameter"),
        (lambda model: [{"params": {model}}], "`params` is a set"),
        (lambda model: [{"params": model, "foreach": True}], "`foreach` is an option of torch.optim"),
        (lambda model: [{"parameters": model, "lr": 0.1}], "group 0 of `model` has the keys parameters, lr, but no"),
        (lambda model: 3, "`model` is a int"),
    ],
)
def test_what_is_no_group_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        OPLoRA(given(network()), lr=0.1)


def test_models_without_numbers_are_refused():
    with torch.device("meta"):
        model = nn.Sequential(LoRALinear((8, 7), rank=3), LoRALinear((8, 7), rank=3))
    assert [adapter.name for adapter in adapters(model)] == ["0", "1"]
    with pytest.raises(ValueError, match="`0` is on the meta device"):
        OPLoRA(model, lr=0.1)
    OPLoRA(model.to_empty(device="cpu"), lr=0.1)


def test_complex_numbers_are_refused_by_name():
    with pytest.raises(ValueError, match="`0` is complex: its gradient is not captured"):
        OPLoRA(nn.Sequential(LoRALinear(nn.Linear(4, 3, dtype=torch.complex64), 2)), lr=0.1)
    model = LoRALinear((4, 3), 2)
    model.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="`phase` is complex, which AdamW does not train here"):
        OPLoRA(model, lr=0.1, others=optim.AdamW(lr=0.1))

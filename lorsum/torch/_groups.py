"""Parameter groups: what is in one that a user gives, and what an optimizer keeps of it."""

import itertools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lorsum.torch._adapters import Adapter, adapters
from lorsum.torch._dense_params import DenseParameters
from lorsum.torch._options import RuleClasses, numbers_of, rules_of
from lorsum.torch._trained_adapter import TrainedAdapter


class Group:
    """One parameter group in training: the adapters, which the rule trains, and the other parameters."""

    def __init__(self, has_adapters: bool, dense: DenseParameters):
        self.adapters: list[TrainedAdapter] = []
        self.dense, self._has_adapters = dense, has_adapters
        self._rules: tuple[Any, Any] | None = None
        self._options: dict[str, Any] = {}  # that they were made of

    def rules(self, classes: RuleClasses, options: dict[str, Any]) -> tuple[Any, Any]:
        """The rules of its adapters and of its other parameters, with the options that it has now."""
        options = numbers_of(options)
        if self._rules is None or self._options != options:
            self._options, self._rules = options, rules_of(classes, options, self._has_adapters)
        return self._rules


def groups_of(model: Any) -> list[dict[str, Any]]:
    """The groups in what an optimizer is given: one, unless there are dicts."""
    if isinstance(model, (str, bytes, Tensor, dict)) or not isinstance(model, (nn.Module, Iterable)):
        raise TypeError(
            f"`model` is a {type(model).__name__}; pass the module to train instead of its parameters, or a list of "
            "groups whose `params` are modules."
        )
    given = [model] if isinstance(model, nn.Module) else list(model)
    if not any(isinstance(part, dict) for part in given):
        return [{"params": given}] if given else []
    for number, part in enumerate(given):
        if isinstance(part, dict) and "params" not in part:
            raise TypeError(f"group {number} of `model` has the keys {', '.join(map(str, part))}, but no `params`.")
    return [part if isinstance(part, dict) else {"params": part} for part in given]


def parts(params: Any) -> tuple[list[Adapter], dict[Tensor, str]]:
    """The adapters in what a group's ``"params"`` hold, and the parameters beside them, each once, with their names."""
    if isinstance(params, (set, frozenset)):
        raise TypeError("`params` is a set, of which the order changes between runs: pass a list.")
    items = [params] if isinstance(params, (nn.Module, Tensor, Adapter)) else list(params)
    found: dict[Tensor, Adapter] = {}
    rest: dict[Tensor, str] = {}
    for item in items:
        if isinstance(item, nn.Module):
            found |= {adapter.B: adapter for adapter in adapters(item) if adapter.B not in found}
            rest |= {p: name for name, p in item.named_parameters() if p.requires_grad and p not in rest}
        elif isinstance(item, Adapter):
            found.setdefault(item.B, item)
        else:
            name, p = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"`params` holds a {type(item).__name__}; a module, an adapter, a parameter or a pair of its name "
                    "and it is needed."
                )
            rest.setdefault(p, name or f"a parameter of shape {tuple(p.shape)}")
    inside = {p for adapter in found.values() for p in (adapter.A, adapter.B)}
    rest = {p: name for p, name in rest.items() if p not in inside}
    _refuse_what_cannot_be_trained(found.values(), rest)
    return list(found.values()), rest


def _refuse_what_cannot_be_trained(found: Iterable[Adapter], rest: dict[Tensor, str]) -> None:
    for name, p in [(adapter.name, adapter.A) for adapter in found] + [(name, p) for p, name in rest.items()]:
        if p.is_meta:
            raise ValueError(
                f"`{name}` is on the meta device, and has no numbers: `to_empty` will give the model other parameters. "
                "Make the optimizer after it."
            )
    for adapter in found:
        if adapter.A.is_complex() or adapter.B.is_complex():
            raise ValueError(f"`{adapter.name}` is complex: its gradient is not captured. Freeze it.")


def refuse_without_adapters(model: Any, groups: list[dict[str, Any]]) -> None:
    """The error for a model in which there is nothing for the rule to train."""

    def has_module(params: Any) -> bool:
        items = [params] if isinstance(params, (nn.Module, Tensor)) else params
        return any(isinstance(item, nn.Module) for item in items)

    if groups and not any(has_module(group["params"]) for group in groups):
        raise ValueError(
            "`model` has no LoRA pair, but parameters alone, of which none says with which other it forms a pair: pass "
            "the module instead of parameters (to transformers.Trainer, as the entry `model` of "
            "`optimizer_cls_and_kwargs`), or groups whose `params` are modules."
        )
    methods = {str(getattr(config.peft_type, "value", "")) for config in getattr(model, "peft_config", {}).values()}
    if methods and "LORA" not in methods:
        raise ValueError(
            f"`model` has no LoRA pair: PEFT adapts it by {', '.join(sorted(methods))}, which is no product B·A. Use "
            "LoraConfig, or an optimizer of torch.optim."
        )
    raise ValueError(
        f"`model` ({type(model).__name__}) has no LoRA pair: no trainable lora_A with its lora_B. Put layers "
        "in with lorsum.torch.add_lora or peft.get_peft_model, or unfreeze them."
    )


def unused(name: str, taken: set[str]) -> str:
    """The name, numbered where the modules of several groups have it."""
    numbered = (name if i == 1 else f"{name} ({i})" for i in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)

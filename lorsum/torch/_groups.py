"""Parameter groups: what is in one that a user gives, and which rules its options describe.

A group has the options of the adapters' rule. Parameters beside the adapters are trained by another rule, of which
``group["others"]`` holds what it does not share with these: its learning rate goes in proportion to the group's.
"""

import dataclasses
import itertools
from collections.abc import Iterable

import torch

from lorsum import optim
from lorsum.torch._adapters import Adapter, adapters

__all__ = [
    "check_rules",
    "checked_others",
    "checked_rule",
    "groups_of",
    "numbers_of",
    "options_of",
    "options_of_group",
    "others_of",
    "parts",
    "refuse_without_adapters",
    "rule_of",
    "unused",
]

OF_TORCH = {"foreach", "fused", "capturable", "differentiable", "amsgrad", "nesterov", "dampening"}


def groups_of(model):
    """The groups in what an optimizer is given: one, unless there are dicts."""
    if isinstance(model, (str, bytes, torch.Tensor, dict)) or not isinstance(model, (torch.nn.Module, Iterable)):
        raise TypeError(
            f"`model` is a {type(model).__name__}; pass the module to train instead of its parameters, or a list of "
            "groups whose `params` are modules."
        )
    given = [model] if isinstance(model, torch.nn.Module) else list(model)
    if not any(isinstance(part, dict) for part in given):
        return [{"params": given}] if given else []
    for number, part in enumerate(given):
        if isinstance(part, dict) and "params" not in part:
            raise TypeError(f"group {number} of `model` has the keys {', '.join(map(str, part))}, but no `params`.")
    return [part if isinstance(part, dict) else {"params": part} for part in given]


def parts(params):
    """The adapters in what a group's ``"params"`` hold, and the parameters beside them, each once, with their names."""
    if isinstance(params, (set, frozenset)):
        raise TypeError("`params` is a set, of which the order changes between runs: pass a list.")
    items = [params] if isinstance(params, (torch.nn.Module, torch.Tensor, Adapter)) else list(params)
    found: dict = {}
    rest: dict = {}
    for item in items:
        if isinstance(item, torch.nn.Module):
            found |= {adapter.B: adapter for adapter in adapters(item) if adapter.B not in found}
            rest |= {p: name for name, p in item.named_parameters() if p.requires_grad and p not in rest}
        elif isinstance(item, Adapter):
            found.setdefault(item.B, item)
        else:
            name, p = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
            if not isinstance(p, torch.Tensor):
                raise TypeError(
                    f"`params` holds a {type(item).__name__}; a module, an adapter, a parameter or a pair of its name "
                    "and it is needed."
                )
            rest.setdefault(p, name or f"a parameter of shape {tuple(p.shape)}")
    inside = {p for adapter in found.values() for p in (adapter.A, adapter.B)}
    rest = {p: name for p, name in rest.items() if p not in inside}
    _refuse_what_cannot_be_trained(found.values(), rest)
    return list(found.values()), rest


def _refuse_what_cannot_be_trained(found, rest):
    for name, p in [(adapter.name, adapter.A) for adapter in found] + [(name, p) for p, name in rest.items()]:
        if p.is_meta:
            raise ValueError(
                f"`{name}` is on the meta device, and has no numbers: `to_empty` will give the model other parameters. "
                "Make the optimizer after it."
            )
    for adapter in found:
        if adapter.A.is_complex() or adapter.B.is_complex():
            raise ValueError(f"`{adapter.name}` is complex: its gradient is not captured. Freeze it.")


def options_of(rule):
    """A rule's options by name."""
    return {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}


def common(cls, options):
    """Those of the options that a rule of this class has too."""
    return {field.name: options[field.name] for field in dataclasses.fields(cls) if field.name in options}


def numbers_of(options):
    """The options with numbers in place of tensors, which a scheduler changes in place."""
    return {name: _number(value) for name, value in options.items() if name != "params"}


def _number(value):
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, tuple):
        return tuple(map(_number, value))
    return numbers_of(value) if isinstance(value, dict) else value


def rule_of(classes, options):
    """The rule that trains a group's adapters; its parameters, where it has no adapters."""
    cls = classes[options["rule"]]
    return cls(**common(cls, options | _cycled(cls, options, options)))


def others_of(classes, options):
    """The rule that trains a group's parameters beside its adapters."""
    own = options["others"]
    described = options | own
    if own.get("beside_lr"):
        described["lr"] = own["lr"] * (options["lr"] / own["beside_lr"])
    cls = classes[own["rule"]]
    return cls(**common(cls, described | _cycled(classes[options["rule"]], options, described)))


def _cycled(cls, group, described):
    """A momentum that a scheduler cycles, as SGD's and as AdamW's β₁.

    It sets in all groups the one that the optimizer's defaults have: in a group by another rule, what that has not.
    """
    if "max_momentum" not in group:
        return {}
    names = [name for name in ("momentum", "betas") if name in group]
    name = next((name for name in names if name not in cls.__dataclass_fields__), names[0])
    value = group["betas"][0] if name == "betas" else group["momentum"]
    return {"momentum": value, "betas": (value, *described.get("betas", ())[1:])}


def options_of_group(given, defaults, others, classes, found, rest):
    """The options of a group with these adapters and other parameters: those given hold for both."""
    _refuse_options_of_torch("a parameter group", given)
    cls = list(classes.values())[-1]
    own = {} if others is None else options_of(others)
    own.pop("maximize", None)  # there is one loss
    if found:
        options = defaults | given
    else:
        cycled = {name: defaults[name] for name in ("momentum", "betas") if name in defaults}
        options = cycled | common(cls, defaults) | own | {"rule": cls.__name__} | given
    trained_by = rule_of(classes, numbers_of(options))
    if found and rest:
        own = {name: value for name, value in own.items() if name not in given}
        beside = {"beside_lr": float(options["lr"])} if "lr" in own else {}
        options["others"] = {"rule": cls.__name__, **own, **beside}
        trained_by = others_of(classes, numbers_of(options))
    if isinstance(trained_by, optim.AdamW):
        for p, name in rest.items():
            if p.is_complex():
                raise ValueError(f"`{name}` is complex, which AdamW does not train here. Freeze it, or use SGD.")
    return options


def checked_rule(Rule, lr, options):
    """The rule of an optimizer's options."""
    if callable(lr):
        raise TypeError("`lr` is a callable; pass a number, and a scheduler of torch.optim.lr_scheduler.")
    _refuse_options_of_torch(Rule.__name__, options)
    for name in options.keys() - {field.name for field in dataclasses.fields(Rule)}:
        names = ", ".join(field.name for field in dataclasses.fields(Rule))
        raise TypeError(f"{Rule.__name__} got an unexpected keyword argument '{name}'; its options are {names}.")
    return Rule(**numbers_of({"lr": lr, **options}))


def _refuse_options_of_torch(name, options):
    """An error for options that torch.optim has and people pass by habit."""
    for option in OF_TORCH & options.keys():
        raise TypeError(
            f"`{option}` is an option of torch.optim, which {name} does not take as a keyword argument: leave it out."
        )


def checked_others(others, rule):
    """The rule for what is outside the adapters."""
    if not isinstance(others, (optim.SGD, optim.AdamW)):
        raise TypeError(f"`others` is {others!r}; lorsum.optim.SGD(lr=…) or lorsum.optim.AdamW(lr=…) is needed.")
    if callable(others.lr):
        raise TypeError("`others` has a callable as its `lr`; pass a number, and a scheduler.")
    if others.maximize and not rule.maximize:
        raise ValueError("`maximize` is True for `others` alone: there is one loss, pass it to the optimizer.")
    return others


def check_rules(saved, now):
    """An error where the rules are not those of the groups that were saved."""
    for number, (old, new) in enumerate(zip(saved, now, strict=False)):
        for name, then, wanted in (
            ("rule", old.get("rule"), new.get("rule")),
            ("scale", old.get("scale"), new.get("scale")),
            ("others", old.get("others", {}).get("rule"), new.get("others", {}).get("rule")),
        ):
            if str(then) != str(wanted):
                raise ValueError(f"`{name}` of group {number} was {then} when saved, now {wanted}.")


def refuse_without_adapters(model, groups):
    """The error for a model in which there is nothing for the rule to train."""

    def modules(params):
        items = [params] if isinstance(params, (torch.nn.Module, torch.Tensor)) else list(params)
        return [item for item in items if isinstance(item, torch.nn.Module)]

    if groups and not any(modules(group["params"]) for group in groups):
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


def unused(name, taken):
    """The name, numbered where the modules of several groups have it."""
    numbered = (name if i == 1 else f"{name} ({i})" for i in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)

"""The options of a parameter group, as ``param_groups`` has them, and the rules that they describe.

A group has the options of the adapters' rule. Parameters beside the adapters are trained by another rule, of which
``group["others"]`` holds what it does not share with these: its learning rate goes in proportion to the group's.
"""

import dataclasses
from typing import Any, NamedTuple

from torch import Tensor

OF_TORCH = {"foreach", "fused", "capturable", "differentiable", "amsgrad", "nesterov", "dampening"}


class RuleClasses(NamedTuple):
    """The classes of the rules of an optimizer: for its adapters, and for its other parameters."""

    adapters: type
    others: type


def checked_rule(Rule: type, lr: Any, options: dict[str, Any]) -> Any:
    """The rule of an optimizer's options."""
    if callable(lr):
        raise TypeError("`lr` is a callable; pass a number, and a scheduler of torch.optim.lr_scheduler.")
    _refuse_options_of_torch(Rule.__name__, options)
    if not dataclasses.is_dataclass(Rule) or "lr" not in Rule.__dataclass_fields__:
        raise TypeError(f"`Rule` is {Rule.__name__}; a dataclass with a field `lr` is needed, see lorsum.optim.Rule.")
    known = [field.name for field in dataclasses.fields(Rule)]
    for name in options.keys() - set(known):
        raise TypeError(
            f"{Rule.__name__} got an unexpected keyword argument '{name}'; its options are {', '.join(known)}."
        )
    return Rule(**numbers_of({"lr": lr, **options}))


def checked_others(others: Any, rule: Any) -> Any:
    """The rule that is given for what is outside the adapters."""
    if not getattr(others, "entrywise", False):
        raise TypeError(
            f"`others` is {others!r}; lorsum.optim.SGD(lr=…) or lorsum.optim.AdamW(lr=…) is needed, or a rule of your "
            "own that is `entrywise`."
        )
    if callable(others.lr):
        raise TypeError("`others` has a callable as its `lr`; pass a number, and a scheduler.")
    if getattr(others, "maximize", False) and not getattr(rule, "maximize", False):
        raise ValueError("`maximize` is True for `others` alone: there is one loss, pass it to the optimizer.")
    return others


def options_of(rule: Any) -> dict[str, Any]:
    """A rule's options by name."""
    return {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}


def have_same_structure(rule: Any, other: Any) -> bool:
    """True if states of the two have the same parts: these depend on the options, of numbers on whether they are 0."""
    if rule is other:
        return True
    one, two = ((type(x), *map(_used, options_of(x).values())) for x in (rule, other))
    return one == two


def _used(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_used, value))
    return bool(value) if isinstance(value, float) else value


def numbers_of(value: Any) -> Any:
    """A group's options with numbers in place of tensors, which a scheduler changes in place."""
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, tuple):
        return tuple(map(numbers_of, value))
    if isinstance(value, dict):
        return {name: numbers_of(x) for name, x in value.items() if name != "params"}
    return value


def rules_of(classes: RuleClasses, options: dict[str, Any], has_adapters: bool) -> tuple[Any, Any]:
    """The rules of a group's adapters and of its other parameters, of which it may have one kind only."""
    cls = classes.adapters if has_adapters else classes.others
    rule = cls(**_common(cls, options | _cycled(cls, options, options)))
    if "others" not in options:
        return rule, rule
    own = options["others"]
    described = options | own
    if own.get("beside_lr"):
        described["lr"] = own["lr"] * (options["lr"] / own["beside_lr"])
    return rule, classes.others(**_common(classes.others, described | _cycled(cls, options, described)))


def _common(cls: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a rule of this class has too."""
    return {field.name: options[field.name] for field in dataclasses.fields(cls) if field.name in options}


def _cycled(cls: Any, group: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """A momentum that a scheduler cycles, as SGD's and as AdamW's β₁.

    It sets in all groups the one that the optimizer's defaults have: in a group by another rule, what that has not.
    """
    if "max_momentum" not in group:
        return {}
    names = [name for name in ("momentum", "betas") if name in group]
    name = next((name for name in names if name not in cls.__dataclass_fields__), names[0])
    value = group["betas"][0] if name == "betas" else group["momentum"]
    return {"momentum": value, "betas": (value, *described.get("betas", ())[1:])}


def group_options(
    given: dict[str, Any],
    defaults: dict[str, Any],
    others: Any,
    classes: RuleClasses,
    has_adapters: bool,
    rest: dict[Tensor, str],
) -> dict[str, Any]:
    """The options of a group with adapters or without, and with the rest: those given hold for both."""
    _refuse_options_of_torch("a parameter group", given)
    cls = classes.others
    own = {} if others is None else options_of(others)
    own.pop("maximize", None)  # there is one loss
    if has_adapters:
        options = defaults | given
    else:
        cycled = {name: defaults[name] for name in ("momentum", "betas") if name in defaults}
        options = cycled | _common(cls, defaults) | own | {"rule": cls.__name__} | given
    if has_adapters and rest:
        own = {name: value for name, value in own.items() if name not in given}
        beside = {"beside_lr": float(options["lr"])} if "lr" in own else {}
        options["others"] = {"rule": cls.__name__, **own, **beside}
    _, trained_by = rules_of(classes, numbers_of(options), has_adapters)
    for p, name in rest.items():
        if p.is_complex() and not getattr(trained_by, "trains_complex", True):
            kind = type(trained_by).__name__
            raise ValueError(f"`{name}` is complex, which {kind} does not train here. Freeze it, or use SGD.")
    return options


def _refuse_options_of_torch(name: str, options: dict[str, Any]) -> None:
    """An error for options that torch.optim has and people pass by habit."""
    for option in OF_TORCH & options.keys():
        raise TypeError(
            f"`{option}` is an option of torch.optim, which {name} does not take as a keyword argument: leave it out."
        )


def is_plain(value: Any) -> bool:
    """True for what ``torch.load`` reads with ``weights_only=True``; other options, such as a scale, are not saved."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return value is None or isinstance(value, (bool, int, float, str, Tensor))


def check_rules(saved: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    """An error where the rules are not those of the groups that were saved."""
    for number, (old, new) in enumerate(zip(saved, now, strict=False)):
        compared = {"rule": (old.get("rule"), new.get("rule"))}
        for name in old.keys() & new.keys() - {"params", "rule", "others"}:
            then, wanted = old[name], new[name]
            if not is_plain(wanted) or (isinstance(then, str) and not isinstance(wanted, str)):
                compared[name] = then, wanted
        compared["others"] = old.get("others", {}).get("rule"), new.get("others", {}).get("rule")
        for name, (then, wanted) in compared.items():
            if str(then) != str(wanted):
                raise ValueError(f"`{name}` of group {number} was {then} when saved, now {wanted}.")

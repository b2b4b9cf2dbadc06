"""The methods that the paper compares: their names, and the update rule that a configuration asks for."""

from typing import NamedTuple

from lorsum import gap, optim

__all__ = ["configuration", "label", "rule_of", "step_gap"]

# What tells a method's entries in a configuration from the task's
_RULES = {
    "full": optim.Full,
    "full adamw": optim.AdamW,
    "svdlora": optim.SVDLoRA,
    "oplora": optim.OPLoRA,
    "projected oplora": optim.ProjectedOPLoRA,
    "preconditioned sgd": optim.PreconditionedSGD,
    "preconditioned adamw": optim.PreconditionedAdamW,
    "lora sgd": optim.SGD,
    "lora adamw": optim.AdamW,
}
_LABELS = {
    "full": "full",
    "full adamw": "full AdamW",
    "svdlora": "SVDLoRA",
    "oplora": "OPLoRA",
    "projected oplora": "projected OPLoRA",
    "preconditioned sgd": "preconditioned SGD",
    "preconditioned adamw": "preconditioned AdamW",
    "lora sgd": "LoRA SGD",
    "lora adamw": "LoRA AdamW",
}
_PREFERENCES = {
    "oplora": {"first": "V"},  # as the published code, and better at K = 1: the last half-step is on the noisier side
    "projected oplora": {"first": "V"},
    "preconditioned adamw": {"weight_decay": 1e-4},
    "lora adamw": {"weight_decay": 1e-4},
    "full adamw": {"weight_decay": 1e-4},
}
_REGULARISED = ("oplora", "projected oplora", "preconditioned sgd", "preconditioned adamw")


class StepGap(NamedTuple):
    """See `step_gap`."""

    excess: float
    missed: float


def configuration(method, *, lr, momentum=0.0, reg=1e-3, **options):
    """The entries of a study's configuration that say which rule trains, and how.

    Parameters
    ----------
    method : str
        A key of the paper's comparison: "full", "full adamw", "svdlora", "oplora", "projected oplora",
        "preconditioned sgd", "preconditioned adamw", "lora sgd" or "lora adamw".
    lr, momentum, reg : float
        η, α and λ (multiplied by η in the rule); methods without momentum or λ leave these out.
    **options
        Further options of the rule: ``iters``, ``momentum_rank``.

    Returns
    -------
    dict
    """
    config = {"method": method, "lr": lr, **_PREFERENCES.get(method, {}), **options}
    if not method.endswith("adamw"):
        config["momentum"] = momentum
    if method in _REGULARISED:
        config["reg"] = reg
    return config


def rule_of(config):
    """The update rule of a configuration."""
    names = ("lr", "momentum", "momentum_rank", "iters", "reg", "start", "weight_decay")
    return _RULES[config["method"]](**{name: config[name] for name in names if name in config})


def label(config):
    """The method as the paper's legends call it: ``OPLoRA ×2``."""
    name = _LABELS[config["method"]]
    return f"{name} ×{config['iters']}" if "iters" in config else name


def step_gap(stepped, target, W):
    """How far a step from W lands from the truncated SVD T_r of what it was to reach.

    Returns
    -------
    StepGap
        ``excess`` = ‖target − W⁺‖ / ‖target − T_r‖ − 1, and ``missed`` = ‖W⁺ − T_r‖ / ‖W − T_r‖, the share of the way
        that was missed: 0 lands on the truncated SVD, 1 is as far from it as not to move at all.
    """
    after, before = gap(stepped, target), gap(W, target)
    return StepGap(after.excess, after.distance / before.distance if before.distance else 0.0)

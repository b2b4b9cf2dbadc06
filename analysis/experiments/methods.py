"""The methods that the paper compares, in one table: what they are called, what trains them, how they are drawn."""

from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple

from lorsum import optim
from lorsum.typing import Factor

__all__ = [
    "FAMILIES",
    "METHODS",
    "Config",
    "Method",
    "configuration",
    "label",
    "method_of",
    "options_of",
    "optimizer_class",
    "rule_of",
]

Config = dict[str, Any]  # of a run: the method and its options, the task's, the seed

_OPTIONS = ("lr", "momentum", "momentum_rank", "iters", "reg", "first", "weight_decay")


class Method(NamedTuple):
    """A row of the table.

    ``rule`` steps on adapters, in the studies without a framework and in JAX; ``optimizer`` is where the class of
    PyTorch's optimizer is found. ``beside`` trains what stands beside the adapters, such as biases, and decides
    whether the method has a momentum (SGD) or a weight decay (AdamW). ``proximal``: whether λ is among its options;
    ``first``: the factor that its alternation updates first. A method that has a number of iterations K takes a shade
    of the colormap ``color`` for it.
    """

    label: str
    rule: type
    optimizer: str
    beside: Literal["sgd", "adamw"]
    family: str
    color: str
    dashes: Any
    proximal: bool = False
    first: Factor | None = None

    @property
    def plain(self) -> bool:
        """True where an optimizer of the framework's own trains everything."""
        return self.optimizer.startswith("torch.optim:")


FAMILIES = ("OPLoRA", "projected OPLoRA", "preconditioned LoRA", "LoRA", "with the full matrix")  # as in legends

# Name in a configuration → what it is, in the order of tables. The colours are safe for the colour-blind, and the
# dashes tell the families apart in grey. OPLoRA starts with V, as in the published code: it is better at K = 1, since
# the last half-step is then on the noisier side.
METHODS = {
    "lora sgd": Method(
        "LoRA SGD", optim.SGD, "torch.optim:SGD", "sgd", "LoRA", "#882255", (0, (1, 1)),
    ),
    "lora adamw": Method(
        "LoRA AdamW", optim.AdamW, "torch.optim:AdamW", "adamw", "LoRA", "#dd77aa", (0, (1, 2.2)),
    ),
    "preconditioned sgd": Method(
        "preconditioned SGD", optim.PreconditionedSGD, "lorsum.torch:PreconditionedSGD", "sgd",
        "preconditioned LoRA", "#007a5a", (0, (6, 1.5, 1, 1.5)), proximal=True,
    ),
    "preconditioned adamw": Method(
        "preconditioned AdamW", optim.PreconditionedAdamW, "lorsum.torch:PreconditionedAdamW", "adamw",
        "preconditioned LoRA", "#3fc79a", (0, (6, 1.5, 1, 1.5, 1, 1.5)), proximal=True,
    ),
    "projected oplora": Method(
        "projected OPLoRA", optim.ProjectedOPLoRA, "lorsum.torch:ProjectedOPLoRA", "sgd",
        "projected OPLoRA", "Oranges", (0, (4, 1.2)), proximal=True, first="V",
    ),
    "oplora": Method(
        "OPLoRA", optim.OPLoRA, "lorsum.torch:OPLoRA", "sgd",
        "OPLoRA", "Blues", "-", proximal=True, first="V",
    ),
    "full": Method(
        "full", optim.Full, "torch.optim:SGD", "sgd", "with the full matrix", "0.55", "-",
    ),
    "full adamw": Method(
        "full AdamW", optim.AdamW, "torch.optim:AdamW", "adamw", "with the full matrix", "0.72", (0, (3, 1)),
    ),
    "svdlora": Method(
        "SVDLoRA", optim.SVDLoRA, "lorsum.torch:SVDLoRA", "sgd", "with the full matrix", "black", (0, (7, 2)),
    ),
}  # fmt: skip


def configuration(method: str, *, lr: float, momentum: float = 0.0, reg: float = 1e-3, **options: Any) -> Config:
    """The entries of a study's configuration that say which rule trains, and how.

    Parameters
    ----------
    method : str
        A key of `METHODS`.
    lr, momentum, reg : float
        η, α and λ (multiplied by η in the rule); methods without momentum or λ leave these out.
    **options
        Further options of the rule: ``iters``, ``momentum_rank``.
    """
    row = METHODS[method]
    config = {"method": method, "lr": lr, **options}
    config |= {"momentum": momentum} if row.beside == "sgd" else {"weight_decay": 1e-4}
    if row.proximal:
        config["reg"] = reg
    if row.first:
        config["first"] = row.first
    return config


def method_of(config: Config) -> Method:
    """The row of a configuration's method."""
    return METHODS[config["method"]]


def options_of(config: Config) -> dict[str, Any]:
    """The options of a configuration's method, without the task's: keywords of its rule and of its optimizer."""
    return {name: config[name] for name in _OPTIONS if name in config}


def rule_of(config: Config) -> Any:
    """The update rule of a configuration, on adapters."""
    return method_of(config).rule(**options_of(config))


def optimizer_class(config: Config) -> type:
    """The class of the method's optimizer in PyTorch, which this imports."""
    return resolve_name(method_of(config).optimizer)


def label(config: Config) -> str:
    """The method as the paper's legends call it: ``OPLoRA ×2``."""
    name = method_of(config).label
    return f"{name} ×{config['iters']}" if "iters" in config else name

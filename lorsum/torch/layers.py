"""Layers with LoRA adapters, built as PEFT builds them, and a function that puts them into a model."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lorsum._checks import as_rank


class _LoRALayer(nn.Module):
    """x ↦ base(x) + s · lora_B(lora_A(dropout(x))), with the base's weight frozen."""

    base: Any
    lora_A: Any
    lora_B: Any

    def __init__(self, base: Any, rank: int, alpha: float | None, rslora: bool, dropout: float):
        super().__init__()
        if alpha is not None and not (isinstance(alpha, (int, float)) and math.isfinite(alpha)):
            raise ValueError(f"`alpha` is {alpha!r}; a finite number is needed.")
        as_rank(rank, (base.weight.shape[0], base.weight[0].numel()), "rank")
        self.base = base
        base.weight.requires_grad_(False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.scaling = 1.0 if alpha is None else alpha / (math.sqrt(rank) if rslora else rank)

    def reset_adapter(self) -> None:
        """B = 0 and A uniform on ±1/√d_in: the layer computes what its base does."""
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The base's output, and the adapter's."""
        base: Tensor = self.base(x)
        adapted: Tensor = self.lora_B(self.lora_A(self.dropout(x.to(self.lora_A.weight.dtype))))
        if self.scaling != 1:
            adapted = self.scaling * adapted
        return base + adapted.to(base.dtype)

    @property
    def weight(self) -> Tensor:
        """The base's weight with the adapter in it."""
        A, B = self.lora_A.weight, self.lora_B.weight
        base: Tensor = self.base.weight
        BA = (B.reshape(B.shape[0], -1) @ A.reshape(A.shape[0], -1)).reshape(base.shape)
        return base + (self.scaling * BA).to(base.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        bias: Tensor | None = self.base.bias
        return bias

    @torch.no_grad()
    def merged(self) -> Any:
        """The base, a module, with the adapter added to its weight; this layer must not be used after that."""
        self.base.weight.copy_(self.weight)
        return self.base.requires_grad_(self.lora_A.weight.requires_grad)

    def extra_repr(self) -> str:
        """Rank and scaling."""
        return f"rank={self.lora_A.weight.shape[0]}, scaling={self.scaling:g}"


class LoRALinear(_LoRALayer):
    """A linear layer with a frozen weight and a LoRA adapter: x ↦ W x + b + s · B (A dropout(x)).

    Parameters
    ----------
    base : torch.nn.Linear or pair of int
        The layer to adapt, of which the weight is frozen and the bias left as it is; or (d_in, d_out) for a new one.
    rank : int
        r, at most min(d_in, d_out).
    alpha : float, optional
        α of the scaling s = α/r; default: s = 1.
    rslora : bool
        s = α/√r.
    dropout : float
        Probability to drop an entry of the adapter's input.
    bias : bool
        Whether a new layer has a bias.

    Raises
    ------
    ValueError
        If the rank is above min(d_in, d_out).
    TypeError
        If ``base`` is of another kind.

    Examples
    --------
    >>> layer = LoRALinear((5, 4), rank=2, alpha=4)
    >>> layer.lora_A.weight.shape, layer.lora_B.weight.shape, layer.scaling
    (torch.Size([2, 5]), torch.Size([4, 2]), 2.0)
    """

    def __init__(
        self,
        base: nn.Linear | tuple[int, int],
        rank: int,
        *,
        alpha: float | None = None,
        rslora: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ):
        layer: nn.Linear = _as_layer(base, nn.Linear, ("d_in", "d_out"), bias)
        super().__init__(layer, rank, alpha, rslora, dropout)
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.lora_A = nn.Linear(self.in_features, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False, **like)
        self.reset_adapter()


class LoRAConv2d(_LoRALayer):
    """A convolution with a frozen weight and a LoRA adapter, the convolution being viewed as a matrix.

    Its matrix is d_out × (d_in · kernel): it multiplies the patches of the image. lora_A is a convolution with the
    base's kernel and r channels, lora_B a 1 × 1 convolution; B·A is the weight of their composition.

    Parameters
    ----------
    base : torch.nn.Conv2d or triple
        The layer to adapt, without groups, of which the weight is frozen and the bias left as it is; or (d_in, d_out,
        kernel_size) for a new one.
    rank : int
        r, at most min(d_out, d_in · kernel).
    alpha, rslora, dropout, bias
        As for :class:`LoRALinear`.

    Raises
    ------
    ValueError
        If the rank is too large, or the convolution has groups.
    TypeError
        If ``base`` is of another kind.

    Examples
    --------
    >>> layer = LoRAConv2d((3, 8, 5), rank=2)
    >>> layer(torch.zeros(1, 3, 9, 9)).shape, layer.lora_A.weight.shape
    (torch.Size([1, 8, 5, 5]), torch.Size([2, 3, 5, 5]))
    """

    def __init__(
        self,
        base: nn.Conv2d | tuple[Any, ...],
        rank: int,
        *,
        alpha: float | None = None,
        rslora: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ):
        layer: nn.Conv2d = _as_layer(base, nn.Conv2d, ("d_in", "d_out", "kernel_size"), bias)
        if layer.groups != 1:
            raise ValueError(f"`base` has {layer.groups} groups; a convolution with groups is no single matrix.")
        super().__init__(layer, rank, alpha, rslora, dropout)
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        geometry: dict[str, Any] = {name: getattr(layer, name) for name in names}
        self.lora_A = nn.Conv2d(layer.in_channels, rank, bias=False, **geometry, **like)
        self.lora_B = nn.Conv2d(rank, layer.out_channels, 1, bias=False, **like)
        self.reset_adapter()


def add_lora(
    model: nn.Module,
    rank: int,
    *,
    targets: str | Iterable[str] | Callable[[str, nn.Module], bool] | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
) -> Any:
    """Put adapters into a model, in place.

    Only the weights of the layers that get an adapter are frozen. Biases and all other layers stay as they are: call
    ``model.requires_grad_(False)`` first where they are not to be trained.

    Parameters
    ----------
    model : torch.nn.Module
        To be changed.
    rank : int
        r of every adapter; layers whose smaller side is below it get that rank.
    targets : callable, str or list of str, optional
        Which layers: the ends of their names, as in PEFT, or a function of name and module; default: all of type
        ``torch.nn.Linear``.
    alpha, rslora, dropout
        As for :class:`LoRALinear`.

    Returns
    -------
    torch.nn.Module
        The same model; another object only where it is itself a layer that got an adapter.

    Raises
    ------
    ValueError
        If no layer is meant, or one that is no ``Linear`` or ``Conv2d``.

    Examples
    --------
    >>> add_lora(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), rank=2, targets="0")[0]
    LoRALinear(
      rank=2, scaling=1
      (base): Linear(in_features=4, out_features=3, bias=True)
      (dropout): Identity()
      (lora_A): Linear(in_features=4, out_features=2, bias=False)
      (lora_B): Linear(in_features=2, out_features=3, bias=False)
    )
    """
    is_target = _target(targets)
    inside = {name for name, module in model.named_modules() if isinstance(module, _LoRALayer)}
    options: dict[str, Any] = {"alpha": alpha, "rslora": rslora, "dropout": dropout}
    made: dict[nn.Module, nn.Module] = {}  # by the layer adapted, so that a layer used in two places stays one
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if any(name.startswith(f"{outer}." if outer else "") for outer in inside) or not is_target(name, module):
            continue
        if module not in made:
            made[module] = _adapted(name, module, rank, options)
        if not name:
            return made[module]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[module])
    if not made:
        raise ValueError(f"`targets` is {targets!r}: no layer of `model` ({type(model).__name__}) is meant by it.")
    return model


def _target(targets: str | Iterable[str] | Callable[[str, nn.Module], bool] | None) -> Callable[[str, nn.Module], bool]:
    if targets is None:
        return lambda name, module: type(module) is nn.Linear
    if callable(targets):
        return targets
    ends = (targets,) if isinstance(targets, str) else tuple(targets)
    return lambda name, module: any(name == end or name.endswith("." + end) for end in ends)


def _adapted(name: str, module: Any, rank: int, options: dict[str, Any]) -> nn.Module:
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        raise ValueError(f"`targets` means `{name}`, a {type(module).__name__}; a Linear or a Conv2d is needed.")
    rank = min(rank, module.weight.shape[0], module.weight[0].numel())
    Layer: Any = LoRALinear if isinstance(module, nn.Linear) else LoRAConv2d
    return Layer(module, rank, **options)


def _as_layer(base: Any, kind: type[nn.Module], names: tuple[str, ...], bias: bool) -> Any:
    """The layer of this kind that is given, or a new one of the sizes that are."""
    if isinstance(base, kind):
        return base
    sizes = tuple(base) if isinstance(base, Iterable) and not isinstance(base, nn.Module) else ()
    if len(sizes) != len(names):
        given = f"a {type(base).__name__}" if isinstance(base, nn.Module) else repr(base)
        raise TypeError(f"`base` is {given}; a {kind.__name__} or ({', '.join(names)}) is needed.")
    return kind(*sizes, bias=bias)

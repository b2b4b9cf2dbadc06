"""The LoRA adapters of a model: which modules form a pair, and which are refused by name."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from lorsum.lowrank import LowRank
from lorsum.torch._gradient import ConvolutionView, LinearView

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
PLAIN_VARIANTS = ("NoneType", "DoraLinearVariant", "DoraConv1dVariant", "DoraConv2dVariant")


class Site:
    """A pair of modules that a model calls one after the other: linear ones, or a convolution and a 1 × 1 convolution.

    ``view`` makes X and S of a call's input of lora_A and output gradient of lora_B.
    """

    def __init__(self, name: str, lora_A: Any, lora_B: Any):
        self.name, self.lora_A, self.lora_B = name, lora_A, lora_B
        _check_modules(name, lora_A, lora_B)
        shape = (lora_B.weight.shape[0], lora_A.weight[0].numel())
        self.view: LinearView | ConvolutionView = (
            LinearView(shape) if isinstance(lora_A, nn.Linear) else ConvolutionView(shape, lora_A)
        )


class Adapter:
    """The matrix B·A of a model, by its two parameters.

    Attributes
    ----------
    name : str
        Where the model has it; with PEFT, the layer's name and the adapter's.
    A, B : torch.nn.Parameter
        Weights of lora_A, (r, d_in) or (r, d_in, *kernel), and of lora_B, (d_out, r) or (d_out, r, 1, 1).
    sites : tuple of Site
        The pairs of modules that have these weights: one, but where layers are tied.
    shape : pair of int
        (d_out, d_in), d_in times the kernel for a convolution.
    rank : int
        r.
    """

    def __init__(self, sites: Iterable[Site]):
        self.sites = tuple(sites)
        self.name = self.sites[0].name
        self.A: nn.Parameter = self.sites[0].lora_A.weight
        self.B: nn.Parameter = self.sites[0].lora_B.weight
        self.shape, self.rank = self.sites[0].view.shape, int(self.B.shape[1])
        self._shapes = self.A.shape, self.B.shape
        if self.rank > min(self.shape):
            m, n = self.shape
            raise ValueError(f"`{self.name}` has rank {self.rank}, above min(d_out, d_in) = {min(m, n)} of {m} × {n}.")

    def __repr__(self) -> str:
        m, n = self.shape
        return f"Adapter({self.name}: {m} × {n}, rank {self.rank})"

    @property
    def trained(self) -> bool:
        """True unless both factors have been frozen."""
        return self.A.requires_grad or self.B.requires_grad

    def matrix(self) -> LowRank:
        """B·A as a LowRank of its two factors, U = B and V = Aᵀ."""
        return LowRank._of(self.B.detach().reshape(-1, self.rank), self.A.detach().reshape(self.rank, -1).T)

    def check_unchanged(self) -> None:
        """An error if the modules have other weights now than when the adapter was found."""
        for site in self.sites:
            for module, letter, p in ((site.lora_A, "A", self.A), (site.lora_B, "B", self.B)):
                if module.weight is not p:
                    raise RuntimeError(
                        f"`{site.name}`: the weight of lora_{letter} is another parameter than when the optimizer was "
                        "made; make the optimizer anew."
                    )
        if self._shapes != (self.A.shape, self.B.shape):
            m, n = self.shape
            raise RuntimeError(
                f"`{self.name}` was {m} × {n} of rank {self.rank} when the optimizer was made; now lora_B is "
                f"{tuple(self.B.shape)} and lora_A {tuple(self.A.shape)}. Make the optimizer anew."
            )


def adapters(model: nn.Module) -> list[Adapter]:
    """The trainable LoRA adapters of a model, in the order of its modules.

    Parameters
    ----------
    model : torch.nn.Module
        With layers of :mod:`lorsum.torch`, of Hugging Face PEFT, or with modules of your own that call their
        ``lora_B`` on the output of their ``lora_A``.

    Returns
    -------
    list of Adapter
        Layers that share both weights are one adapter. Adapters that are frozen, such as PEFT's inactive ones, are
        left out.

    Raises
    ------
    ValueError
        If a trainable adapter has no exact low-rank gradient to capture: its weights never pass ``lora_A.forward``
        (PEFT's Embedding, MultiheadAttention and ``target_parameters``), something stands between A and B, or one of
        the two is frozen or shared. Freeze such an adapter: for good, or until the optimizer of the others is made,
        where it has one of its own.

    Examples
    --------
    >>> from lorsum.torch import LoRALinear
    >>> adapters(nn.Sequential(LoRALinear((5, 4), rank=2), nn.ReLU(), LoRALinear((4, 3), rank=1)))
    [Adapter(0: 4 × 5, rank 2), Adapter(2: 3 × 4, rank 1)]
    """
    _refuse_data_parallel(model)
    sites: dict[tuple[int, int], list[Site]] = {}
    names: dict[int, tuple[tuple[int, int], str]] = {}
    pairs: set[tuple[nn.Module, nn.Module]] = set()  # of modules: layers that share these have one pair
    for name, lora_A, lora_B in _trainable_pairs(model):
        if (lora_A, lora_B) in pairs:
            continue
        pairs.add((lora_A, lora_B))
        site = Site(name, lora_A, lora_B)
        A, B = lora_A.weight, lora_B.weight
        sites.setdefault((_memory(A), _memory(B)), []).append(site)
        for letter, p in (("A", A), ("B", B)):
            partner, other = names.setdefault(_memory(p), ((id(A), id(B)), name))
            if partner != (id(A), id(B)):
                raise ValueError(
                    f"`{name}` shares the weight of its lora_{letter} with `{other}`, but not both weights as one "
                    "parameter: the gradient of their product is then no gradient of theirs. Share both, or neither."
                )
    return [Adapter(group) for group in sites.values()]


def _memory(p: Tensor) -> int:
    """What parameters have in common that are tied; on the meta device, where there is no memory, themselves."""
    return id(p) if p.is_meta else p.data_ptr()


def _refuse_data_parallel(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel):
            raise ValueError(
                f"`model`{' at ' + repr(name) if name else ''} is wrapped by DataParallel, which calls copies of the "
                "layers. Use DistributedDataParallel, or pass what it wraps."
            )


def _trainable_pairs(model: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Names, lora_A and lora_B of all pairs of which a weight is trained."""
    for name, module in model.named_modules():
        if any(p.requires_grad for p in getattr(module, "lora_embedding_A", {}).values()):
            _refuse(name, module, "an embedding's weights never pass lora_A.forward")
        A: Any = getattr(module, "lora_A", None)
        B: Any = getattr(module, "lora_B", None)
        if isinstance(A, nn.ModuleDict) and isinstance(B, nn.ModuleDict):
            pairs: list[Any] = [(f"{name}.{key}", key, A[key], B[key]) for key in A if key in B]
        else:
            pairs = [(name or type(module).__name__, None, A, B)]
        for pair_name, key, lora_A, lora_B in pairs:
            if any(p.requires_grad for x in (lora_A, lora_B) for p in _parameters(x)):
                _check_layer(pair_name, key, module)
                yield pair_name, lora_A, lora_B


def _parameters(x: Any) -> list[nn.Parameter]:
    if isinstance(x, nn.Module):
        return list(x.parameters())
    return [x] if isinstance(x, nn.Parameter) else []


def _check_layer(name: str, key: str | None, module: Any) -> None:
    """An error if the layer that owns a pair does not call lora_B on lora_A's output, and nothing else."""
    kind = type(module).__name__
    if hasattr(module, "lora_E"):
        _refuse(name, module, "its product has a third factor between A and B, as AdaLoRA's")
    if kind == "MultiheadAttention" or hasattr(module, "parameter_name"):
        _refuse(name, module, "it adds its adapter to a weight, which then never passes lora_A.forward")
    variant = type(getattr(module, "lora_variant", {}).get(key)).__name__
    if variant not in PLAIN_VARIANTS:
        _refuse(name, module, f"its variant {variant} is not plain LoRA, rsLoRA or DoRA")


def _check_modules(name: str, lora_A: Any, lora_B: Any) -> None:
    """An error unless lora_B(lora_A(x)) is a product of two matrices, both of them trained."""
    for letter, module in (("A", lora_A), ("B", lora_B)):
        if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            _refuse(name, module, f"its lora_{letter} is no Linear, Conv1d or Conv2d")
        if type(module.weight) is not nn.Parameter:
            _refuse(name, module, f"the weight of lora_{letter} is no plain parameter")
        if not module.weight.requires_grad:
            _refuse(name, module, f"lora_{letter} is frozen but its partner is not")
    if lora_A.bias is not None:
        _refuse(name, lora_A, "lora_A has a bias")
    convolutional = isinstance(lora_A, CONVOLUTIONS)
    if convolutional != isinstance(lora_B, CONVOLUTIONS):
        _refuse(name, lora_B, "of lora_A and lora_B one is a convolution and the other is not")
    if convolutional and (lora_A.groups, lora_B.groups) != (1, 1):
        _refuse(name, lora_B, "a convolution with groups is no product of two matrices")
    if convolutional and (lora_B.weight[0, 0].numel() != 1 or any(s != 1 for s in lora_B.stride)):
        _refuse(name, lora_B, "its lora_B is no 1 × 1 convolution")


def _refuse(name: str, module: Any, why: str) -> None:
    raise ValueError(
        f"`{name}` ({type(module).__name__}) has no low-rank gradient to capture: {why}. "
        "Freeze it; one that is to be trained by an optimizer of its own, until this one is made."
    )

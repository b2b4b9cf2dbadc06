"""The update rules of :mod:`lorsum.optim` as optimizers of PyTorch."""

from lorsum import optim
from lorsum.torch._optimizer import AdapterOptimizer

__all__ = [
    "OPLoRA",
    "PreconditionedAdamW",
    "PreconditionedSGD",
    "ProjectedOPLoRA",
    "SVDLoRA",
    "ScaledOPLoRA",
]


class OPLoRA(AdapterOptimizer):
    """OPLoRA: each adapter takes the step W − ηG − ηαM, rounded to its rank by LoRSum (algorithm 1 of the paper).

    Options of the rule: ``lr, momentum, momentum_rank, iters, reg, first, simultaneous, method, weight_decay,
    maximize``, as for :class:`lorsum.optim.OPLoRA`; everything else as for :class:`AdapterOptimizer`. With
    ``momentum_rank=None`` the state takes as many numbers as the adapters: half of what AdamW keeps.

    Examples
    --------
    >>> import torch
    >>> from lorsum.torch import LoRALinear
    >>> _ = torch.manual_seed(0)
    >>> layer, x = LoRALinear((20, 10), rank=2, bias=False), torch.randn(64, 20)
    >>> y = layer(x).detach() + x[:, :1]  # a change of rank 1
    >>> optimizer = OPLoRA(layer, lr=0.3, iters=2)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     loss = ((layer(x) - y) ** 2).sum(dim=1).mean()
    ...     loss.backward()
    ...     optimizer.step()
    >>> bool(loss < 1e-3)
    True
    """

    Rule = optim.OPLoRA


class ProjectedOPLoRA(AdapterOptimizer):
    """OPLoRA with LoFT's momentum, projected at each step on what the adapter's factors can express.

    Options of the rule: ``lr, momentum, iters, reg, first, simultaneous, method, weight_decay, maximize``, as for
    :class:`lorsum.optim.ProjectedOPLoRA`; everything else as for :class:`AdapterOptimizer`.
    """

    Rule = optim.ProjectedOPLoRA


class ScaledOPLoRA(AdapterOptimizer):
    """OPLoRA in a metric that is estimated from the gradients (appendix B of the paper).

    Options of the rule: those of :class:`OPLoRA` and ``scale``, as for :class:`lorsum.optim.ScaledOPLoRA`; everything
    else as for :class:`AdapterOptimizer`. ``scale`` is not saved with the state, but loading checks that it is the
    same. With :class:`lorsum.optim.KFAC` the gradients are kept as pairs, whatever they take, and losses that are means
    need its ``output_scale``.
    """

    Rule = optim.ScaledOPLoRA


class PreconditionedSGD(AdapterOptimizer):
    """Gradient descent on the factors with preconditioned gradients: ScaledGD, Riemannian LoRA.

    Options of the rule: ``lr, momentum, weight_decay, maximize, reg``, as for
    :class:`lorsum.optim.PreconditionedSGD`; everything else as for :class:`AdapterOptimizer`.
    """

    Rule = optim.PreconditionedSGD


class PreconditionedAdamW(AdapterOptimizer):
    """AdamW fed with the preconditioned gradients of the factors.

    Options of the rule: ``lr, betas, eps, weight_decay, maximize, reg``, as for
    :class:`lorsum.optim.PreconditionedAdamW`; everything else as for :class:`AdapterOptimizer`.
    """

    Rule = optim.PreconditionedAdamW


class SVDLoRA(AdapterOptimizer):
    """The step that OPLoRA approximates: the truncated SVD of the full step, with a full-rank momentum.

    Options of the rule: ``lr, momentum, weight_decay, maximize``, as for :class:`lorsum.optim.SVDLoRA`; everything else
    as for :class:`AdapterOptimizer`. With momentum each adapter keeps a matrix of its layer's size.
    """

    Rule = optim.SVDLoRA

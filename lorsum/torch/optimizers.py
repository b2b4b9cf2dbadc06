"""The update rules of :mod:`lorsum.optim` as optimizers of PyTorch."""

from lorsum import optim
from lorsum.torch._optimizer import AdapterOptimizer


class OPLoRA(AdapterOptimizer):
    """OPLoRA: each adapter takes the step W − ηG − ηαM, rounded to its rank by LoRSum (algorithm 1 of the paper).

    The options are those of :class:`lorsum.optim.OPLoRA` and of :class:`AdapterOptimizer`. With ``momentum_rank=None``
    the state takes as many numbers as the adapters: half of what AdamW keeps.

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

    The options are those of :class:`lorsum.optim.ProjectedOPLoRA` and of :class:`AdapterOptimizer`.
    """

    Rule = optim.ProjectedOPLoRA


class ScaledOPLoRA(AdapterOptimizer):
    """OPLoRA in a metric that is estimated from the gradients (appendix B of the paper).

    The options are those of :class:`lorsum.optim.ScaledOPLoRA` and of :class:`AdapterOptimizer`. ``scale`` is not saved
    with the state, but loading checks that it is the same. With :class:`lorsum.optim.KFAC` the gradients are kept as
    pairs, whatever they take, and losses that are means need its ``output_scale``.
    """

    Rule = optim.ScaledOPLoRA


class PreconditionedSGD(AdapterOptimizer):
    """Gradient descent on the factors with preconditioned gradients: ScaledGD, Riemannian LoRA.

    The options are those of :class:`lorsum.optim.PreconditionedSGD` and of :class:`AdapterOptimizer`.
    """

    Rule = optim.PreconditionedSGD


class PreconditionedAdamW(AdapterOptimizer):
    """AdamW fed with the preconditioned gradients of the factors.

    The options are those of :class:`lorsum.optim.PreconditionedAdamW` and of :class:`AdapterOptimizer`.
    """

    Rule = optim.PreconditionedAdamW


class SVDLoRA(AdapterOptimizer):
    """The step that OPLoRA approximates: the truncated SVD of the full step, with a full-rank momentum.

    The options are those of :class:`lorsum.optim.SVDLoRA` and of :class:`AdapterOptimizer`. With momentum each adapter
    keeps a matrix of its layer's size.
    """

    Rule = optim.SVDLoRA

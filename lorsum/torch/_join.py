"""Uneven inputs: within ``DistributedDataParallel.join`` processes run out of batches at different times.

A step must not communicate there: who has no more batches takes none. So each backward pass that DDP averages ends with
the average of the adapters' gradients, to which such processes, while DDP shadows the pass in them, add zeros.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from lorsum.torch._distributed import gathered, processes
from lorsum.torch._gradient import Gradient, zero_gradient

_optimizers: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()  # in order: the same in all processes


def attend(optimizer: Any) -> None:
    """Have the optimizer's gradients averaged wherever DDP's are in a ``join``."""
    if not dist.is_available():
        return
    if not hasattr(DistributedDataParallel.join_hook, "__wrapped__"):
        DistributedDataParallel.join_hook = _with_adapters(DistributedDataParallel.join_hook)  # type: ignore[method-assign]
    _optimizers[optimizer] = None


def _with_adapters(join_hook: Callable[..., Any]) -> Callable[..., Any]:
    """``DistributedDataParallel.join_hook``, which a ``join`` calls first, with a hook that shadows adapters too."""

    @functools.wraps(join_hook)
    def extended(ddp: DistributedDataParallel, **options: Any) -> Any:
        hook, parameters, inside = join_hook(ddp, **options), set(ddp.parameters()), {}
        for optimizer in list(_optimizers):
            captures = [capture for capture in optimizer._captures if capture.adapter.B in parameters]
            if captures and processes(optimizer.process_group) > 1:
                inside[optimizer] = captures
        return _Shadow(hook, ddp, inside) if inside else hook

    return extended


class _Shadow(dist.algorithms.join.JoinHook):
    """What a process without batches does in place of a forward and a backward pass, and all do in the end."""

    def __init__(self, hook: Any, ddp: DistributedDataParallel, captures: dict[Any, list[Any]]):
        self.hook, self.ddp, self.captures = hook, ddp, captures  # by optimizer
        self.backward_pass: int | None = None  # its number
        for optimizer in captures:
            optimizer.averages_in_backward = True
        self.handle = ddp.register_forward_hook(self._after_forward)

    def main_hook(self) -> None:
        self.hook.main_hook()
        if self.ddp.require_forward_param_sync:  # the others' backward pass is averaged
            for captures in self.captures.values():
                for capture in captures:
                    capture.clear()
            self._average()

    def post_hook(self, is_last_joiner: bool) -> None:
        self.hook.post_hook(is_last_joiner)
        self.handle.remove()
        for optimizer in self.captures:
            optimizer.averages_in_backward = False
            _take_state_of_last(optimizer, is_last_joiner)

    def _after_forward(self, ddp: DistributedDataParallel, args: tuple[Any, ...], output: Any) -> None:
        tensors = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor) and x.requires_grad]
        if ddp.require_backward_grad_sync and tensors:
            torch.autograd.graph.register_multi_grad_hook(tensors, self._in_backward, mode="any")

    def _in_backward(self, grad: Tensor) -> None:
        number = torch._C._current_graph_task_id()
        if number != self.backward_pass:  # which several forward passes may share
            self.backward_pass = number
            torch.autograd.Variable._execution_engine.queue_callback(self._average)  # when all of it is done

    @torch.no_grad()
    def _average(self) -> None:
        for optimizer, captures in self.captures.items():
            for capture in captures:
                if capture.adapter.trained:
                    capture.gradient = _mean(capture, optimizer.process_group)


def _mean(capture: Any, group: Any) -> Gradient:
    """The mean over the processes of all that an adapter's gradient is by now."""
    adapter, local = capture.adapter, capture.gradient
    mean = Gradient(adapter.shape, "rows" if capture.form == "rows" else "dense")
    mean.is_mean = True
    G: Any = local.times(1.0) if local else zero_gradient(adapter, rows=0)
    if capture.form == "rows":
        mean.pairs = [_gathered_rows(capture, G, group)]
        return mean
    G = (G.to_dense() if hasattr(G, "to_dense") else G).contiguous()
    noise = torch.full((1,), float(local.rounding()), dtype=G.dtype, device=G.device)
    for x in (G, noise):
        dist.all_reduce(x, group=group)
    mean.dense, mean.noise = G / processes(group), float(noise) / processes(group)
    return mean


def _gathered_rows(capture: Any, G: Any, group: Any) -> tuple[Tensor, Tensor]:
    if capture.gradient.is_mean:
        raise RuntimeError(
            f"`{capture.adapter.name}`: within `join`, K-FAC needs one averaged backward pass a step. Run the earlier "
            "ones in `no_sync`."
        )
    here = torch.tensor([G.rank], device=G.U.device)
    everywhere = [torch.empty_like(here) for _ in range(processes(group))]
    dist.all_gather(everywhere, here, group=group)
    stacked = gathered(G, [int(count) for count in everywhere], group)
    return stacked.U.T, stacked.V.T


def _take_state_of_last(optimizer: Any, is_last_joiner: bool) -> None:
    """The state of who trained longest, whose weights DDP has given to all."""
    group, rank = optimizer.process_group, dist.get_rank(optimizer.process_group)
    last = torch.tensor([rank if is_last_joiner else -1], device=optimizer.adapters[0].B.device)
    dist.all_reduce(last, op=dist.ReduceOp.MAX, group=group)
    source = int(last)
    state = [optimizer.state_dict()["state"] if rank == source else None]
    dist.broadcast_object_list(state, src=dist.get_global_rank(group, source) if group else source, group=group)
    if rank != source:
        optimizer.load_state_dict({"state": state[0], "param_groups": optimizer.state_dict()["param_groups"]})

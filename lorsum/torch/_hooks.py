"""Hooks on lora_A and lora_B, which hand X and S of each call on to the adapter's capture in the backward pass.

A node of the graph behind lora_B is the identity, saves X for the backward pass as autograd saves its own tensors, so
that activation checkpointing drops and recomputes it, and meets S there. Others may have hooks on the same modules:
ours come first, so that X, lora_A's output and S are those of the two products.

A model outlives its optimizers. So hooks, graph and compiled code know a capture by a weak reference, and do nothing
once it is gone; :func:`while_alive` makes such a reference of a method.
"""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as all_modules
from torch.utils.hooks import RemovableHandle

from lorsum.torch._adapters import Site

_numbers = itertools.count()
_pairs: weakref.WeakValueDictionary[int, "PairHooks"] = weakref.WeakValueDictionary()  # by number, for compiled code


def while_alive(method: Callable[..., None]) -> Callable[..., None]:
    """A bound method that does not keep its object alive, and does nothing without it."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(*args)

    return call


def register_after_accumulation(p: Tensor, hook: Callable[..., None]) -> RemovableHandle:
    """Register a hook for after ``.grad`` is added to, before all that are there, which may change it."""
    handle = p.register_post_accumulate_grad_hook(hook)
    hooks: Any = p._post_accumulate_grad_hooks
    *others, ours = hooks.items()
    hooks.clear()  # the engine does not know move_to_end
    hooks.update([ours, *others])
    return handle


class PairHooks:
    """The hooks on one pair of modules. A copy of them, as in a copy of the model, does nothing.

    They call the capture's ``collect`` with ``site.view``, S and X.
    """

    def __init__(self, site: Site | None = None, capture: Any = None):
        self.site: Any = site
        self._pending: Any = None
        if site is not None:
            self.capture, self.number = weakref.ref(capture), next(_numbers)
            self._weights = site.lora_A.weight, site.lora_B.weight
            _pairs[self.number] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return PairHooks, ()

    def register(self) -> list[RemovableHandle]:
        handles = [
            module.register_forward_hook(hook, prepend=True, with_kwargs=True)
            for module, hook in ((self.site.lora_A, self.after_A), (self.site.lora_B, self.after_B))
        ]
        self._ids = tuple(handle.id for handle in handles)
        return handles

    def are_doubtful(self) -> bool:
        """True if others' hooks may change gradients on their way through the modules."""
        return any(x._backward_hooks or x._backward_pre_hooks for x in (self.site.lora_A, self.site.lora_B))

    def after_A(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Keep lora_A's input, as it was computed with."""
        self._pending = None
        if self.site is None:
            return
        if torch.compiler.is_compiling():
            if output.requires_grad and module.weight.requires_grad and not torch.compiler.is_exporting():
                self._pending = _input(args, kwargs), output, None
            return
        capture = self.capture()
        if capture is None:
            return
        capture.before_call()
        if not (output.requires_grad and self._weights[0].requires_grad and self._weights[1].requires_grad):
            return
        if self._is_transformed():
            capture.to_check = True
            return
        self._put_first(capture)
        self._pending = _input(args, kwargs), output, output._version

    def after_B(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Pass lora_B's output on by a node that will see S."""
        pending, self._pending = self._pending, None
        if self.site is None or not (output.requires_grad and module.weight.requires_grad):
            return None
        if torch.compiler.is_compiling():
            return self._passed_on_when_compiled(pending, _input(args, kwargs), output)
        capture = self.capture()
        if capture is None:
            return None
        if pending is None:  # a call without lora_A's, or in a transform
            capture.to_check = True
            return None
        X, between, version = pending
        h = _input(args, kwargs)
        if h is not between or h._version != version:
            if between._version != version or not _same(h, between):
                self._refuse()
            capture.to_check = True  # as by hooks on the way back, which may change the gradient
        elif h._backward_hooks:
            capture.to_check = True  # between the two, where A's gradient is changed and B's is not
        if "_is_replica" in module.__dict__:
            raise RuntimeError(f"`{self.site.name}` is called by DataParallel. Use DistributedDataParallel.")
        capture.called = True
        return _Collect.apply(output, _as_computed(X), self.capture, self.site.view)

    def _passed_on_when_compiled(self, pending: Any, h: Tensor, output: Tensor) -> Tensor | None:
        if pending is None:
            return None
        X, between, _ = pending
        if h is not between and not self.are_doubtful():
            self._refuse()
        return _CollectCompiled.apply(output, _as_computed(X), self.number, _number_of_this_call())

    def _is_transformed(self) -> bool:
        """True where the call is none that .backward() could add to B.grad by: for torch.func, or a trace."""
        if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
            return True
        modules = self.site.lora_A, self.site.lora_B
        return any(x._parameters.get("weight") is not p for x, p in zip(modules, self._weights, strict=True))

    def _put_first(self, capture: Any) -> None:
        """Let ours be the first hooks, but for those of other optimizers: in time for lora_B, not for lora_A.

        Others' hooks before ours see, and may replace, what the modules return.
        """
        for module, number in zip((self.site.lora_A, self.site.lora_B), self._ids, strict=True):
            first, hook = next(iter(module._forward_hooks.items()))
            if first != number and not isinstance(getattr(hook, "__self__", None), PairHooks):
                module._forward_hooks.move_to_end(number, last=False)
                capture.to_check = True
        if all_modules._global_forward_hooks:
            capture.to_check = True

    def _refuse(self) -> None:
        raise RuntimeError(
            f"`{self.site.name}`: lora_B was called on something else than the output of lora_A, so that their "
            "product's gradient cannot be captured."
        )


class _Collect(torch.autograd.Function):
    """The identity on lora_B's output, which hands on S and X in the backward pass."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, X: Tensor, capture: Callable[[], Any], view: Any) -> Tensor:
        ctx.save_for_backward(X)
        ctx.capture, ctx.view = capture, view
        if output._is_view() or forward_ad._current_level >= 0:
            return output.view_as(output)
        ctx.mark_dirty(output)  # the same tensor and no view of it, which nobody could change in place
        return output

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return tangent.view_as(tangent)

    @staticmethod
    def backward(ctx: Any, S: Tensor) -> tuple[Any, ...]:
        (X,), capture = ctx.saved_tensors, ctx.capture()
        if capture is not None:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    f"`{capture.adapter.name}`: a backward pass with create_graph=True can itself be differentiated, "
                    "and what that adds to the gradient cannot be captured."
                )
            capture.collect(ctx.view, S, X)
        return S, None, None, None


class _CollectCompiled(torch.autograd.Function):
    """The same for ``torch.compile``: an operation that compilers do not look into."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, X: Tensor, number: int, call: int) -> Tensor:
        ctx.save_for_backward(X)
        ctx.number, ctx.call = number, call
        return output.clone()  # a view could not be changed in place; compilers leave the copy out

    @staticmethod
    def backward(ctx: Any, S: Tensor) -> tuple[Any, ...]:
        (X,) = ctx.saved_tensors
        return collect(S, X, ctx.number, ctx.call), None, None, None


@torch.library.custom_op("lorsum::collect", mutates_args=())
def collect(S: torch.Tensor, X: torch.Tensor, number: int, call: int) -> torch.Tensor:
    """Hand on S and X to the pair of this number; a copy of S, so that the call is not left out as unused.

    Each call in a graph has a number too: compilers merge what is called twice on the same tensors.
    """
    pair = _pairs.get(number)
    if pair is not None and (capture := pair.capture()) is not None:
        capture.collect(pair.site.view, S, X)
    return S.clone()


@collect.register_fake
def _(S: Tensor, X: Tensor, number: int, call: int) -> Tensor:
    return torch.empty_like(S)


@torch.compiler.assume_constant_result
def _number_of_this_call() -> int:
    return next(_numbers)


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["input"]


def _same(x: Tensor, y: Tensor) -> bool:
    """True if two tensors have the same values, which those that share memory have."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return (x.data_ptr() == y.data_ptr() and x.stride() == y.stride()) or torch.equal(x, y)


def _as_computed(X: Tensor) -> Tensor:
    """X as lora_A computes with it: autocast lowers its precision inside."""
    kind = X.device.type
    if X.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        X = X.to(torch.get_autocast_dtype(kind))
    return X.detach()

"""Taps: hooks on lora_A and lora_B that hand on X and S of each call, in the backward pass.

A node behind lora_B is the identity, saves X for the backward pass as autograd saves its own tensors, so that
activation checkpointing drops and recomputes it, and meets S there. Others may have hooks on the same modules: ours
come first, so that X, lora_A's output and S are those of the two products.
"""

import itertools
import weakref

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as all_modules

__all__ = ["Taps"]

_numbers = itertools.count()
_places: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by number, what compiled code knows


class _Place:
    """Where the calls of one pair of modules go, as long as somebody captures them."""

    def __init__(self, site, capture):
        self.site, self.capture = site, weakref.ref(capture)

    def before_call(self):
        capture = self.capture()
        if capture is not None:
            capture.before_call()

    def called(self):
        capture = self.capture()
        if capture is not None:
            capture.called = True

    def doubt(self):
        """Have the next step compare with autograd: something was seen that may make a captured gradient wrong."""
        capture = self.capture()
        if capture is not None:
            capture.checked = True

    def collect(self, S, X):
        capture = self.capture()
        if capture is not None:
            capture.collect(self.site.view, S, X)


class Taps:
    """The hooks on one pair of modules. A copy of them, as in a copy of the model, does nothing.

    Parameters
    ----------
    site : Site
        The modules.
    capture : Capture
        Whose ``collect`` is called with ``site.view``, S and X.
    """

    def __init__(self, site=None, capture=None):
        self.name, self.pending = getattr(site, "name", None), None
        if site is not None:
            self.place, self.number = _Place(site, capture), next(_numbers)
            self.modules = site.lora_A, site.lora_B
            self.weights = site.lora_A.weight, site.lora_B.weight
            _places[self.number] = self.place

    def __deepcopy__(self, memo):
        return Taps()

    def __reduce__(self):
        return Taps, ()

    def register(self):
        """Handles of the hooks."""
        hooks = zip(self.modules, (self.keep, self.tap), strict=True)
        handles = [module.register_forward_hook(hook, prepend=True, with_kwargs=True) for module, hook in hooks]
        self.numbers = tuple(handle.id for handle in handles)
        return handles

    def are_doubtful(self):
        """True if others' hooks may change gradients on their way through the modules."""
        return any(map(_has_backward_hooks, self.modules))

    def keep(self, module, args, kwargs, output):
        """After lora_A: its input, as it was computed with."""
        self.pending = None
        if self.name is None:
            return
        if torch.compiler.is_compiling():
            if output.requires_grad and module.weight.requires_grad and not torch.compiler.is_exporting():
                self.pending = _input(args, kwargs), output, None
            return
        self.place.before_call()
        if not (output.requires_grad and self.weights[0].requires_grad and self.weights[1].requires_grad):
            return
        if self._is_transformed():
            self.place.doubt()
            return
        if not self._are_first():
            self._put_first()
        self.pending = _input(args, kwargs), output, output._version

    def tap(self, module, args, kwargs, output):
        """After lora_B: its output, passed on by a node that will see S."""
        pending, self.pending = self.pending, None
        if self.name is None or not (output.requires_grad and module.weight.requires_grad):
            return None
        if pending is None:
            if not torch.compiler.is_compiling():
                self.place.doubt()  # a call without lora_A's, or in a transform
            return None
        X, between, version = pending
        h = _input(args, kwargs)
        if torch.compiler.is_compiling():
            if h is not between and not self.are_doubtful():
                self._refuse()
            return _CompiledTap.apply(output, _as_computed(X), self.number, _number_of_this_call())
        if h is not between or h._version != version:
            if between._version != version or not _same(h, between):
                self._refuse()
            self.place.doubt()  # as by hooks on the way back, which may change the gradient
        elif h._backward_hooks:
            self.place.doubt()  # between the two, where A's gradient is changed and B's is not
        if "_is_replica" in module.__dict__:
            raise RuntimeError(f"`{self.name}` is called by DataParallel. Use DistributedDataParallel.")
        return _Tap.apply(output, _as_computed(X), self.place)

    def _is_transformed(self):
        """True where the call is none that .backward() could add to B.grad by: for torch.func, or a trace."""
        if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
            return True
        (lora_A, lora_B), (A, B) = self.modules, self.weights
        return lora_A._parameters.get("weight") is not A or lora_B._parameters.get("weight") is not B

    def _are_first(self):
        """True unless others' hooks see, and may replace, the outputs before ours."""
        lora_A, lora_B = self.modules
        first = next(iter(lora_A._forward_hooks)), next(iter(lora_B._forward_hooks))
        return first == self.numbers and not all_modules._global_forward_hooks

    def _put_first(self):
        """Let ours be the first hooks, but for those of other optimizers: in time for lora_B, not for lora_A."""
        for module, number in zip(self.modules, self.numbers, strict=True):
            first = next(iter(module._forward_hooks.values()))
            if not isinstance(getattr(first, "__self__", None), Taps):
                module._forward_hooks.move_to_end(number, last=False)
                self.place.doubt()
        if all_modules._global_forward_hooks:
            self.place.doubt()

    def _refuse(self):
        raise RuntimeError(
            f"`{self.name}`: lora_B was called on something else than the output of lora_A, so that their "
            "product's gradient cannot be captured."
        )


class _Tap(torch.autograd.Function):
    """The identity on lora_B's output, which hands on S and X in the backward pass."""

    @staticmethod
    def forward(ctx, output, X, place):
        ctx.save_for_backward(X)
        ctx.place = place
        place.called()
        if output._is_view() or forward_ad._current_level >= 0:
            return output.view_as(output)
        ctx.mark_dirty(output)  # the same tensor and no view of it, which nobody could change in place
        return output

    @staticmethod
    def jvp(ctx, tangent, *_):
        return tangent.view_as(tangent)

    @staticmethod
    def backward(ctx, S):
        if torch.is_grad_enabled() and ctx.place.capture() is not None:
            raise RuntimeError(
                f"`{ctx.place.site.name}`: a backward pass with create_graph=True can itself be differentiated, and "
                "what that adds to the gradient cannot be captured."
            )
        (X,) = ctx.saved_tensors
        ctx.place.collect(S, X)
        return S, None, None


class _CompiledTap(torch.autograd.Function):
    """The same for ``torch.compile``: an operation that compilers do not look into."""

    @staticmethod
    def forward(ctx, output, X, number, call):
        ctx.save_for_backward(X)
        ctx.number, ctx.call = number, call
        return output.clone()  # a view could not be changed in place; compilers leave the copy out

    @staticmethod
    def backward(ctx, S):
        (X,) = ctx.saved_tensors
        return collect(S, X, ctx.number, ctx.call), None, None, None


@torch.library.custom_op("lorsum::collect", mutates_args=())
def collect(S: torch.Tensor, X: torch.Tensor, number: int, call: int) -> torch.Tensor:
    """Hand on S and X to the pair of this number; a copy of S, so that the call is not left out as unused.

    Each call in a graph has a number too: compilers merge what is called twice on the same tensors.
    """
    place = _places.get(number)
    if place is not None:
        place.collect(S, X)
    return S.clone()


@collect.register_fake
def _(S, X, number, call):
    return torch.empty_like(S)


@torch.compiler.assume_constant_result
def _number_of_this_call():
    return next(_numbers)


def _input(args, kwargs):
    return args[0] if args else kwargs["input"]


def _has_backward_hooks(module):
    return bool(module._backward_hooks or module._backward_pre_hooks)


def _same(x, y):
    """True if two tensors have the same values, which those that share memory have."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return (x.data_ptr() == y.data_ptr() and x.stride() == y.stride()) or torch.equal(x, y)


def _as_computed(X):
    """X as lora_A computes with it: autocast lowers its precision inside."""
    kind = X.device.type
    if X.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        X = X.to(torch.get_autocast_dtype(kind))
    return X.detach()

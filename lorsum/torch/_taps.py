"""Taps: hooks on lora_A and lora_B that hand on X and S of each call, in the backward pass.

A node behind lora_B is the identity, saves X for the backward pass as autograd saves its own tensors, so that
activation checkpointing drops and recomputes it, and meets S there.
"""

import itertools
import weakref

import torch

__all__ = ["Taps"]

_numbers = itertools.count()
_places: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by number, what compiled code knows


class _Place:
    """Where the calls of one pair of modules go, as long as somebody captures them."""

    def __init__(self, site, capture):
        self.site, self.capture = site, weakref.ref(capture)

    def called(self):
        capture = self.capture()
        if capture is not None:
            capture.called = True

    def collect(self, S, X, borrowed):
        capture = self.capture()
        if capture is not None:
            capture.collect(self.site.view, S, X, borrowed)


class Taps:
    """The hooks on one pair of modules. A copy of them, as in a copy of the model, does nothing.

    Parameters
    ----------
    site : Site
        The modules.
    capture : Capture
        Whose ``collect`` is called with ``site.view``, S, X, and which of the two are borrowed.
    """

    def __init__(self, site=None, capture=None):
        self.name, self.pending = getattr(site, "name", None), None
        if site is not None:
            self.place, self.number = _Place(site, capture), next(_numbers)
            self.modules = site.lora_A, site.lora_B
            _places[self.number] = self.place

    def __deepcopy__(self, memo):
        return Taps()

    def __reduce__(self):
        return Taps, ()

    def register(self):
        """Handles of the hooks."""
        lora_A, lora_B = self.modules
        return [lora_A.register_forward_hook(self.keep), lora_B.register_forward_hook(self.tap)]

    def keep(self, module, args, output):
        """After lora_A: its input, as it was computed with."""
        if self.name is not None and output.requires_grad:
            self.pending = (args[0], output)

    def tap(self, module, args, output):
        """After lora_B: its output, passed on by a node that will see S."""
        if self.pending is None or not output.requires_grad:
            return None
        (X, between), self.pending = self.pending, None
        if args[0] is not between:
            raise RuntimeError(
                f"`{self.name}`: lora_B was called on something else than the output of lora_A, so that their "
                "product's gradient cannot be captured."
            )
        if torch.compiler.is_compiling():
            return _CompiledTap.apply(output, _as_computed(X), self.number, _number_of_this_call())
        if "_is_replica" in module.__dict__:
            raise RuntimeError(f"`{self.name}` is called by DataParallel. Use DistributedDataParallel.")
        return _Tap.apply(output, _as_computed(X), "X" if _is_data(X) else "", self.place)


class _Tap(torch.autograd.Function):
    """The identity on lora_B's output, which hands on S and X in the backward pass."""

    @staticmethod
    def forward(ctx, output, X, borrowed, place):
        ctx.save_for_backward(X)
        ctx.borrowed, ctx.place = borrowed, place
        place.called()
        return output.view_as(output)

    @staticmethod
    def backward(ctx, S):
        if torch.is_grad_enabled() and ctx.place.capture() is not None:
            raise RuntimeError(
                f"`{ctx.place.site.name}`: a backward pass with create_graph=True can itself be differentiated, and "
                "what that adds to the gradient cannot be captured."
            )
        (X,) = ctx.saved_tensors
        ctx.place.collect(S, X, ctx.borrowed)
        return S, None, None, None


class _CompiledTap(torch.autograd.Function):
    """The same for ``torch.compile``: an operation that compilers do not look into."""

    @staticmethod
    def forward(ctx, output, X, number, call):
        ctx.save_for_backward(X)
        ctx.number, ctx.call = number, call
        return output.view_as(output)

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
        place.collect(S, X, "SX")  # the compiled code may use their memory again
    return S.clone()


@collect.register_fake
def _(S, X, number, call):
    return torch.empty_like(S)


@torch.compiler.assume_constant_result
def _number_of_this_call():
    return next(_numbers)


def _as_computed(X):
    """X as lora_A computes with it: autocast lowers its precision inside."""
    kind = X.device.type
    if X.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        X = X.to(torch.get_autocast_dtype(kind))
    return X.detach()


def _is_data(X):
    """True for what nothing computed: a loop may overwrite it with the next batch, before the step."""
    return X.grad_fn is None

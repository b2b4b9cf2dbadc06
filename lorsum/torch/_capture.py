"""Capture: the exact gradient with respect to B·A of an adapter, in any training loop.

What arrives counts once autograd has added to B.grad, and lives as long: where ``.grad`` is None again the gradient
starts anew, and a backward pass that leaves ``.grad`` alone leaves nothing.
"""

import math
import weakref
from collections.abc import Callable

import torch

from lorsum.torch import _bridge as bridge
from lorsum.torch._distributed import processes
from lorsum.torch._gradient import Gradient, norm, zero_gradient
from lorsum.torch._taps import Taps

__all__ = ["Capture", "Captured"]


class Capture:
    """The gradient of one adapter, kept up to date by hooks for as long as this object lives.

    Parameters
    ----------
    adapter : Adapter
        What to watch.
    form : {"auto", "pairs", "dense"}
        See :class:`lorsum.torch._gradient.Gradient`.
    process_group : ProcessGroup, optional
        Over which ``.grad`` is averaged, where torch.distributed is initialised.

    Attributes
    ----------
    gradient : Gradient
        Of all backward passes since B.grad was None.
    checked : bool
        Whether the next step compares the gradient with autograd's, for which its rounding errors must be bounded.
    """

    def __init__(self, adapter, form="auto", process_group=None):
        self.adapter, self.form, self.process_group = adapter, form, process_group
        self.gradient, self.checked = Gradient(adapter.shape, form), True
        self.called = False  # with gradients, since they were cleared
        self.listener: Callable = _nobody  # is told when the gradient has changed
        self._staged: dict = {}  # by backward pass: what has arrived, but is not yet in B.grad
        self._weights: tuple = ()  # versions of A and B in the last backward pass
        self._sizes = [None, None]  # ‖A.grad‖ and ‖B.grad‖ after it
        handles = [handle for site in adapter.sites for handle in Taps(site, self).register()]
        handles += [
            adapter.B.register_post_accumulate_grad_hook(_calling(self, "_after_B")),
            adapter.A.register_post_accumulate_grad_hook(_calling(self, "_after_A")),
        ]
        weakref.finalize(self, _remove, handles)

    def collect(self, view, S, X, borrowed):
        """Take S and X of one call, on S's way back."""
        task = torch._C._current_graph_task_id()
        if task not in self._staged:
            self._before_accumulation()
            self._staged[task] = Gradient(self.adapter.shape, self.form)
        self._staged[task].add(view, S, X, borrowed, self.checked or processes(self.process_group) > 1)

    def clear(self):
        """Forget the gradient, as ``zero_grad`` does."""
        self.gradient.clear()
        self._staged.clear()
        self._sizes = [None, None]
        self.called = False

    def has_gradient(self, missing="skip"):
        """True if the step has a gradient to take; else False, or with missing="error" an error that says why not."""
        self._staged.clear()  # of backward passes that have left .grad alone
        A, B, name = self.adapter.A, self.adapter.B, self.adapter.name
        if A.grad is None and B.grad is None:
            if missing == "error":
                self._refuse_missing()
            self.gradient.clear()
            return False
        if A.grad is None or B.grad is None:
            letters = "AB" if A.grad is None else "BA"
            raise RuntimeError(
                f"`{name}`: lora_{letters[0]} has no .grad but lora_{letters[1]} has one. Both are needed, or none."
            )
        if not self.gradient and processes(self.process_group) == 1 and (A.grad.any() or B.grad.any()):
            raise RuntimeError(
                f"`{name}` has .grad, but no call of it was captured: its weights were used in another way than "
                "lora_B(lora_A(x)), the gradient was set by hand, or compiled code ran before the optimizer was "
                "made (call torch.compiler.reset())."
            )
        return True

    def _refuse_missing(self):
        name = self.adapter.name
        if self.called:
            raise RuntimeError(f"`{name}` has no gradient: it was called, but no backward pass has reached it.")
        raise RuntimeError(
            f"`{name}` has no gradient: its lora_A and lora_B have not been called with gradients. Freeze it, "
            'activate it, or pass `missing="skip"`.'
        )

    def common_factor(self):
        """The number c by which A.grad and B.grad were multiplied since the backward pass: unscaling, clipping.

        Raises
        ------
        RuntimeError
            If there is none, because they were changed in different ways.
        """
        A, B = self.adapter.A, self.adapter.B
        sizes = [norm(A.grad), norm(B.grad)]
        if sizes == self._sizes or None in self._sizes:
            return 1.0
        ratios = [float(after / before) for after, before in zip(sizes, self._sizes, strict=True) if before != 0]
        if not ratios:
            return 1.0
        if not all(map(math.isfinite, ratios)):
            raise RuntimeError(f"`{self.adapter.name}`: its gradient is not finite.")
        tolerance = 1e-2 if A.dtype in (torch.float16, torch.bfloat16) else 1e-4
        if max(ratios) - min(ratios) > tolerance * max(ratios):
            raise RuntimeError(
                f"`{self.adapter.name}`: after the backward pass lora_A.grad was multiplied by {ratios[0]:.4g} and "
                f"lora_B.grad by {ratios[1]:.4g}. One factor for both is needed, as unscaling and clipping by the "
                "norm of all gradients have it."
            )
        return ratios[-1]

    def weights_are_those_of_grad(self):
        """False if A or B was changed after the backward pass."""
        return self._weights == (self.adapter.A._version, self.adapter.B._version)

    def _before_accumulation(self):
        """Do to the gradient what was done to B.grad since the last backward pass."""
        grad, before = self.adapter.B.grad, self._sizes[1]
        if grad is None:
            self.gradient.clear()
        elif before:
            c = float(norm(grad) / before)
            if c == 0:  # zeroed in place
                self.gradient.clear()
            elif processes(self.process_group) == 1:  # else averaging has changed it
                self.gradient.scale(c)

    def _after_B(self, B):
        staged = self._staged.pop(torch._C._current_graph_task_id(), None)
        self._sizes[1], self._weights = norm(B.grad), (self.adapter.A._version, B._version)
        if staged is None:
            return
        if self.gradient:
            self.gradient.merge(staged)
        else:
            self.gradient = staged
        self.listener(self)

    def _after_A(self, A):
        self._sizes[0] = norm(A.grad)


class Captured:
    """The gradients of all adapters, with nothing left to communicate.

    Parameters
    ----------
    captures : list of Capture
        Of the adapters that have a gradient.
    factor : callable, optional
        Gives the number c of a capture.
    """

    unchecked = True

    def __init__(self, captures, factor=Capture.common_factor):
        self.traffic: dict = {}
        self.factors = {capture.adapter.B: factor(capture) for capture in captures}

    def gradient(self, capture, rule):
        """c G as the rule takes it."""
        if not capture.gradient:  # .grad is zero, by hand
            return bridge.to_arrays(zero_gradient(capture.adapter))
        return bridge.to_arrays(capture.gradient.times(self.factors[capture.adapter.B]))


def _nobody(capture):
    pass


def _calling(capture, method):
    """A hook that calls a method of the capture, as long as it lives."""
    capture = weakref.ref(capture)

    def hook(tensor):
        alive = capture()
        if alive is not None:
            getattr(alive, method)(tensor)

    return hook


def _remove(handles):
    for handle in handles:
        handle.remove()

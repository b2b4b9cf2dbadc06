"""Capture: the exact gradient with respect to B·A of an adapter, in any training loop.

What arrives counts once autograd has added to B.grad, and lives as long: where ``.grad`` is None again the gradient
starts anew, and a backward pass that leaves ``.grad`` alone leaves nothing.
"""

import functools
import weakref
from collections.abc import Callable

import torch

from lorsum.lowrank import LowRank
from lorsum.torch import _bridge as bridge
from lorsum.torch._check import multiple_of_captured
from lorsum.torch._common_factor import Snapshot, common_factor, tolerance
from lorsum.torch._distributed import processes
from lorsum.torch._gradient import Gradient, zero_gradient
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
        self._forget()
        self._taps = [Taps(site, self) for site in adapter.sites]
        handles = [handle for taps in self._taps for handle in taps.register()]
        handles += [
            _register_first(adapter.B, _calling(self, "_after_B")),
            _register_first(adapter.A, _calling(self, "_after_A")),
        ]
        weakref.finalize(self, _remove, handles)

    def before_call(self):
        """Let go, in a forward pass, of what can count no more."""
        if self._staged and torch._C._current_graph_task_id() < 0:
            self._staged.clear()  # of a backward pass that has failed
        self.drop_cleared()

    def drop_cleared(self):
        """Forget the gradient where the module's ``zero_grad``, or the user, has cleared .grad."""
        A, B = self.adapter.A, self.adapter.B
        if "B" not in self._snapshots:
            return
        if B.grad is None or (self._snapshots["B"].is_written_to(B.grad) and not _any_number((A.grad, B.grad))):
            self._forget()

    def collect(self, view, S, X):
        """Take S and X of one call, on S's way back."""
        task = torch._C._current_graph_task_id()
        if task not in self._staged:
            self._before_accumulation()
            self._staged[task] = Gradient(self.adapter.shape, self.form)
            if task >= 0:  # A pass that adds nothing to B.grad, as one for the inputs alone, leaves nothing
                torch.autograd.Variable._execution_engine.queue_callback(
                    functools.partial(self._staged.pop, task, None)
                )
        self._staged[task].add(view, S, X, self.checked or processes(self.process_group) > 1)

    def clear(self):
        """Forget the gradient, as ``zero_grad`` does."""
        self._staged.clear()
        self._forget()
        self.called = False

    def has_gradient(self, missing="skip"):
        """True if the step has a gradient to take; else False, or with missing="error" an error that says why not."""
        self._staged.clear()  # of backward passes that have left .grad alone
        self.drop_cleared()
        A, B, name = self.adapter.A, self.adapter.B, self.adapter.name
        if A.grad is None and B.grad is None:
            if missing == "error":
                self._refuse_missing()
            self._forget()
            return False
        if A.grad is None or B.grad is None:
            letters = "AB" if A.grad is None else "BA"
            raise RuntimeError(
                f"`{name}`: lora_{letters[0]} has no .grad but lora_{letters[1]} has one. Both are needed, or none."
            )
        if not self.gradient and processes(self.process_group) == 1 and _any_number((A.grad, B.grad)):
            raise RuntimeError(
                f"`{name}` has .grad, but no call of it was captured: its weights were used in another way than "
                "lora_B(lora_A(x)), the gradient was set by hand, the model was called inside of a torch.func "
                "transform or traced by torch.jit, or compiled code ran before the optimizer was made (call "
                "torch.compiler.reset())."
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
        """The number c by which A.grad and B.grad were multiplied since the backward pass: unscaling, clipping, ascent.

        Raises
        ------
        RuntimeError
            If there is none, because they were changed in different ways.
        """
        if self._fault is not None:
            raise RuntimeError(self._fault)
        if self._passes["A"] != self._passes["B"]:  # a pass has reached one of the two only
            self.checked = True
        c = self._factor()
        if c == 0:  # what was cleared may have been nan
            self._forget()
        if not self._hooked:
            return 1.0 if c is None else c
        W = self.weights_of_grad()
        if W is None:
            raise RuntimeError(
                f"`{self.adapter.name}` has tensor hooks on its weights, and backward passes with different weights: "
                "what the hooks have made of its gradient cannot be found."
            )
        # .grad is c times what the hooks have made of the gradient
        c = multiple_of_captured(self.adapter, W, bridge.to_arrays(self.gradient.times(1.0)))
        return 1.0 if abs(c - 1) <= tolerance(self.adapter.A) else c

    def multiplied(self, c):
        """c G as a LowRank or a dense tensor; where .grad is zero and nothing is captured, zero."""
        return self.gradient.times(c) if self.gradient else zero_gradient(self.adapter)

    def weights_of_grad(self):
        """B·A in the backward passes, as a LowRank; None if it was not the same in all of them, or is not known."""
        if self._weights is not None:
            B, A = self._weights
            r = self.adapter.rank
            return LowRank._of(B.reshape(-1, r), A.reshape(r, -1).T)
        return self.adapter.matrix() if self._versions == self._current_versions() else None

    def _forget(self):
        self.gradient.clear()
        self._snapshots: dict = {}  # "A" and "B": .grad, as the last backward pass has left it
        self._passes = {"A": 0, "B": 0}  # backward passes that have added to A.grad, and to B.grad
        self._fault: str | None = None  # why A.grad and B.grad have no common factor
        self._hooked = False  # others have hooks on A or B, which may change what is added to .grad
        self._versions: tuple | None = ()  # of A and B in the first backward pass; None if others had other weights
        self._weights: tuple | None = None  # B and A in it, where the step compares with autograd

    def _current_versions(self):
        return self.adapter.A._version, self.adapter.B._version

    def _factor(self):
        A, B = self.adapter.A, self.adapter.B
        if len(self._snapshots) < 2 or A.grad is None or B.grad is None:
            return 1.0  # one of the two alone, which the comparison with autograd or check_complete refuses
        return common_factor(self.adapter, (self._snapshots["A"], self._snapshots["B"]))

    def _before_accumulation(self):
        """Do to the gradient what was done to .grad since the last backward pass."""
        name, grads = self.adapter.name, (self.adapter.A.grad, self.adapter.B.grad)
        missing = [grad is None for grad in grads]
        if all(missing):
            self._forget()
        elif not self._snapshots or processes(self.process_group) > 1:  # there averaging changes .grad
            if not _any_number(grads):
                self._forget()
            elif processes(self.process_group) == 1:
                self._fault = f"`{name}` had a .grad before its first captured call. Clear the gradients first."
        elif any(missing) and not self.gradient:
            self.checked = True  # a pass for the other alone went before
        elif any(missing):
            self._fault = f"`{name}`: of lora_A.grad and lora_B.grad one was cleared and the other was not."
        else:
            self._multiply()

    def _multiply(self):
        try:
            c = self._factor()
        except RuntimeError as error:  # raised in the step, unless .grad is cleared before
            self._fault = self._fault or str(error)
            return
        if not c:
            self._forget()
        elif c != 1 and self._fault is None:
            self.gradient.scale(c)
            self._snapshots = {"A": Snapshot(self.adapter.A.grad), "B": Snapshot(self.adapter.B.grad)}
            self.listener(self)

    def _after_B(self, B):
        staged = self._staged.pop(torch._C._current_graph_task_id(), None)
        if not B.requires_grad or B.grad is None:
            return  # frozen since the forward pass: autograd leaves .grad alone
        A = self.adapter.A
        self._passes["B"] += 1
        self._snapshots["B"] = Snapshot(B.grad)
        self._hooked = self._hooked or bool(A._backward_hooks or B._backward_hooks)
        self.checked = self.checked or staged is None or self._hooked or any(map(Taps.are_doubtful, self._taps))
        self._note_weights()
        if staged is None:
            return
        if self.gradient:
            self.gradient.merge(staged)
        else:
            self.gradient = staged
        self.listener(self)

    def _after_A(self, A):
        if not A.requires_grad or A.grad is None:
            return
        self._passes["A"] += 1
        self._snapshots["A"] = Snapshot(A.grad)
        if torch._C._current_graph_task_id() in self._staged:  # B, which comes first, was left out
            self.checked = True

    def _note_weights(self):
        """Remember the weights of the backward passes, with their values where .grad is compared with products of G."""
        A, B = self.adapter.A, self.adapter.B
        if self._passes["B"] == 1:
            self._versions = self._current_versions()
        elif self._versions != self._current_versions() or not self._has_weights_kept():
            self._versions = self._weights = None
        needed = self.checked or processes(self.process_group) > 1
        if needed and self._versions is not None and self._weights is None:
            self._weights = B.detach().clone(), A.detach().clone()

    def _has_weights_kept(self):
        """False if the weights were changed through ``.data``, which the version counter does not tell."""
        return self._weights is None or all(map(torch.equal, self._weights, (self.adapter.B, self.adapter.A)))


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
        return bridge.to_arrays(capture.multiplied(self.factors[capture.adapter.B]))


def _any_number(grads):
    """True unless all are None or zero."""
    return any(grad is not None and bool(grad.any()) for grad in grads)


def _nobody(capture):
    pass


def _register_first(p, hook):
    """Register a hook for after .grad is added to, before all that are there, which may change it."""
    handle = p.register_post_accumulate_grad_hook(hook)
    hooks = p._post_accumulate_grad_hooks
    *others, ours = hooks.items()
    hooks.clear()  # the engine does not know move_to_end
    hooks.update([ours, *others])
    return handle


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

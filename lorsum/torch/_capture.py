"""Capture: the exact gradient with respect to B·A of one adapter, in any training loop.

What arrives counts once autograd has added to B.grad, and lives as long: where ``.grad`` is None again the gradient
starts anew, and a backward pass that leaves ``.grad`` alone leaves nothing.
"""

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lorsum.lowrank import LowRank
from lorsum.torch._adapters import Adapter
from lorsum.torch._arrays import to_arrays
from lorsum.torch._common_factor import Snapshot, check_against_autograd, common_factor, multiple_of_captured, tolerance
from lorsum.torch._distributed import processes
from lorsum.torch._gradient import Gradient, Missing, zero_gradient
from lorsum.torch._hooks import PairHooks, register_after_accumulation, while_alive


class Capture:
    """The gradient of one adapter, kept up to date by hooks for as long as this object lives.

    ``to_check`` tells whether the next step compares it with autograd's, for which its rounding errors must be bounded:
    true where something was seen that may make it wrong. ``on_change`` is called when it has changed, in the backward
    pass.
    """

    def __init__(
        self,
        adapter: Adapter,
        form: str = "auto",
        process_group: Any = None,
        on_change: Callable[[], None] | None = None,
    ):
        self.adapter, self.form, self.process_group = adapter, form, process_group
        self.gradient, self.to_check = Gradient(adapter.shape, form), True
        self.called = False  # with gradients, since they were cleared
        self._on_change: Callable[[], None] = on_change or (lambda: None)
        self._staged: dict[int, Gradient] = {}  # by backward pass: what has arrived, but is not yet in B.grad
        self._forget()
        self._pairs = [PairHooks(site, self) for site in adapter.sites]
        handles = [handle for pair in self._pairs for handle in pair.register()]
        for p, method in ((adapter.B, self._after_B), (adapter.A, self._after_A)):
            handles.append(register_after_accumulation(p, while_alive(method)))
        for handle in handles:
            weakref.finalize(self, handle.remove)

    def before_call(self) -> None:
        """Let go, in a forward pass, of what can count no more."""
        if self._staged and torch._C._current_graph_task_id() < 0:
            self._staged.clear()  # of a backward pass that has failed
        self.drop_cleared()

    def drop_cleared(self) -> None:
        """Forget the gradient where the module's ``zero_grad``, or the user, has cleared .grad."""
        A, B = self.adapter.A, self.adapter.B
        if "B" not in self._snapshots:
            return
        if B.grad is None or (self._snapshots["B"].is_written_to(B.grad) and not _any_number((A.grad, B.grad))):
            self._forget()

    def collect(self, view: Any, S: Tensor, X: Tensor) -> None:
        """Take S and X of one call, on S's way back."""
        task = torch._C._current_graph_task_id()
        if task not in self._staged:
            self._before_accumulation()
            self._staged[task] = Gradient(self.adapter.shape, self.form)
            if task >= 0:  # A pass that adds nothing to B.grad, as one for the inputs alone, leaves nothing
                unstage: Any = functools.partial(self._staged.pop, task, None)
                torch.autograd.Variable._execution_engine.queue_callback(unstage)
        self._staged[task].add(view, S, X, self.to_check or processes(self.process_group) > 1)

    def clear(self) -> None:
        """Forget the gradient, as ``zero_grad`` does."""
        self._staged.clear()
        self._forget()
        self.called = False

    def has_gradient(self, missing: Missing = "skip") -> bool:
        """True if the step has a gradient to take; else False, or with missing="error" an error that says why not."""
        self._staged.clear()  # of backward passes that have left .grad alone
        self.drop_cleared()
        A, B, name = self.adapter.A, self.adapter.B, self.adapter.name
        if A.grad is None and B.grad is None:
            if missing == "error":
                why = (
                    "it was called, but no backward pass has reached it."
                    if self.called
                    else "its lora_A and lora_B have not been called with gradients. Freeze it, activate it, or pass "
                    '`missing="skip"`.'
                )
                raise RuntimeError(f"`{name}` has no gradient: {why}")
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

    def common_factor(self) -> float:
        """The number c by which A.grad and B.grad were multiplied since the backward pass: unscaling, clipping, ascent.

        It is an error if there is none, because they were changed in different ways.
        """
        if self._fault is not None:
            raise RuntimeError(self._fault)
        if self._passes["A"] != self._passes["B"]:  # a pass has reached one of the two only
            self.to_check = True
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
        c = multiple_of_captured(self.adapter, W, to_arrays(self.gradient.times(1.0)))
        return 1.0 if abs(c - 1) <= tolerance(self.adapter.A) else c

    def multiplied(self, c: float) -> LowRank | Tensor:
        """c G as a LowRank or a dense tensor; where .grad is zero and nothing is captured, zero."""
        return self.gradient.times(c) if self.gradient else zero_gradient(self.adapter)

    def compare_with_autograd(self, G: Any, c: float) -> None:
        """An error if G, the captured gradient times c, is not what autograd has in ``.grad`` the factors of."""
        W = self.weights_of_grad()
        if W is not None:
            check_against_autograd(self.adapter, W, G, self.gradient.rounding() * abs(c))

    def weights_of_grad(self) -> LowRank | None:
        """B·A in the backward passes, as a LowRank; None if it was not the same in all of them, or is not known."""
        if self._weights is not None:
            B, A = self._weights
            r = self.adapter.rank
            return LowRank._of(B.reshape(-1, r), A.reshape(r, -1).T)
        return self.adapter.matrix() if self._versions == self._current_versions() else None

    def _forget(self) -> None:
        self.gradient.clear()
        self._snapshots: dict[str, Snapshot] = {}  # "A" and "B": .grad, as the last backward pass has left it
        self._passes = {"A": 0, "B": 0}  # backward passes that have added to A.grad, and to B.grad
        self._fault: str | None = None  # why A.grad and B.grad have no common factor
        self._hooked = False  # others have hooks on A or B, which may change what is added to .grad
        # In the first backward pass: the versions of A and B, None if a later pass had other weights
        self._versions: tuple[int, ...] | None = ()
        self._weights: tuple[Tensor, Tensor] | None = None  # and B and A, where the step compares with autograd

    def _current_versions(self) -> tuple[int, int]:
        return self.adapter.A._version, self.adapter.B._version

    def _factor(self) -> float | None:
        A, B = self.adapter.A, self.adapter.B
        if len(self._snapshots) < 2 or A.grad is None or B.grad is None:
            return 1.0  # one of the two alone, which the comparison with autograd or has_gradient refuses
        return common_factor(self.adapter, (self._snapshots["A"], self._snapshots["B"]))

    def _before_accumulation(self) -> None:
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
            self.to_check = True  # a pass for the other alone went before
        elif any(missing):
            self._fault = f"`{name}`: of lora_A.grad and lora_B.grad one was cleared and the other was not."
        else:
            self._multiply()

    def _multiply(self) -> None:
        try:
            c = self._factor()
        except RuntimeError as error:  # raised in the step, unless .grad is cleared before
            self._fault = self._fault or str(error)
            return
        if not c:
            self._forget()
        elif c != 1 and self._fault is None:
            self.gradient.scale(c)
            grads = {"A": self.adapter.A.grad, "B": self.adapter.B.grad}
            self._snapshots = {letter: Snapshot(grad) for letter, grad in grads.items() if grad is not None}
            self._on_change()

    def _after_B(self, B: Tensor) -> None:
        staged = self._staged.pop(torch._C._current_graph_task_id(), None)
        if not B.requires_grad or B.grad is None:
            return  # frozen since the forward pass: autograd leaves .grad alone
        A = self.adapter.A
        self._passes["B"] += 1
        self._snapshots["B"] = Snapshot(B.grad)
        self._hooked = self._hooked or bool(A._backward_hooks or B._backward_hooks)
        self.to_check = self.to_check or staged is None or self._hooked or any(map(PairHooks.are_doubtful, self._pairs))
        self._note_weights()
        if staged is None:
            return
        if self.gradient:
            self.gradient.merge(staged)
        else:
            self.gradient = staged
        self._on_change()

    def _after_A(self, A: Tensor) -> None:
        if not A.requires_grad or A.grad is None:
            return
        self._passes["A"] += 1
        self._snapshots["A"] = Snapshot(A.grad)
        if torch._C._current_graph_task_id() in self._staged:  # B, which comes first, was left out
            self.to_check = True

    def _note_weights(self) -> None:
        """Remember the weights of the backward passes, with their values where .grad is compared with products of G."""
        A, B = self.adapter.A, self.adapter.B
        # values are compared too: the version counter does not tell of changes through .data
        kept = self._weights is None or all(map(torch.equal, self._weights, (B, A)))
        if self._passes["B"] == 1:
            self._versions = self._current_versions()
        elif self._versions != self._current_versions() or not kept:
            self._versions = self._weights = None
        needed = self.to_check or processes(self.process_group) > 1
        if needed and self._versions is not None and self._weights is None:
            self._weights = B.detach().clone(), A.detach().clone()


class LocalGradients:
    """The gradients of all adapters that have one, as this process has captured them; c by the adapter's B."""

    unchecked = True  # nothing has compared them with .grad yet

    def __init__(self, captures: list[Capture], factor: Callable[[Capture], float] = Capture.common_factor):
        self.traffic: dict[str, Any] = {}
        self.factors = {capture.adapter.B: factor(capture) for capture in captures}

    def gradient(self, capture: Capture, rule: Any) -> Any:
        """c G as the rule takes it."""
        return to_arrays(capture.multiplied(self.factors[capture.adapter.B]))


def _any_number(grads: Iterable[Tensor | None]) -> bool:
    """True unless all are None or zero."""
    return any(grad is not None and bool(grad.any()) for grad in grads)

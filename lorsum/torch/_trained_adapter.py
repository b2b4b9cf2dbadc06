"""One adapter in training: its gradient, its weights and its rule's state as arrays, and its steps."""

from concurrent.futures import Executor
from typing import Any

import numpy as np
from torch import Tensor

from lorsum.lowrank import LowRank
from lorsum.optim import Rule
from lorsum.torch._adapters import Adapter
from lorsum.torch._arrays import ParameterArray, ParameterArrays, StateTensors, to_arrays
from lorsum.torch._capture import Capture
from lorsum.torch._options import have_same_structure
from lorsum.torch._overlap import BegunStep
from lorsum.torch._step import Update, named, stepped


class TrainedAdapter:
    """All that an optimizer knows of one adapter: its parameters, its gradient, its rule's state and its next step.

    ``group`` is the number of its parameter group, ``seed`` that of the random numbers that the state begins with.
    """

    def __init__(self, capture: Capture, seed: list[int], group: int):
        self.adapter: Adapter = capture.adapter
        self.capture, self.seed, self.group = capture, seed, group
        self.begun: BegunStep | None = None  # the next step, where a thread computes it already
        self._weights = ParameterArrays(self.adapter.B, self.adapter.A)
        self._state: StateTensors | None = None
        self._rule: Rule | None = None  # whose state it is

    def update(self, rule: Any, gradients: Any, states: dict[Tensor, dict[str, Any]], debug: bool) -> Update:
        """The next step, not written yet; ``states`` is ``Optimizer.state``, which gets the state before the first."""
        capture, c = self.capture, gradients.factors[self.adapter.B]
        with named(f"`{self.adapter.name}`"):
            weights, G = self._weights.current(), gradients.gradient(capture, rule)
            W = _matrix_in(weights)
            tensors = self._state_tensors(rule, W, states)
            if debug or (capture.to_check and gradients.unchecked):
                capture.compare_with_autograd(G, c)
            following = tensors.state.count + 2
            capture.to_check = debug or following & (following - 1) == 0  # steps 1, 2, 4, 8, …
            W, state = self._result_of_begun(rule, W, tensors.state, c) or stepped(rule, W, G, tensors.state)
        return Update(weights, (W.U, W.V.T), tensors, state) if rule.lr else Update((), (), tensors, state)

    def begin(self, rule: Rule, states: dict[Tensor, dict[str, Any]], thread: Executor) -> None:
        """Let a thread compute the next step along the gradient that there is by now."""
        if self.begun is not None:
            self.begun.future.cancel()
        with named(f"`{self.adapter.name}`"):
            W = _matrix_in(self._weights.current())
            state = self._state_tensors(rule, W, states).state
            self.begun = BegunStep(thread, rule, W, to_arrays(self.capture.gradient.times(1.0)), state)

    def _result_of_begun(self, rule: Rule, W: LowRank, state: Any, c: float) -> tuple[Any, Any] | None:
        begun, self.begun = self.begun, None
        if begun is None:
            return None
        if c != 1 or not self.capture.gradient:
            begun.future.cancel()
            return None
        return begun.result(rule, W, state)

    def _state_tensors(self, rule: Rule, W: LowRank, states: dict[Tensor, dict[str, Any]]) -> StateTensors:
        """The rule's state; what of it is not there yet, as ``rule.init`` has it."""
        A, B = self.adapter.A, self.adapter.B
        if self._state is None or not have_same_structure(self._rule, rule) or not self._state.is_of(states[B]):
            self._state = StateTensors(rule.init(W, rng=np.random.default_rng(self.seed)), states[B])
            states[A]["step"] = states[B]["step"]  # tells those who save a state by parameters that A has one
        self._rule = rule
        return self._state


def _matrix_in(weights: list[ParameterArray]) -> LowRank:
    """B·A as a LowRank of the arrays of B and A."""
    B, A = weights[0].array, weights[1].array
    if B.ndim > 2:
        B, A = B.reshape(B.shape[0], -1), A.reshape(A.shape[0], -1)
    return LowRank._of(B, A.T)

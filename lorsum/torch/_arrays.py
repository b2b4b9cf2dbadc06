"""Tensors as the arrays that rules compute on, and back: on the CPU NumPy views, which lorsum's kernels take."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorsum.lowrank import LowRank
from lorsum.optim.rule import State, require_state
from lorsum.typing import Array


def to_arrays(x: Any) -> Any:
    """A tensor, or all tensors of a low-rank matrix, as the rules take them.

    CPU tensors become NumPy views; half precision becomes float32; on accelerators tensors stay tensors.
    """
    if isinstance(x, LowRank):
        return LowRank._of(to_arrays(x.U), to_arrays(x.V))
    x = half_to_single(x.detach() if x.requires_grad else x)
    return x.numpy() if x.is_cpu else x


def half_to_single(x: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _to_tensor(array: Array) -> Tensor:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


class ParameterArray:
    """A parameter as an array to read from, and to put new values into."""

    def __init__(self, p: Tensor):
        self.p, x = p, p.detach()
        self.direct = x.is_cpu and x.dtype in (torch.float32, torch.float64)
        self.array = x.numpy() if self.direct else to_arrays(x)
        self._memory = _memory_of(p)

    def is_current(self) -> bool:
        """True while the array is a view of the parameter, which keeps its memory from being used for anything else."""
        return self.direct and self._memory == _memory_of(self.p)

    def put(self, values: Array) -> None:
        """Copy values of any shape with as many numbers; autograd is told."""
        if self.direct:
            np.copyto(self.array, values.reshape(self.array.shape))
            torch.autograd.graph.increment_version(self.p)
        else:
            self.p.copy_(_to_tensor(values).reshape(self.p.shape))


def _memory_of(p: Tensor) -> tuple[Any, ...]:
    return p.data_ptr(), p.shape, p.stride()


class ParameterArrays:
    """Parameters as arrays, which are made again where one of them has been given other memory."""

    def __init__(self, *parameters: Tensor):
        self.parameters = parameters
        self._arrays: list[ParameterArray] = []

    def current(self) -> list[ParameterArray]:
        if not self._arrays or not all([array.is_current() for array in self._arrays]):
            self._arrays = [ParameterArray(p) for p in self.parameters]
        return self._arrays


class StateTensors:
    """The state of a rule for one parameter, whose numbers live in tensors: ``{"step": …, "M.U": …, "M.V": …}``.

    It starts as ``rule.init`` gives it, but tensors that ``Optimizer.state`` has of the parameter already take the
    place of its numbers.
    """

    def __init__(self, state: State, tensors: dict[str, Any]):
        require_state(state)
        self._tensors, self._held = tensors, dict[str, Tensor]()

        def held(name: str, leaf: Any) -> Any:
            if name != "step" and not isinstance(leaf, (np.ndarray, Tensor)):
                raise TypeError(f"`{name}` in the rule's state is a {type(leaf).__name__}; an array is needed.")
            if name not in tensors:
                # In the layout of the array: what was saved and loaded is then computed with alike
                tensors[name] = torch.tensor(leaf) if isinstance(leaf, int) else _to_tensor(leaf).clone()
            self._held[name] = tensors[name]
            return int(tensors[name]) if isinstance(leaf, int) else to_arrays(tensors[name])

        self.state = mapped(state, held)
        self._leaves = [x if name == "step" else to_arrays(x) for name, x in self._held.items()]

    def is_of(self, tensors: dict[str, Any]) -> bool:
        """True if these are the tensors, so that ``state`` is still a view of them."""
        return tensors is self._tensors and all([tensors.get(name) is x for name, x in self._held.items()])

    def put(self, state: State) -> None:
        """Take a rule's new state."""
        for held, leaf in zip(self._leaves, leaves_of(state), strict=True):
            if isinstance(held, np.ndarray):
                np.copyto(held, leaf)
            elif isinstance(leaf, int):
                held.fill_(leaf)
            else:
                held.copy_(leaf)
        self.state = self.state._replace(count=state.count)


def leaves_of(x: Any) -> Iterator[Any]:
    """The numbers and arrays in a tree of named tuples, tuples and low-rank matrices, in the order of ``mapped``."""
    if isinstance(x, (tuple, LowRank)):
        for part in x:
            yield from leaves_of(part)
    elif x is not None:
        yield x


def mapped(x: Any, f: Callable[[str, Any], Any], place: str = "") -> Any:
    """The tree of named tuples, tuples and low-rank matrices with f(place, leaf) for its leaves."""
    if x is None:
        return None
    if isinstance(x, LowRank):
        return LowRank._of(mapped(x.U, f, place + ".U"), mapped(x.V, f, place + ".V"))
    if isinstance(x, tuple):
        names = getattr(x, "_fields", range(len(x)))
        parts = [
            mapped(part, f, f"{place}.{name}" if place else str(name)) for name, part in zip(names, x, strict=True)
        ]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return f("step" if place == "count" else place, x)  # a step torch leaves on the CPU, when it loads

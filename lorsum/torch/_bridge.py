"""From tensors to what the rules compute on, and back: on the CPU NumPy views, which lorsum's kernels take."""

from typing import Any

import numpy as np
import torch

from lorsum.lowrank import LowRank
from lorsum.torch._gradient import half_to_single

__all__ = ["Held", "Slot", "mapped", "matrix_in", "slots_of", "to_arrays", "to_tensor"]


def to_arrays(x):
    """A tensor, or all tensors of a low-rank matrix, as the rules take them.

    CPU tensors become NumPy views; half precision becomes float32; on accelerators tensors stay tensors.
    """
    if isinstance(x, LowRank):
        return LowRank._of(to_arrays(x.U), to_arrays(x.V))
    x = half_to_single(x.detach() if x.requires_grad else x)
    return x.numpy() if x.is_cpu else x


class Slot:
    """A parameter as an array to read from, and to put new values into."""

    def __init__(self, p):
        self.p, x = p, p.detach()
        self.direct = x.is_cpu and x.dtype in (torch.float32, torch.float64)
        self.array = x.numpy() if self.direct else to_arrays(x)

    def put(self, values):
        """Copy values of any shape with as many numbers; autograd is told."""
        if self.direct:
            np.copyto(self.array, values.reshape(self.array.shape))
            torch.autograd.graph.increment_version(self.p)
        else:
            self.p.copy_(to_tensor(values).reshape(self.p.shape))


def slots_of(adapter):
    """Those of B and A."""
    return Slot(adapter.B), Slot(adapter.A)


def matrix_in(slots):
    """B·A as a LowRank of the arrays in two slots."""
    B, A = slots[0].array, slots[1].array
    if B.ndim > 2:
        B, A = B.reshape(B.shape[0], -1), A.reshape(A.shape[0], -1)
    return LowRank._of(B, A.T)


def to_tensor(array):
    """An array of a rule as a tensor, without a copy."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


class Held:
    """The state of a rule for one parameter, whose numbers live in tensors: ``{"step": …, "M.U": …, "M.V": …}``.

    Parameters
    ----------
    state : named tuple
        As ``rule.init`` gives it.
    tensors : dict
        Tensors by name; those that are there already are taken in place of the state's numbers.
    """

    def __init__(self, state, tensors):
        self.tensors, self.names, self.parts = tensors, list[str](), list[Any]()

        def held(name, leaf):
            if name not in tensors:
                # In the layout of the array: what was saved and loaded is then computed with alike
                tensors[name] = torch.tensor(leaf) if isinstance(leaf, int) else to_tensor(leaf).clone()
            self.names.append(name)
            self.parts.append(tensors[name])
            return int(tensors[name]) if isinstance(leaf, int) else to_arrays(tensors[name])

        self.state = mapped(state, held)
        self.leaves = [
            part if name == "step" else to_arrays(part) for name, part in zip(self.names, self.parts, strict=True)
        ]

    def is_of(self, tensors):
        """True if these are the tensors, so that ``state`` is still a view of them."""
        return tensors is self.tensors and all(tensors.get(n) is x for n, x in zip(self.names, self.parts, strict=True))

    def update(self, state):
        """Take a rule's new state."""
        new: list = []
        mapped(state, lambda name, leaf: new.append(leaf))
        for held, leaf in zip(self.leaves, new, strict=True):
            if isinstance(held, np.ndarray):
                np.copyto(held, leaf)
            elif isinstance(leaf, int):
                held.fill_(leaf)
            else:
                held.copy_(leaf)
        self.state = self.state._replace(count=state.count)


def mapped(x, f, place=""):
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

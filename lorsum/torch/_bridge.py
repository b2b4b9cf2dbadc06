"""From tensors to what the rules compute on, and back: on the CPU NumPy views, which lorsum's kernels take."""

import numpy as np
import torch

from lorsum.lowrank import LowRank
from lorsum.torch._gradient import half_to_single

__all__ = ["Held", "Slots", "leaves_of", "mapped", "matrix_in", "to_arrays", "to_tensor"]


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
        self._memory = _memory_of(p)

    def is_current(self):
        """True while the array is a view of the parameter, which keeps its memory from being used for anything else."""
        return self.direct and self._memory == _memory_of(self.p)

    def put(self, values):
        """Copy values of any shape with as many numbers; autograd is told."""
        if self.direct:
            np.copyto(self.array, values.reshape(self.array.shape))
            torch.autograd.graph.increment_version(self.p)
        else:
            self.p.copy_(to_tensor(values).reshape(self.p.shape))


def _memory_of(p):
    return p.data_ptr(), p.shape, p.stride()


class Slots:
    """The slots of parameters, made again where one of them has been given other memory."""

    def __init__(self, *parameters):
        self.parameters = parameters
        self.slots: list = []

    def current(self):
        """A slot for each."""
        if not self.slots or not all([slot.is_current() for slot in self.slots]):
            self.slots = [Slot(p) for p in self.parameters]
        return self.slots


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
        self.tensors, self.parts = tensors, dict[str, torch.Tensor]()

        def held(name, leaf):
            if name not in tensors:
                # In the layout of the array: what was saved and loaded is then computed with alike
                tensors[name] = torch.tensor(leaf) if isinstance(leaf, int) else to_tensor(leaf).clone()
            self.parts[name] = tensors[name]
            return int(tensors[name]) if isinstance(leaf, int) else to_arrays(tensors[name])

        self.state = mapped(state, held)
        self.leaves = [part if name == "step" else to_arrays(part) for name, part in self.parts.items()]

    def is_of(self, tensors):
        """True if these are the tensors, so that ``state`` is still a view of them."""
        return tensors is self.tensors and all([tensors.get(name) is x for name, x in self.parts.items()])

    def update(self, state):
        """Take a rule's new state."""
        for held, leaf in zip(self.leaves, leaves_of(state), strict=True):
            if isinstance(held, np.ndarray):
                np.copyto(held, leaf)
            elif isinstance(leaf, int):
                held.fill_(leaf)
            else:
                held.copy_(leaf)
        self.state = self.state._replace(count=state.count)


def leaves_of(x):
    """The numbers and arrays in a tree of named tuples, tuples and low-rank matrices, in the order of ``mapped``."""
    if isinstance(x, (tuple, LowRank)):
        return [leaf for part in x for leaf in leaves_of(part)]
    return [] if x is None else [x]


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

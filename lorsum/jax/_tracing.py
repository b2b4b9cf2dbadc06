"""Where a program multiplies with the adapters of the parameters.

A program is a jaxpr: the equations that JAX makes of a function. The factors U and V are followed from its inputs
through loops, branches, checkpoints and changes of precision to the equations that multiply with them. What uses a
factor in another way is followed too: if the loss depends on it, the gradient is not that of the products alone, and
the caller must say so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, primitives

from lorsum.jax._matrix_views import MatrixView
from lorsum.jax._stacks import rearrangement
from lorsum.jax._value_numbers import ValueNumbers
from lorsum.jax.products import product_p
from lorsum.typing import Factor

# Operations that leave a factor as it is, but for its precision; converted to integers it is a constant, see below
_KEEPING = {"convert_element_type", "copy", "copy_p", "device_put", "optimization_barrier", "sharding_constraint"}


class TracedFactor(NamedTuple):
    """A variable of a program that is U or V of the adapter of this number, or of a stack of adapters.

    ``axes`` are the dimensions of the stack in the order in which they are in front. A round of ``loops`` has a slice
    of each of the dimensions ``taken``. ``selections`` are what else was done to the stack, whose dimensions then have
    no number: its gradient is had as a sum only.
    """

    adapter: int
    side: Factor
    axes: tuple
    taken: tuple = ()
    loops: tuple = ()
    selections: tuple = ()


class OtherUse(NamedTuple):
    """A variable of a program that depends on an adapter in another way than by its products, and by which operation.

    ``of_products`` if there are products in that operation, of which the gradients cannot be had out of it.
    """

    adapter: int
    operation: str
    of_products: bool = False


Origin: TypeAlias = TracedFactor | OtherUse | None
"""Where a variable comes from: it is a factor, or depends on one in another way, or neither."""


class Loop(NamedTuple):
    """A loop around a product: its length, and whether each round has an adapter of its own, out of a stack."""

    length: int
    stacked: bool


@dataclass(frozen=True)
class Product:
    """A product with an adapter.

    ``x`` and ``y`` are shape and dtype of one call's input and output; ``loops`` are around it, the outermost first.
    ``factor`` is what came in place of U: V's side where the product is with Wᵀ.
    """

    factor: TracedFactor
    view: MatrixView
    x: Any
    y: Any
    loops: tuple[Loop, ...] = ()

    @property
    def adapter(self) -> int:
        """Its number."""
        return self.factor.adapter

    @property
    def transposed(self) -> bool:
        """True for a product with Wᵀ."""
        return self.factor.side == "V"

    @property
    def stack(self) -> int:
        """The number of leading dimensions of x and y that are those of a stack of adapters."""
        return len(self.factor.axes)

    @property
    def rows(self) -> int:
        """Number of rows of S and X for one adapter, all rounds together."""
        count = self.view.rows(self.y.shape[self.stack :])
        for loop in self.loops:
            count *= 1 if loop.stacked else loop.length
        return count


@dataclass
class TracedProgram:
    """A program and, by the number of an equation, the product that it is or the programs inside it.

    ``rearranging`` are the equations that give factors again, mostly with the stack of their
    first operand changed.
    """

    jaxpr: Any
    consts: Any
    found: "dict[int, Product | InnerPrograms]" = field(default_factory=dict)
    rearranging: set[int] = field(default_factory=set)
    results: list[Origin] = field(default_factory=list)

    @property
    def products(self) -> list[Product]:
        """All products, in the order of the program."""
        return [x for part in self.found.values() for x in ([part] if isinstance(part, Product) else part.products)]


class InnerPrograms(NamedTuple):
    """The programs inside an equation, and the length of a loop."""

    programs: list[TracedProgram]
    length: Any = None

    @property
    def products(self) -> list[Product]:
        """Their products, as seen from outside."""
        inside = [x for program in self.programs for x in program.products]
        if self.length is None:
            return inside
        own = id(self.programs[0].jaxpr)
        return [replace(x, loops=(Loop(self.length, own in x.factor.loops), *x.loops)) for x in inside]


def find_products(
    program: Any, origins: Sequence[Origin], inputs: Sequence = (), outside: ValueNumbers | None = None
) -> TracedProgram:
    """The products in a jaxpr, from the origins of its inputs, and the value numbers of the first of them."""
    if not isinstance(program, ClosedJaxpr):
        program = ClosedJaxpr(program, ())
    traced, numbers = TracedProgram(program.jaxpr, program.consts), ValueNumbers(program, inputs, outside)
    known = dict(zip(program.jaxpr.invars, origins, strict=True))

    def origins_of(variables: list) -> list[Origin]:
        return [None if isinstance(v, Literal) else known.get(v) for v in variables]

    for i, eqn in enumerate(program.jaxpr.eqns):
        part, results = _traced(eqn, origins_of(eqn.invars), numbers)
        numbers.add(eqn)
        results = [x if _has_derivative(v) else None for v, x in zip(eqn.outvars, results, strict=True)]
        gives_factor = any(isinstance(x, TracedFactor) for x in results)
        if isinstance(part, Product) or (part and (part.products or gives_factor)):
            traced.found[i] = part
        elif gives_factor:
            traced.rearranging.add(i)
        known.update(zip(eqn.outvars, results, strict=True))
    traced.results = origins_of(program.jaxpr.outvars)
    return traced


Traced: TypeAlias = tuple[Product | InnerPrograms | None, list[Origin]]
"""Of an equation: the product that it is, the programs inside it, or None; and the origins of its results."""


def _traced(eqn: Any, origins: list[Origin], numbers: ValueNumbers) -> Traced:
    """An equation of any kind, from the origins of its operands."""
    name, count = eqn.primitive.name, len(eqn.outvars)
    if eqn.primitive in _TRACING_RULES:
        return _TRACING_RULES[eqn.primitive](eqn, origins, numbers)
    if name in _KEEPING and all(_is_real(v) == _is_real(w) for v, w in zip(eqn.invars, eqn.outvars, strict=False)):
        return None, origins[:count]
    if origins and isinstance(origins[0], TracedFactor) and (factor := _rearranged(eqn, origins, numbers)):
        return None, [factor]
    factors = [x for x in origins if isinstance(x, TracedFactor)]
    if factors and any(map(_has_product, _programs_in(eqn))):
        return None, [OtherUse(factors[0].adapter, name, of_products=True)] * count
    return None, [_used(origins, name)] * count


def _product(eqn: Any, origins: list[Origin], numbers: ValueNumbers) -> Traced:
    of_x, of_U, of_V = origins
    used = _used([of_x], "x")
    if not (isinstance(of_U, TracedFactor) or isinstance(of_V, TracedFactor)):  # an adapter that is not trained
        return None, [used or _used([of_U, of_V], "")]
    if not (isinstance(of_U, TracedFactor) and of_V == of_U._replace(side="V" if of_U.side == "U" else "U")):
        return None, [_used([of_U, of_V], "a product with two adapters' factors")]
    return Product(of_U, eqn.params["view"], eqn.invars[0].aval, eqn.outvars[0].aval), [used]


def _call(eqn: Any, origins: list[Origin], numbers: ValueNumbers) -> Traced:
    """A program in a ``jit`` or a checkpoint."""
    inner = _inner(eqn.params["jaxpr"], origins, numbers, eqn.invars)
    return InnerPrograms([inner]), inner.results


def _branches(eqn: Any, origins: list[Origin], numbers: ValueNumbers) -> Traced:
    """A ``cond``: its first operand says which branch is taken."""
    which, *rest = origins
    programs = [_inner(branch, rest, numbers, eqn.invars[1:]) for branch in eqn.params["branches"]]
    results = zip(*(program.results for program in programs), strict=True)
    return InnerPrograms(programs), [_used([which, *of], eqn.primitive.name) for of in results]


def _loop(eqn: Any, origins: list[Origin], numbers: ValueNumbers) -> Traced:
    """A ``scan``: what it goes over comes as slices."""
    name, body, first = eqn.primitive.name, eqn.params["jaxpr"], eqn.params["num_consts"]
    last = first + eqn.params["num_carry"]
    own = (id(body.jaxpr),)  # names the loop where it matters, inside of it: no program is inside itself
    over = [_slice_of(x, own) if isinstance(x, TracedFactor) else x for x in origins[last:]]

    def traced_body(carried):
        return _inner(body, [*origins[:first], *carried, *over], numbers, eqn.invars[:first])

    inner, _ = _carried_around(traced_body, origins[first:last], name)
    return InnerPrograms([inner], eqn.params["length"]), [_used([x], name) for x in inner.results]


def _open_loop(eqn: Any, origins: list[Origin], numbers: ValueNumbers) -> Traced:
    """A ``while``: it has no gradient, but may hold what needs none."""
    name, p = eqn.primitive.name, eqn.params
    first = p["cond_nconsts"] + p["body_nconsts"]
    constant = origins[p["cond_nconsts"] : first]
    inner, carried = _carried_around(lambda x: find_products(p["body_jaxpr"], [*constant, *x]), origins[first:], name)
    if inner.products:
        return None, [OtherUse(inner.products[0].adapter, name, of_products=True)] * len(carried)
    return None, carried


def _carried_around(
    traced_body: Callable[[list[Origin]], TracedProgram], carried: list[Origin], name: str
) -> tuple[TracedProgram, list[Origin]]:
    """The body of a loop and the origins of what it carries, which may come to depend on adapters round by round."""
    carried = [_used([x], name) for x in carried]
    while True:
        inner = traced_body(carried)
        after = [_used(pair, name) for pair in zip(carried, inner.results, strict=False)]
        if after == carried:
            return inner, carried
        carried = after


_TRACING_RULES: dict[Any, Callable[[Any, list[Origin], ValueNumbers], Traced]] = {
    product_p: _product,
    primitives.stop_gradient_p: lambda eqn, origins, numbers: (None, [None]),
    primitives.jit_p: _call,
    primitives.remat_p: _call,
    primitives.cond_p: _branches,
    primitives.scan_p: _loop,
    primitives.while_p: _open_loop,
}


def _inner(program: Any, origins: list[Origin], numbers: ValueNumbers, variables: list) -> TracedProgram:
    """A program in an equation, whose first inputs are these variables outside."""
    return find_products(program, origins, [numbers[v] for v in variables], numbers)


def _rearranged(eqn, origins, numbers):
    """A factor of which an operation has changed the stack alone; None if it has done more."""
    factor, stack = origins[0], len(eqn.invars[0].aval.shape) - 2
    if eqn.primitive.name == "transpose":
        *order, m, r = eqn.params["permutation"]
        if (m, r) != (stack, stack + 1):
            return None
        moved = factor._replace(axes=tuple(factor.axes[i] for i in order))
        return moved._replace(selections=(*moved.selections, tuple(order))) if moved.selections else moved
    found = rearrangement(eqn, numbers) if not any(origins[1:]) else None
    if found is None:
        return None
    what, left = found
    return factor._replace(axes=(None,) * left, selections=(*factor.selections, (factor.axes, factor.taken), what))


def _slice_of(factor, loop):
    """What a round of a loop over a stack has of it; U and V of one adapter are no stack."""
    if not factor.axes:
        return OtherUse(factor.adapter, "scan")
    first, *others = factor.axes
    return factor._replace(axes=tuple(others), taken=(*factor.taken, first), loops=loop + factor.loops)


def _used(origins, operation):
    """The first other use among inputs of an operation, or the one that it makes of a factor; or None."""
    for x in origins:
        if x is not None:
            return x if isinstance(x, OtherUse) else OtherUse(x.adapter, operation)
    return None


def _has_derivative(variable):
    return jnp.issubdtype(getattr(variable.aval, "dtype", bool), jnp.inexact)


def _is_real(variable):
    return not jnp.issubdtype(getattr(variable.aval, "dtype", bool), jnp.complexfloating)


def _has_product(program):
    return any(eqn.primitive is product_p or any(map(_has_product, _programs_in(eqn))) for eqn in program.eqns)


def _programs_in(eqn):
    """The programs among an operation's parameters, such as a loop's body."""
    values = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    return [x for x in values if hasattr(x, "eqns")]

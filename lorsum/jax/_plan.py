"""Where a program has products with the adapters of the parameters.

A program is a jaxpr, what JAX makes of a function. The factors are followed from its inputs through loops, branches,
checkpoints and changes of precision to the products. Whatever else uses a factor taints its results: if the loss is
among them, the gradient is not that of the products alone, and the caller must say so.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, primitives

from lorsum.jax._selection import Names, selection
from lorsum.jax.products import product_p

__all__ = ["Factor", "Inner", "Plan", "Product", "Tainted", "planned"]

# Operations that hand on a factor as it is, but for its precision; to integers it is a constant, see below
_HANDED_ON = {"convert_element_type", "copy", "copy_p", "device_put", "optimization_barrier", "sharding_constraint"}


class Factor(NamedTuple):
    """U or V of the adapter of this number, or of a stack of them.

    ``axes`` are the dimensions of the stack in the order in which they are in front. A round of ``loops`` has a slice
    of each of the dimensions ``taken``. ``selections`` are what else was done to the stack, whose dimensions then have
    no number.
    """

    adapter: int
    side: str
    axes: tuple
    taken: tuple = ()
    loops: tuple = ()
    selections: tuple = ()


class Tainted(NamedTuple):
    """What depends on an adapter in another way than through its products, and through which operation.

    Or through its products, but in an operation that their gradients cannot be had out of.
    """

    adapter: int
    operation: str
    by_products: bool = False


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

    factor: Factor
    view: Any
    x: Any
    y: Any
    loops: tuple[Loop, ...] = ()

    @property
    def adapter(self):
        """Its number."""
        return self.factor.adapter

    @property
    def transposed(self):
        """True for a product with Wᵀ."""
        return self.factor.side == "V"

    @property
    def selected(self):
        """True for an adapter that was taken out of a stack otherwise than by a loop over it."""
        return bool(self.factor.selections)

    @property
    def stack(self):
        """The number of leading dimensions of x and y that are those of a stack of adapters."""
        return len(self.factor.axes)

    @property
    def order(self):
        """The dimension of the adapters' stack that comes first in all that is collected from loops, and so on."""
        return self.factor.taken + self.factor.axes

    @property
    def rows(self):
        """Number of rows of S and X for one adapter, all rounds together."""
        count = self.view.rows(self.y.shape[self.stack :])
        for loop in self.loops:
            count *= 1 if loop.stacked else loop.length
        return count


@dataclass
class Plan:
    """A program and, by the number of an equation, the product that it is or the programs inside it.

    ``moves`` are the equations the result of which is a factor, as their first operand is.
    """

    jaxpr: Any
    consts: Any
    steps: dict = field(default_factory=dict)
    moves: set = field(default_factory=set)
    results: list = field(default_factory=list)  # what each result is: a Factor, a Tainted or None

    @property
    def products(self):
        """All products, in the order of the program."""
        return [x for step in self.steps.values() for x in ([step] if isinstance(step, Product) else step.products)]


class Inner(NamedTuple):
    """The plans of the programs inside an equation, and the length of a loop."""

    plans: list
    length: Any = None

    @property
    def products(self):
        """Their products, as seen from outside."""
        inside = [x for plan in self.plans for x in plan.products]
        return inside if self.length is None else [replace(x, loops=(self.loop_around(x), *x.loops)) for x in inside]

    def loop_around(self, product):
        """The loop as a product in it sees it."""
        return Loop(self.length, id(self.plans[0].jaxpr) in product.factor.loops)


def planned(program, origins, names=None):
    """The plan of a program.

    Parameters
    ----------
    program : ClosedJaxpr or Jaxpr
    origins : list
        What each of its inputs is: a Factor, a Tainted or None.
    names : Names, optional
        Of its variables.

    Returns
    -------
    Plan

    """
    program = _closed(program)
    plan, known = Plan(program.jaxpr, program.consts), dict(zip(program.jaxpr.invars, origins, strict=True))
    names = names or Names(program)

    def of(variables):
        return [None if isinstance(v, Literal) else known.get(v) for v in variables]

    for number, eqn in enumerate(program.jaxpr.eqns):
        step, results = _step(eqn, of(eqn.invars), names)
        names.add(eqn)
        results = [x if _has_derivative(v) else None for v, x in zip(eqn.outvars, results, strict=True)]
        moved = any(isinstance(x, Factor) for x in results)
        if isinstance(step, Product) or (step and (step.products or moved)):
            plan.steps[number] = step
        elif moved:
            plan.moves.add(number)
        known.update(zip(eqn.outvars, results, strict=True))
    plan.results = of(program.jaxpr.outvars)
    return plan


def _step(eqn, origins, names):
    """The product or the inner plans of an equation, or None; and what its results are."""
    name, count = eqn.primitive.name, len(eqn.outvars)
    if eqn.primitive is product_p:
        return _product(eqn, *origins)
    if name in _HANDED_ON and all(_is_real(v) == _is_real(w) for v, w in zip(eqn.invars, eqn.outvars, strict=False)):
        return None, origins[:count]
    if name == "stop_gradient":
        return None, [None]
    if origins and isinstance(origins[0], Factor) and (moved := _moved(eqn, origins, names)):
        return None, [moved]
    if eqn.primitive in (primitives.jit_p, primitives.remat_p):
        plan = planned(*_inside(eqn.params["jaxpr"], origins, names, eqn.invars))
        return Inner([plan]), plan.results
    if eqn.primitive is primitives.scan_p:
        return _loop(eqn, origins, names)
    if eqn.primitive is primitives.cond_p:
        plans = [planned(*_inside(branch, origins[1:], names, eqn.invars[1:])) for branch in eqn.params["branches"]]
        return Inner(plans), [_taint([origins[0], *of], name) for of in zip(*(p.results for p in plans), strict=True)]
    if name == "while":
        return None, _of_open_loop(eqn, origins)
    factors = [x for x in origins if isinstance(x, Factor)]
    if factors and any(map(_has_product, _programs_in(eqn))):
        return None, [Tainted(factors[0].adapter, name, by_products=True)] * count
    return None, [_taint(origins, name)] * count


def _inside(program, origins, names, variables):
    """Arguments of ``planned`` for a program in an equation, whose first inputs are these variables outside."""
    program = _closed(program)
    return program, origins, Names(program, [names[v] for v in variables], names)


def _closed(program):
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def _moved(eqn, origins, names):
    """A factor of which an operation has changed the stack alone; None if it has done more."""
    factor, stack = origins[0], len(eqn.invars[0].aval.shape) - 2
    if eqn.primitive.name == "transpose":
        *order, m, r = eqn.params["permutation"]
        if (m, r) != (stack, stack + 1):
            return None
        moved = factor._replace(axes=tuple(factor.axes[i] for i in order))
        return moved._replace(selections=(*moved.selections, tuple(order))) if moved.selections else moved
    found = selection(eqn, names) if not any(origins[1:]) else None
    if found is None:
        return None
    what, left = found
    return factor._replace(axes=(None,) * left, selections=(*factor.selections, (factor.axes, factor.taken), what))


def _product(eqn, of_x, of_U, of_V):
    taint = _taint([of_x], "x")
    if not (isinstance(of_U, Factor) or isinstance(of_V, Factor)):  # an adapter that is not trained
        return None, [taint or _taint([of_U, of_V], "")]
    if not (isinstance(of_U, Factor) and of_V == of_U._replace(side="V" if of_U.side == "U" else "U")):
        return None, [_taint([of_U, of_V], "a product with two adapters' factors")]
    return Product(of_U, eqn.params["view"], eqn.invars[0].aval, eqn.outvars[0].aval), [taint]


def _loop(eqn, origins, names):
    """A scan: what it goes over comes as slices; what it carries comes around, and taints with it."""
    name, body, first = eqn.primitive.name, eqn.params["jaxpr"], eqn.params["num_consts"]
    last = first + eqn.params["num_carry"]
    own = (id(body.jaxpr),)  # names the loop where it matters, inside of it: no program is inside itself
    over = [_slice_of(x, own) if isinstance(x, Factor) else x for x in origins[last:]]
    carried = [_taint([x], name) for x in origins[first:last]]
    while True:
        plan = planned(*_inside(body, [*origins[:first], *carried, *over], names, eqn.invars[:first]))
        after = [_taint(pair, name) for pair in zip(carried, plan.results, strict=False)]
        if after == carried:
            return Inner([plan], eqn.params["length"]), [_taint([x], name) for x in plan.results]
        carried = after


def _slice_of(factor, loop):
    """What a round of a loop over a stack has of it; U and V of one adapter are no stack."""
    if not factor.axes:
        return Tainted(factor.adapter, "scan")
    first, *others = factor.axes
    return factor._replace(axes=tuple(others), taken=(*factor.taken, first), loops=loop + factor.loops)


def _of_open_loop(eqn, origins):
    """What the results of a ``while`` depend on: it has no gradient, but may hold what needs none."""
    name, p = eqn.primitive.name, eqn.params
    first = p["cond_nconsts"] + p["body_nconsts"]
    constant, carried = origins[p["cond_nconsts"] : first], [_taint([x], name) for x in origins[first:]]
    while True:
        plan = planned(p["body_jaxpr"], [*constant, *carried])
        if plan.products:
            return [Tainted(plan.products[0].adapter, name, by_products=True)] * len(carried)
        after = [_taint(pair, name) for pair in zip(carried, plan.results, strict=True)]
        if after == carried:
            return carried
        carried = after


def _taint(origins, operation):
    """The first taint among inputs of an operation, or what it taints; or None."""
    for x in origins:
        if x is not None:
            return x if isinstance(x, Tainted) else Tainted(x.adapter, operation)
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

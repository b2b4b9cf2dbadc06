"""A program run again, with a probe beside each of its products and X of each as a further result.

Operations without products in them run as they are. Those with programs inside, such as loops, are written again around
the inner programs: a loop goes over the probes of its rounds, and collects X, as it does with any other input and
result.
"""

from collections.abc import Collection, Sequence
from functools import partial

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun, primitives

from lorsum.jax._probes import attached, zeros_of_all_rounds
from lorsum.jax._stacks import rearranged
from lorsum.jax._tracing import Product, TracedProgram
from lorsum.jax.products import plain_product
from lorsum.typing import Array

__all__ = ["replayed"]


def replayed(
    program: TracedProgram,
    inputs: Sequence[Array],
    stack_probes: Sequence[Array | None],
    probes: Sequence[Array | None],
    summed: Collection[int],
) -> tuple[list[Array], list[Array | None], list[Array | None]]:
    """The results of a program, a probe beside each of them or None, and X of each product.

    ``stack_probes`` has beside an input that is U of a stack of adapters a probe for SᵀX of all of them, else None;
    ``probes`` one for each product, or None with adapters that were selected out of a stack. Of the adapters ``summed``
    probes are for SᵀX, and X is None.
    """
    jaxpr = program.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *inputs], strict=True))
    beside = dict(zip(jaxpr.invars, stack_probes, strict=True))
    probes, Xs = list(probes), []

    def values(variables):
        return [v.val if isinstance(v, Literal) else known[v] for v in variables]

    def stacks_of(variables):
        return [None if isinstance(v, Literal) else beside.get(v) for v in variables]

    for i, eqn in enumerate(jaxpr.eqns):
        part, arguments, stacks = program.found.get(i), values(eqn.invars), stacks_of(eqn.invars)
        if part is None:
            results = _as_it_is(jaxpr, eqn, arguments)
            if i in program.rearranging and stacks[0] is not None:
                beside[eqn.outvars[0]] = rearranged(eqn, stacks[0], arguments[1:])
        elif isinstance(part, Product):
            y, probe = plain_product(*arguments, **eqn.params), probes.pop(0)
            if part.selected:
                probe = stacks[2].mT if part.transposed else stacks[1]
            y, X = attached(part, y, arguments[0], probe, part.adapter in summed)
            results = [y]
            Xs.append(X)
        else:
            count = len(part.products)
            replay = _REPLAY_RULES[eqn.primitive]
            results, stacks, inner_Xs = replay(eqn, part, arguments, stacks, probes[:count], summed)
            probes, Xs = probes[count:], Xs + inner_Xs
            beside.update(zip(eqn.outvars, stacks, strict=True))
        known.update(zip(eqn.outvars, results, strict=True))
    return values(jaxpr.outvars), stacks_of(jaxpr.outvars), Xs


def _as_it_is(jaxpr, eqn, arguments):
    """An equation without products, as a program by itself."""
    inputs = {v: x for v, x in zip(eqn.invars, arguments, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(
        constvars=[],
        invars=list(inputs),
        outvars=eqn.outvars,
        eqns=[eqn],
        effects=eqn.effects,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*inputs.values())


def _call(eqn, inner, arguments, stacks, probes, summed):
    return replayed(inner.programs[0], arguments, stacks, probes, summed)


def _checkpoint(eqn, inner, arguments, stacks, probes, summed):
    @partial(jax.checkpoint, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    def again(arguments, stacks, probes):
        return replayed(inner.programs[0], arguments, stacks, probes, summed)

    return again(arguments, stacks, probes)


def _loop(eqn, inner, arguments, stacks, probes, summed):
    """A probe for S has a part for each round; one for SᵀX only where each round has an adapter of its own."""
    (program,), p = inner.programs, eqn.params
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
    by_rounds = [x.adapter not in summed or (inner.loop_around(x).stacked and not x.selected) for x in program.products]
    shared = [probe for probe, each in zip(probes, by_rounds, strict=True) if not each]

    def body(carried, over):
        own, mine = iter(over[1]), iter(shared)
        in_order = [next(own if each else mine) for each in by_rounds]
        beside = [*stacks[:first], *[None] * len(carried), *over[2]]
        results, _, Xs = replayed(program, [*arguments[:first], *carried, *over[0]], beside, in_order, summed)
        return results[: p["num_carry"]], (results[p["num_carry"] :], Xs)

    over = arguments[last:], [probe for probe, each in zip(probes, by_rounds, strict=True) if each], stacks[last:]
    options = {name: p[name] for name in ("length", "reverse", "unroll")}
    carried, (results, Xs) = jax.lax.scan(body, arguments[first:last], over, **options)
    results = [*carried, *results]
    return results, [None] * len(results), Xs


def _branches(eqn, inner, arguments, stacks, probes, summed):
    """Branches have different products: each gives zeros for X of those of the others."""
    nothing = [None if x.adapter in summed else zeros_of_all_rounds(x, x.x) for x in inner.products]

    def branch(number):
        first = sum(len(program.products) for program in inner.programs[:number])
        last = first + len(inner.programs[number].products)

        def taken(arguments, stacks, probes):
            results, _, Xs = replayed(inner.programs[number], arguments, stacks, probes[first:last], summed)
            return results, [*nothing[:first], *Xs, *nothing[last:]]

        return taken

    branches = list(map(branch, range(len(inner.programs))))
    results, Xs = jax.lax.switch(arguments[0], branches, arguments[1:], stacks[1:], probes)
    return results, [None] * len(results), Xs


_REPLAY_RULES = {
    primitives.jit_p: _call,
    primitives.remat_p: _checkpoint,
    primitives.scan_p: _loop,
    primitives.cond_p: _branches,
}

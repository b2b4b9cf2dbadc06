"""A program run again, with a probe beside each of its products and X of each as a further result.

Operations without products in them run as they are. Those with programs inside, such as loops, are written again around
the inner programs: a loop goes over the probes of its rounds, and collects X, as it does with any other input and
result.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun, primitives

from lorsum.jax._probes import with_probe_for_S, with_probe_for_sum, zeros_of_all_rounds
from lorsum.jax._stacks import rearranged
from lorsum.jax._tracing import Product, TracedProgram
from lorsum.jax.products import plain_product
from lorsum.typing import Array


def replayed(
    program: TracedProgram,
    inputs: Sequence[Array],
    sum_probes: Sequence[Any],
    probes: Sequence[Array | None],
) -> tuple[list[Array], list[Array | None], list[Array | None]]:
    """The results of a program, a probe beside each of them or None, and X of each product.

    ``sum_probes`` has beside an input that is U of an adapter the probe for its SᵀX, if there is one, else None;
    ``probes`` has one for S of each other product, else None, and so is X then.
    """
    jaxpr = program.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *inputs], strict=True))
    beside = dict(zip(jaxpr.invars, sum_probes, strict=True))
    probes = list(probes)
    Xs: list[Array | None] = []

    def values(variables):
        return [v.val if isinstance(v, Literal) else known[v] for v in variables]

    def sum_probes_of(variables):
        return [None if isinstance(v, Literal) else beside.get(v) for v in variables]

    for i, eqn in enumerate(jaxpr.eqns):
        part, arguments, sum_probes = program.found.get(i), values(eqn.invars), sum_probes_of(eqn.invars)
        if part is None:
            results = _as_it_is(jaxpr, eqn, arguments)
            if i in program.rearranging:
                for v, probe in zip(eqn.outvars, sum_probes, strict=False):
                    beside[v] = None if probe is None else rearranged(eqn, probe, arguments[1:])
        elif isinstance(part, Product):
            y, probe = plain_product(*arguments, **eqn.params), probes.pop(0)
            if probe is None:
                probe = sum_probes[2].mT if part.transposed else sum_probes[1]
                results = [with_probe_for_sum(y, arguments[0], probe, part.view, part.stack, probe.dtype)]
                Xs.append(None)
            else:
                results = [with_probe_for_S(y, probe)]
                Xs.append(arguments[0])
        else:
            count = len(part.products)
            replay = _REPLAY_RULES[eqn.primitive]
            results, sum_probes, inner_Xs = replay(eqn, part, arguments, sum_probes, probes[:count])
            probes, Xs = probes[count:], Xs + inner_Xs
            beside.update(zip(eqn.outvars, sum_probes, strict=True))
        known.update(zip(eqn.outvars, results, strict=True))
    return values(jaxpr.outvars), sum_probes_of(jaxpr.outvars), Xs


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


def _call(eqn, inner, arguments, sum_probes, probes):
    return replayed(inner.programs[0], arguments, sum_probes, probes)


def _checkpoint(eqn, inner, arguments, sum_probes, probes):
    @partial(jax.checkpoint, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    def again(arguments, sum_probes, probes):
        return replayed(inner.programs[0], arguments, sum_probes, probes)

    return again(arguments, sum_probes, probes)


def _loop(eqn, inner, arguments, sum_probes, probes):
    """A probe for S has a part for each round; one for SᵀX is sliced as U is, or the same for all rounds."""
    p = eqn.params
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]

    def body(carried, over):
        inputs, of_slices, probes = over
        beside = [*sum_probes[:first], *[None] * len(carried), *of_slices]
        results, _, Xs = replayed(inner.programs[0], [*arguments[:first], *carried, *inputs], beside, probes)
        return results[: p["num_carry"]], (results[p["num_carry"] :], Xs)

    options = {name: p[name] for name in ("length", "reverse", "unroll")}
    over = arguments[last:], sum_probes[last:], probes
    carried, (results, Xs) = jax.lax.scan(body, arguments[first:last], over, **options)
    results = [*carried, *results]
    return results, [None] * len(results), Xs


def _branches(eqn, inner, arguments, sum_probes, probes):
    """Branches have different products: each gives zeros for X of those of the others."""
    nothing = [
        None if probe is None else zeros_of_all_rounds(x, x.x) for x, probe in zip(inner.products, probes, strict=True)
    ]

    def branch(number):
        first = sum(len(program.products) for program in inner.programs[:number])
        last = first + len(inner.programs[number].products)

        def taken(arguments, sum_probes, probes):
            results, _, Xs = replayed(inner.programs[number], arguments, sum_probes, probes[first:last])
            return results, [*nothing[:first], *Xs, *nothing[last:]]

        return taken

    branches = list(map(branch, range(len(inner.programs))))
    results, Xs = jax.lax.switch(arguments[0], branches, arguments[1:], sum_probes[1:], probes)
    return results, [None] * len(results), Xs


_REPLAY_RULES = {
    primitives.jit_p: _call,
    primitives.remat_p: _checkpoint,
    primitives.scan_p: _loop,
    primitives.cond_p: _branches,
}

"""A program run so that S and X of its products can be had: each product gets a slot, which changes nothing.

The derivative with respect to a slot is S, or the sum SᵀX where that is smaller. X is a further result. Loops go over
the slots of their rounds, as they go over any other input.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun, primitives

from lorsum._arrays import computing_dtype
from lorsum.jax._plan import Product
from lorsum.jax._selection import selected
from lorsum.jax.products import plain_product

__all__ = ["dense", "dense_slot", "pair", "pair_slot", "run", "sum_dtype"]


def run(plan, inputs, stacks, slots, dense):
    """The results of a program, and X of each product.

    Parameters
    ----------
    plan : Plan
    inputs : list of array
        Of the program.
    stacks : list
        Beside an input that is U of a stack of adapters, a slot for SᵀX of all of them; else None.
    slots : list of array
        One for each product of the plan, None for those with adapters that were selected out of a stack.
    dense : collection of int
        Adapters of which the slots are for SᵀX.

    Returns
    -------
    results : list of array
    stacks : list
        Beside each result.
    Xs : list
        One for each product, None where the slot is for SᵀX.
    """
    known = dict(zip([*plan.jaxpr.constvars, *plan.jaxpr.invars], [*plan.consts, *inputs], strict=True))
    beside = dict(zip(plan.jaxpr.invars, stacks, strict=True))
    slots, Xs = list(slots), []

    def values(variables):
        return [v.val if isinstance(v, Literal) else known[v] for v in variables]

    def stacks_of(variables):
        return [None if isinstance(v, Literal) else beside.get(v) for v in variables]

    for number, eqn in enumerate(plan.jaxpr.eqns):
        step, arguments, given = plan.steps.get(number), values(eqn.invars), stacks_of(eqn.invars)
        if step is None:
            results = _as_it_is(plan.jaxpr, eqn, arguments)
            if number in plan.moves and given[0] is not None:
                beside[eqn.outvars[0]] = selected(eqn, given[0], arguments[1:])
        elif isinstance(step, Product):
            results, slot = [plain_product(*arguments, **eqn.params)], slots.pop(0)
            if step.selected:
                slot = given[2].mT if step.transposed else given[1]
            results, X = _beside_slot(step, results[0], arguments[0], slot, step.adapter in dense)
            Xs.append(X)
        else:
            count = len(step.products)
            results, moved, inner_Xs = _RUN[eqn.primitive](eqn, step, arguments, given, slots[:count], dense)
            slots, Xs = slots[count:], Xs + inner_Xs
            beside.update(zip(eqn.outvars, moved, strict=True))
        known.update(zip(eqn.outvars, results, strict=True))
    return values(plan.jaxpr.outvars), stacks_of(plan.jaxpr.outvars), Xs


def _as_it_is(program, eqn, arguments):
    """An equation without products, as a program by itself."""
    inputs = {v: x for v, x in zip(eqn.invars, arguments, strict=True) if not isinstance(v, Literal)}
    alone = program.replace(
        constvars=[],
        invars=list(inputs),
        outvars=eqn.outvars,
        eqns=[eqn],
        effects=eqn.effects,
        debug_info=program.debug_info.with_unknown_names(),
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*inputs.values())


def _beside_slot(product, y, x, slot, dense):
    if not dense:
        return [_for_S(y, slot)], x
    return [_for_sum(y, x, slot, product.view, product.stack)], None


@jax.custom_vjp
def _for_S(y, slot):
    """The identity on y; the derivative with respect to the slot is that with respect to y."""
    return y


_for_S.defvjp(lambda y, slot: (y, None), lambda _, S: (S, S))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _for_sum(y, x, slot, view, stack):
    """The identity on y; the derivative with respect to the slot is SᵀX."""
    return y


def _summed(view, stack, x, S):
    total = view.dense
    for _ in range(stack):
        total = jax.vmap(total)
    return S, None, total(_in_single(S), _in_single(x))


_for_sum.defvjp(lambda y, x, slot, view, stack: (y, x), _summed)


def _in_single(a):
    return a.astype(computing_dtype(jnp, a.dtype))


def _inline(eqn, step, arguments, stacks, slots, dense):
    return run(step.plans[0], arguments, stacks, slots, dense)


def _checkpointed(eqn, step, arguments, stacks, slots, dense):
    @partial(jax.checkpoint, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    def again(arguments, stacks, slots):
        return run(step.plans[0], arguments, stacks, slots, dense)

    return again(arguments, stacks, slots)


def _looped(eqn, step, arguments, stacks, slots, dense):
    (plan,), p = step.plans, eqn.params
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
    of_rounds = [x.adapter not in dense or (step.loop_around(x).stacked and not x.selected) for x in plan.products]
    shared = [slot for slot, each in zip(slots, of_rounds, strict=True) if not each]

    def body(carried, over):
        own, mine = iter(over[1]), iter(shared)
        in_order = [next(own if each else mine) for each in of_rounds]
        beside = [*stacks[:first], *[None] * len(carried), *over[2]]
        results, _, Xs = run(plan, [*arguments[:first], *carried, *over[0]], beside, in_order, dense)
        return results[: p["num_carry"]], (results[p["num_carry"] :], Xs)

    over = arguments[last:], [slot for slot, each in zip(slots, of_rounds, strict=True) if each], stacks[last:]
    options = {name: p[name] for name in ("length", "reverse", "unroll")}
    carried, (results, Xs) = jax.lax.scan(body, arguments[first:last], over, **options)
    results = [*carried, *results]
    return results, [None] * len(results), Xs


def _branched(eqn, step, arguments, stacks, slots, dense):
    """Branches have different products: each gives zeros for those of the others."""
    nothing = [None if x.adapter in dense else _zeros_of_all_rounds(x, x.x) for x in step.products]

    def branch(number):
        first = sum(len(plan.products) for plan in step.plans[:number])
        last = first + len(step.plans[number].products)

        def taken(arguments, stacks, slots):
            results, _, Xs = run(step.plans[number], arguments, stacks, slots[first:last], dense)
            return results, [*nothing[:first], *Xs, *nothing[last:]]

        return taken

    branches = list(map(branch, range(len(step.plans))))
    results, Xs = jax.lax.switch(arguments[0], branches, arguments[1:], stacks[1:], slots)
    return results, [None] * len(results), Xs


_RUN = {
    primitives.jit_p: _inline,
    primitives.remat_p: _checkpointed,
    primitives.scan_p: _looped,
    primitives.cond_p: _branched,
}


def _zeros_of_all_rounds(product, of_one):
    return jnp.zeros((*(loop.length for loop in product.loops), *of_one.shape), of_one.dtype)


def pair_slot(product):
    """A slot for S of all rounds."""
    return _zeros_of_all_rounds(product, product.y)


def dense_slot(product, m, n):
    """A slot for SᵀX, summed over all rounds; m × n is the size of the adapter."""
    stack = [loop.length for loop in product.loops if loop.stacked]
    size = (n, m) if product.transposed else (m, n)
    return jnp.zeros((*stack, *product.y.shape[: product.stack], *size), sum_dtype(product))


def sum_dtype(product):
    """What SᵀX is summed up in."""
    return computing_dtype(jnp, jnp.result_type(product.x.dtype, product.y.dtype))


def dense(product, G):
    """SᵀX in the order of the adapters' stack, that of a product with Wᵀ transposed."""
    (G,) = _in_place(product, G)
    return G.mT if product.transposed else G


def pair(product, S, X):
    """S and X of all rounds as matrices of N rows, of one adapter or of a stack of them."""
    depth, stack = len(product.loops), product.stack
    outer = [i for i, loop in enumerate(product.loops) if loop.stacked]
    inner = [i for i, loop in enumerate(product.loops) if not loop.stacked]
    order = [*outer, *range(depth, depth + stack), *inner]
    S, X = (jnp.moveaxis(a, order, range(len(order))) for a in (S, X))
    S, X = _in_place(product, *product.view.pair(S, X, len(outer) + stack))
    return (X, S) if product.transposed else (S, X)


def _in_place(product, *arrays):
    """Arrays of a stack with its dimensions in the adapters' own order."""
    order = product.order
    if order == tuple(sorted(order)):
        return arrays
    return tuple(jnp.moveaxis(a, range(len(order)), order) for a in arrays)

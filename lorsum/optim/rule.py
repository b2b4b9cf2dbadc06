"""What an update rule is, and what it says about itself to those who hand it gradients."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args, runtime_checkable

from lorsum.lowrank import LowRank
from lorsum.typing import RNG, Scalar

Schedule: TypeAlias = Callable[[Any], Scalar]
"""A function of the step, counted from 0."""

What: TypeAlias = Literal["matrix", "rows", "products", "factors"]
_WHAT = get_args(What)


class State(Protocol):
    """What a rule remembers of a parameter: a named tuple of ``count``, arrays, LowRanks, None and tuples."""

    @property
    def count(self) -> Any:
        """Steps done, from 0."""


class Reads(NamedTuple):
    """What of a gradient G a step reads.

    Attributes
    ----------
    what : {"matrix", "rows", "products", "factors"}
        ``"matrix"``: G, in whatever form it comes, such as a dense sum. ``"rows"``: all rows of S and X in G = Sᵀ X,
        which it gets as a ``LowRank(Sᵀ, Xᵀ)``. ``"products"``: G V and Gᵀ U with thin matrices V and U, so that G may
        be an operator. ``"factors"``: of these products the two with W's own factors.
    columns : int
        Of "products": how many columns all those V have in one step, and all those U, at most.
    """

    what: What = "matrix"
    columns: int = 0


@runtime_checkable
class Rule(Protocol):
    """An update rule: what PyTorch's optimizers and JAX's transformations ask of one.

    There is nothing to inherit from: any class with ``init`` and ``step`` is a rule. One for PyTorch is a dataclass
    with a field ``lr``, since parameter groups hold a rule's options by name. A rule may also say:

    ``reads(rank) -> Reads``
        What a step reads of the gradient of an adapter of this rank: see :class:`Reads`. Who says nothing gets all of
        G. Processes then send each other what is read, and no more.
    ``entrywise = True``
        It acts on each number of a dense parameter by itself, so that it may train what lies outside the adapters, many
        small parameters as one vector.
    ``trains_complex = False``
        It takes no complex parameter.
    """

    def init(self, W: Any, *, rng: RNG = 0) -> Any:
        """The state of a parameter before its first step: see :class:`State`."""

    def step(self, W: Any, G: Any, state: Any) -> tuple[Any, Any]:
        """``(W, state)`` after a step along G, the gradient with respect to the matrix W; nothing in place."""


def require_state(state: Any) -> None:
    """An error unless the state of a rule is what :class:`State` says."""
    if "count" not in getattr(state, "_fields", ()):
        raise TypeError(
            f"the state of the rule is a {type(state).__name__}; a named tuple is needed, with the steps as `count`."
        )


def require_adapter_of_that_form(rule: Any, new: Any, W: LowRank) -> None:
    """An error unless what a step has made of an adapter is one of the same shape and rank."""
    if not isinstance(new, LowRank) or new.U.shape != W.U.shape or new.V.shape != W.V.shape:
        kind = repr(new) if isinstance(new, LowRank) else f"a {type(new).__name__}"
        raise TypeError(f"`step` of {type(rule).__name__} makes {kind} of {W!r}; shape and rank have to stay.")


def reads(rule: Any, rank: int) -> Reads:
    """What of the gradient of an adapter of this rank a rule reads: all of it, where the rule says nothing.

    Raises
    ------
    TypeError, ValueError
        If what the rule says is no :class:`Reads`, or names nothing that there is to read.

    Examples
    --------
    >>> from lorsum import optim
    >>> reads(optim.OPLoRA(lr=0.1, momentum=0.9, iters=2), rank=4)
    Reads(what='products', columns=16)
    >>> reads(optim.ScaledOPLoRA(lr=0.1, scale=optim.KFAC()), rank=4).what
    'rows'
    """
    if not hasattr(rule, "reads"):
        return Reads()
    said = rule.reads(rank)
    if not isinstance(said, Reads):
        kind = type(said).__name__
        raise TypeError(f"`reads` of {type(rule).__name__} gives a {kind}; a lorsum.optim.Reads is needed.")
    if said.what not in _WHAT:
        choices = ", ".join(map(repr, _WHAT))
        raise ValueError(f"`reads` of {type(rule).__name__} gives {said.what!r}; it must be one of {choices}.")
    return said

"""Which way a problem is computed, what that costs, and why: decided once, before anything is computed."""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from lorsum._arrays import library_of
from lorsum._display import html_table, text_table
from lorsum._numba import TERMS, may_compile
from lorsum._operators import is_operator
from lorsum.alternating.problem import Problem, all_terms, checked
from lorsum.lowrank import LowRank
from lorsum.typing import Matrix

Way: TypeAlias = Literal["direct", "Gram coefficients", "QR coefficients"]
Backend: TypeAlias = Literal["numba", "array API"]

_COLUMNS = ("way", "multiplications")


def plan(target: Matrix, **options: Any) -> "Plan":
    """Which way :func:`lorsum.lorsum` would compute, and what it would cost; nothing is computed.

    Parameters
    ----------
    target : LowRankSum or LowRank
        The matrix, as for ``lorsum``.
    **options
        The options of ``lorsum``.

    Examples
    --------
    >>> import numpy as np
    >>> W, G = LowRank(np.ones((900, 4)), np.ones((700, 4))), LowRank(np.ones((900, 9)), np.ones((700, 9)))
    >>> plan(W - 0.1 * G).way
    'direct'
    >>> plan(W - 0.1 * G, iters=50)
    Gram coefficients in Numba kernels: it costs least
                  way  multiplications
    Gram coefficients       1.5967e+06
               direct       2.4320e+07
    """
    unknown = options.keys() - set(Problem._fields)
    if unknown:
        raise TypeError(f"plan() got an unexpected keyword argument '{min(unknown)}'")
    return planned(checked(Problem(target, **options)))


class Plan(NamedTuple):
    """How :func:`lorsum.lorsum` computes: :func:`lorsum.plan` gives it, and it can be printed.

    Attributes
    ----------
    way : {"direct", "Gram coefficients", "QR coefficients"}
        Products with all factors at each half-step; or these coefficients once, and an iteration on small matrices.
    backend : {"numba", "array API"}
        Numba kernels, for NumPy arrays; or the operations of the array library.
    why : str
        What decided.
    method : str
        The ``method`` that was asked for.
    size : Size
        What the cost depends on.

    Notes
    -----
    For m × n matrices, a sum of stacked rank R, its approximation of rank r, and K iterations, multiplications are
    counted at equal speed, as measured:

    - direct: K (m + n) (4Rr + 6r²), and 4Kmnr for a dense term;
    - Gram coefficients, in the kernels: (m + n) (0.9R² + 40R + 2Rr) + 100R² + 10K R²r, where a dense term counts as
      min(m, n) columns; fitted to times from R = 32 to 288 and m + n = 204 to 15,104;
    - QR coefficients, in array code: 6 (m + n) R² + 2R³ + 2 (m + n) Rr + K (8R²r + 12Rr²), a QR counted half as many
      again, since it runs slower. They need R < min(m, n).

    ``method="auto"`` takes what costs least. Whether columns are dependent is not known beforehand: the kernels give up
    where they are, and where Gram matrices would lose more than two digits, and the :meth:`fallback` takes over.
    """

    way: Way
    backend: Backend
    why: str
    method: str
    size: "Size"

    @property
    def cost(self) -> dict[Way, float]:
        """Multiplications for each matrix of a batch, by the way that is taken and by the others that are open."""
        ways = dict.fromkeys((self.way, "direct", self.size.coefficients(self.backend)))
        return {way: self.size.cost(way) for way in ways if way is not None}

    def fallback(self) -> "Plan":
        """What takes over where the kernels give up."""
        if self.way == "Gram coefficients" and self.method == "auto":
            return self._replace(way="direct", why="Gram matrices lose digits")
        return self.in_array_code("the kernels gave up")

    def in_array_code(self, why: str) -> "Plan":
        """The plan for the same problem without kernels."""
        return _made(self.method, "array API", self.size, why)

    def __repr__(self) -> str:
        return f"{self._title()}\n{text_table(_COLUMNS, self._rows())}"

    def _repr_html_(self) -> str:
        return html_table(self._title(), _COLUMNS, self._rows())

    def _title(self) -> str:
        return f"{self.way} in {'Numba kernels' if self.backend == 'numba' else 'array code'}: {self.why}"

    def _rows(self) -> list[tuple[Way, float]]:
        return list(self.cost.items())


class Size(NamedTuple):
    """What the cost of a problem depends on, or of several with terms in common; the formulas are :class:`Plan`'s."""

    m: int
    n: int
    R: int  # columns of all low-rank terms, side by side
    ranks: tuple[int, ...]  # that are iterated at
    iters: int
    terms: int  # all of them
    dense: int  # those that are not of low rank

    def coefficients(self, backend: Backend) -> Way | None:
        """The kind of coefficients that a backend may take, if any."""
        if backend == "numba":
            return "Gram coefficients" if len(self.ranks) == 1 or self.terms <= TERMS else None
        return "QR coefficients" if self.dense == 0 and min(self.m, self.n) > self.R else None

    def cost(self, way: Way) -> float:
        """Multiplications for each matrix of a batch."""
        m, n, R, ranks, K, _, dense = self
        r = sum(ranks)
        if way == "direct":
            squares = r * r if len(ranks) == 1 else sum([rank * rank for rank in ranks])
            return K * ((m + n) * (4 * R * r + 6 * squares) + dense * 4 * m * n * r)
        if way == "QR coefficients":
            return 6 * (m + n) * R**2 + 2 * R**3 + 2 * (m + n) * R * r + K * (8 * R**2 * r + 12 * R * r**2)
        R += dense * min(m, n)
        return (m + n) * (0.9 * R * R + 40 * R + 2 * R * r) + 100 * R * R + 10 * K * R * R * r


def planned(*problems: Problem) -> Plan:
    """The plan for a problem, or for several together, whose terms are then read once.

    It depends on the options, and on shapes and dtypes, but on no number in the arrays.
    """
    asked, terms = problems[0], all_terms(problems)
    R = dense = 0
    for A in terms:
        if type(A) is LowRank:
            R += A.U.shape[-1]
        else:
            dense += 1
    count = len(terms)
    if asked.oversample:  # the start is then a matrix of its own
        is_term = asked.init is asked.target.terms[0]
        R, count = R + asked.oversample + is_term * asked.init.rank, count + is_term
    m, n = asked.init.U.shape[-2], asked.init.V.shape[-2]
    ranks = tuple([problem.init.rank + problem.oversample for problem in problems])
    size = Size(m, n, R, ranks, asked.iters, count, dense)
    obstacle = _obstacle(problems, terms, size)
    if obstacle is None:
        return _made(asked.method, "numba", size)
    return _made(asked.method, "array API", size, obstacle)


def _made(method: str, backend: Backend, size: Size, why: str | None = None) -> Plan:
    """The plan for a backend, and what decided for the backend or, where nothing stood against kernels, the way."""
    if method == "direct":
        return Plan("direct", backend, why or "`method` is 'direct'", method, size)
    if method == "coefficients":
        asked: Way = "Gram coefficients" if backend == "numba" else "QR coefficients"
        return Plan(asked, backend, why or "`method` is 'coefficients'", method, size)
    way = size.coefficients(backend)
    if way is None or size.cost(way) >= size.cost("direct"):
        way = "direct"
    return Plan(way, backend, why or "it costs least", method, size)


def _obstacle(problems: tuple[Problem, ...], terms: Any, size: Size) -> str | None:
    """Why the kernels are not for these problems, or None."""
    asked = problems[0]
    if asked.solver != "auto":
        return f"`solver` is {asked.solver!r}"
    if asked.accelerate or asked.simultaneous:
        return f"`accelerate` is {asked.accelerate!r}" if asked.accelerate else "`simultaneous` is True"
    if asked.callback is not None:
        return "`callback` sees each iterate"
    if asked.iters == 0:
        return "`iters` is 0"
    for A in terms:
        array = A.U if type(A) is LowRank else A
        if type(array) is not np.ndarray:
            return "a term is an operator" if is_operator(array) else f"arrays are of {library_of(array)}"
        if array.dtype.kind != "f":
            return "numbers are complex"
    if size.dense > 1:
        return "two terms are dense"
    for problem in problems:
        if type(problem.reg) is not float:
            return "`reg` is traced"
        for c in problem.target.coefficients:
            if type(c) is not float and not isinstance(c, (int, float)):
                return "a coefficient is complex, or traced"
    if len(problems) > 1 and not _may_share(problems, terms, size):
        return "the problems have too little in common"
    if 0 in asked.init.U.shape[:-2]:
        return "the batch is empty"
    return None if may_compile() else "Numba is told not to compile"


def _may_share(problems: tuple[Problem, ...], terms: Any, size: Size) -> bool:
    """True for several problems that the kernels take as they are."""
    return (
        all([problem.metric is None and problem.oversample == 0 for problem in problems])
        and len({(problem.iters, problem.first, problem.method) for problem in problems}) == 1
        and size.terms - size.dense <= TERMS
        and {A.dtype for A in terms} in ({np.dtype(np.float32)}, {np.dtype(np.float64)})
    )

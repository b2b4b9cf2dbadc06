"""Which way a problem is computed, what that costs, and why: decided once, before anything is computed."""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from lorsum._arrays import library_of
from lorsum._display import html_table, text_table
from lorsum._numba import TERMS, may_compile
from lorsum._operators import is_operator
from lorsum.alternating.problem import Problem, as_problem
from lorsum.lowrank import LowRank

__all__ = ["Plan", "Size", "plan", "planned"]

Way: TypeAlias = Literal["direct", "Gram coefficients", "QR coefficients"]
Backend: TypeAlias = Literal["numba", "array API"]


def plan(target: Any, **options: Any) -> "Plan":
    """Which way :func:`lorsum.lorsum` would compute, and what it would cost; nothing is computed.

    Parameters
    ----------
    target : LowRankSum or LowRank
        The matrix, as for ``lorsum``.
    **options
        The options of ``lorsum``.

    Returns
    -------
    Plan

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
    return planned(as_problem(target, **options))


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
        """Multiplications for each matrix of a batch, by each way that is open."""
        return self.size.cost(self.backend)

    def fallback(self) -> "Plan":
        """What takes over where the kernels give up."""
        if self.way == "Gram coefficients" and self.method == "auto":
            return self._replace(way="direct", why="Gram matrices lose digits")
        return self.in_array_code("the kernels gave up")

    def in_array_code(self, why: str) -> "Plan":
        """The plan for the same problem without kernels."""
        return _made(self.method, "array API", self.size, why)

    def __repr__(self) -> str:
        return f"{self._title()}\n{text_table(self._columns, self._rows())}"

    def _repr_html_(self) -> str:
        return html_table(self._title(), self._columns, self._rows())

    _columns = ("way", "multiplications")

    def _title(self) -> str:
        return f"{self.way} in {'Numba kernels' if self.backend == 'numba' else 'array code'}: {self.why}"

    def _rows(self) -> list[tuple[Way, float]]:
        return sorted(self.cost.items(), key=lambda item: item[0] != self.way)  # its own first


class Size(NamedTuple):
    """What the cost of a problem depends on, or of several with terms in common."""

    m: int
    n: int
    R: int  # columns of all low-rank terms, side by side
    ranks: tuple[int, ...]  # that are iterated at
    iters: int
    terms: int  # all of them
    dense: int  # those that are not of low rank

    def cost(self, backend: Backend) -> dict[Way, float]:
        """Multiplications by each way that is open."""
        if backend == "numba":
            together = len(self.ranks) > 1 and self.terms > TERMS
            return {"direct": self.direct} if together else {"direct": self.direct, "Gram coefficients": self.by_gram}
        small = self.dense == 0 and min(self.m, self.n) > self.R
        return {"direct": self.direct, "QR coefficients": self.by_qr} if small else {"direct": self.direct}

    @property
    def direct(self) -> float:
        """Multiplications by all factors; for the formulas see the notes of :class:`Plan`."""
        m, n, R, K = self.m, self.n, self.R, self.iters
        return sum([K * (m + n) * (4 * R * r + 6 * r**2) + self.dense * 4 * K * m * n * r for r in self.ranks])

    @property
    def by_gram(self) -> float:
        """Multiplications by way of the Gram matrices."""
        m, n, K, r = self.m, self.n, self.iters, sum(self.ranks)
        R = self.R + self.dense * min(m, n)
        return (m + n) * (0.9 * R**2 + 40 * R + 2 * R * r) + 100 * R**2 + 10 * K * R**2 * r

    @property
    def by_qr(self) -> float:
        """Multiplications by way of QR decompositions."""
        m, n, R, K, r = self.m, self.n, self.R, self.iters, sum(self.ranks)
        return 6 * (m + n) * R**2 + 2 * R**3 + 2 * (m + n) * R * r + K * (8 * R**2 * r + 12 * R * r**2)


def planned(*problems: Problem) -> Plan:
    """The plan for a problem, or for several together, whose terms are then read once.

    It depends on the options, and on shapes and dtypes, but on no number in the arrays.
    """
    terms = {id(A): A for problem in problems for A in (problem.init, *problem.target.terms)}.values()
    ranks = [A.U.shape[-1] for A in terms if type(A) is LowRank]
    m, n = problems[0].init.shape[-2:]
    wanted = tuple([problem.init.rank + problem.oversample for problem in problems])
    size = Size(m, n, sum(ranks), wanted, problems[0].iters, len(terms), len(terms) - len(ranks))
    obstacle = _obstacle(problems, terms, size)
    if obstacle is None:
        return _made(problems[0].method, "numba", size)
    return _made(problems[0].method, "array API", size, obstacle)


def _made(method: str, backend: Backend, size: Size, why: str | None = None) -> Plan:
    """The plan for a backend; what decided for the backend comes before what decided for the way."""
    if method == "direct":
        return Plan("direct", backend, why or "`method` is 'direct'", method, size)
    if method == "coefficients":
        coefficients: Way = "Gram coefficients" if backend == "numba" else "QR coefficients"
        return Plan(coefficients, backend, why or "`method` is 'coefficients'", method, size)
    cost = size.cost(backend)
    return Plan(min(cost, key=cost.__getitem__), backend, why or "it costs least", method, size)


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
        if is_operator(array):
            return "a term is an operator"
        if type(array) is not np.ndarray:
            return f"arrays are of {library_of(array)}"
        if array.dtype.kind != "f":
            return "numbers are complex"
    if size.dense > 1:
        return "two terms are dense"
    for problem in problems:
        if type(problem.reg) is not float:
            return "`reg` is traced"
        for c in problem.target.coefficients:
            if not isinstance(c, (int, float)):
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

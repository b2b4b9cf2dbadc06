"""LoRSum in array code, also where the kernels would take the problem."""

from lorsum.alternating import solution
from lorsum.alternating.plan import planned
from lorsum.alternating.problem import Problem, checked

__all__ = ["in_array_code"]


def in_array_code(target, **options):
    """What ``lorsum`` gives without kernels."""
    problem = checked(Problem(target, **options))
    return solution(problem, planned(problem).in_array_code("a test asks for it"))

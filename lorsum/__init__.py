"""Sums of low-rank matrices, and their best low-rank approximation without forming them.

>>> import lorsum as ls
>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> W = ls.LowRank(rng.normal(size=(60, 4)), rng.normal(size=(40, 4)))  # the matrix U @ V.T, never formed
>>> G = ls.LowRank(rng.normal(size=(60, 9)), rng.normal(size=(40, 9)))
>>> target = W - 0.01 * G
>>> X = ls.lorsum(target, iters=2)
>>> ls.gap(X, target).excess < 1e-4  # how far from the truncated SVD
True

:mod:`lorsum.torch` has optimizers for PyTorch, :mod:`lorsum.jax` transformations for Optax; neither is imported here.
"""

from lorsum import datasets, nn, optim, theory
from lorsum.alternating import Iterate, lorsum
from lorsum.alternating.plan import Plan, plan
from lorsum.alternating.until import Certified, lorsum_until
from lorsum.diagnostics import Gap, History, gap, principal_angles
from lorsum.incremental import IncrementalSVD
from lorsum.lowrank import LowRank, LowRankSum
from lorsum.metrics import Damped, Diagonal
from lorsum.svd import TruncatedSVD, truncated_svd

__version__ = "0.1.0"  # the one place: pyproject.toml reads it, CITATION.cff is tested against it

__all__ = [
    # matrices that are never formed
    "LowRank",
    "LowRankSum",
    # their best approximation: by alternating updates, to a tolerance, by an SVD, by an SVD that follows its matrix
    "lorsum",
    "lorsum_until",
    "truncated_svd",
    "IncrementalSVD",
    # which way `lorsum` would take, and what that costs
    "plan",
    "Plan",
    # what these take and give
    "Damped",
    "Diagonal",
    "Iterate",
    "Certified",
    "TruncatedSVD",
    # how far from the best
    "gap",
    "Gap",
    "History",
    "principal_angles",
    # rates and bounds; update rules for LoRA; an MLP and data to try them on
    "theory",
    "optim",
    "nn",
    "datasets",
]

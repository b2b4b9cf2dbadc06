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

__version__ = "0.1.0"

__all__ = [
    "Certified",
    "Damped",
    "Diagonal",
    "Gap",
    "History",
    "IncrementalSVD",
    "Iterate",
    "LowRank",
    "LowRankSum",
    "Plan",
    "TruncatedSVD",
    "datasets",
    "gap",
    "lorsum",
    "lorsum_until",
    "nn",
    "optim",
    "plan",
    "principal_angles",
    "theory",
    "truncated_svd",
]

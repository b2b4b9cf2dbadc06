# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first tour of `lorsum`
#
# A LoRA adapter is a matrix of low rank, $W = UV^\top$. A training step wants to move it to $W - \eta G$, whose rank
# is higher, so something must round the sum back to rank $r$. The best rounding is the truncated SVD. `lorsum` asks
# how close a few alternating least-squares updates come to it, without ever forming a matrix of full size, and
# measures the answer exactly. This tour meets the objects `LowRank`, `LowRankSum`, `History`, the functions `lorsum`,
# `truncated_svd`, `gap` and, at the end, an update rule. It takes ten minutes.

# %%
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("lorsum") is None:  # started in notebooks/, and not installed: it is one folder up
    sys.path.insert(0, str(Path.cwd().parent))

import matplotlib.pyplot as plt
import numpy as np

import lorsum as ls
from lorsum import optim

plt.rcParams.update({"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## Low-rank matrices and their sums
#
# `LowRank(U, V)` is the matrix `U @ V.T`. Take an adapter of rank 8 for a layer with 200 inputs and 600 outputs, and
# the gradient of a batch of 64 samples, $G = S^\top X$: one column of each factor for each sample.

# %%
rng = np.random.default_rng(0)
W = ls.LowRank(rng.normal(size=(600, 8)), rng.normal(size=(200, 8)))
G = ls.LowRank(rng.normal(size=(600, 64)), rng.normal(size=(200, 64)))
W

# %% [markdown]
# Arithmetic computes nothing. It writes down a `LowRankSum`, in which the first term is the one that is being updated:

# %%
eta = 0.05
target = W - eta * G
target

# %% [markdown]
# What one usually asks of a matrix works on the factors: products with arrays, the transpose, the norm. `to_dense()`
# is there for checks.

# %%
x = rng.normal(size=200)
print(np.allclose(target @ x, target.to_dense() @ x), np.isclose(target.norm(), np.linalg.norm(target.to_dense())))

# %% [markdown]
# ## Rounding to rank 8
#
# `truncated_svd` gives the optimum. For a sum of low-rank terms it takes a QR decomposition of the stacked factors and
# the SVD of a small core, here 72 × 72.

# %%
best = ls.truncated_svd(target, 8)
best.s

# %% [markdown]
# `lorsum` starts from the first term, $W$, and alternates: the best $U$ for this $V$, then the best $V$ for that $U$;
# `iters` is the number $K$ of such pairs. `gap` says how far the result is from the optimum: `excess` is $\|X - T\| /
# \|T_r - T\| - 1$ for the target $T$ and its truncated SVD $T_r$, and `distance` is $\|X - T_r\| / \|T_r\|$.

# %%
print(f"{'K':>2}  {'error':>9}  {'optimal':>9}  {'excess':>8}  {'distance':>8}")
for K in (0, 1, 2, 4):
    measured = ls.gap(ls.lorsum(target, iters=K), target)
    print(f"{K:2}  {measured.error:9.4f}  {measured.optimal:9.4f}  {measured.excess:8.1e}  {measured.distance:8.1e}")

# %% [markdown]
# Not to move at all ($K = 0$) is 2.5 % worse than the optimum, one pair of updates is 0.002 % worse, and after the
# second one nothing is left that would matter in training.
#
# ## Following the iteration
#
# A callback sees every iterate, and `History` is one that keeps what a convergence plot needs. `angle` is the largest
# principal angle to the optimal subspaces, in radians.

# %%
history = ls.History()
ls.lorsum(target, iters=8, callback=history)
history

# %%
history.plot()
plt.show()

# %% [markdown]
# Angle and excess fall on straight lines, the excess twice as steep. This is subspace iteration, and theory says how
# steep: an iteration shrinks the tangent of the angle by $\rho = (\sigma_{r+1}/\sigma_r)^2$ and, in the end, the
# excess by $\rho^2$. The error itself goes flat at the optimum, which says nothing about convergence: hence the
# excess. Below $10^{-15}$ there is only rounding.

# %%
s = ls.truncated_svd(target, 9).s
print(f"predicted {ls.theory.contraction_rate(s, 8):.4f}, measured {history.angle[5] / history.angle[4]:.4f}")

# %% [markdown]
# ## When one or two iterations are enough
#
# In training the target is $W - \eta G$ with a $W$ of rank $r$: $\sigma_{r+1}$ comes from the step alone. What counts
# is the step against the gap that it has to cross, $\eta\|G\|_2 / \sigma_r(W)$.

# %%
ratios = np.geomspace(1e-3, 3, 25)
unit = W.singular_values()[-1] / G.singular_values()[0]
figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
for K, colour in zip((0, 1, 2, 4), ("0.6", "#0072b2", "#009e73", "#d55e00"), strict=True):
    targets = [W - ratio * unit * G for ratio in ratios]
    excess = [ls.gap(ls.lorsum(T, iters=K), T).excess for T in targets]
    resolved = np.array(excess) > 1e-13  # the rest is rounding
    axes.loglog(ratios[resolved], np.array(excess)[resolved], ".-", color=colour, label=f"K = {K}")
axes.axvline(1, color="0.8", zorder=0)
axes.annotate("no gap\nis left", (1.1, 1e-12), color="0.5")
axes.set(xlabel=r"step against gap, $\eta\,\|G\|_2\ /\ \sigma_r(W)$", ylabel="excess over the truncated SVD")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# To the left of 1 every iteration is worth orders of magnitude, the more the smaller the step: that is why OPLoRA gets
# away with $K = 1$ or $2$. To the right of it the gradient's own singular values are as large as those of $W$, no gap
# is left, and $K = 4$ gains a factor of ten where it gained ten orders of magnitude.
#
# A matrix without a gap shows the same without any training. The singular values of a random $G$ fall slowly, and
# `lorsum` starts here from a random matrix:

# %%
start = ls.LowRank(rng.normal(size=(600, 8)), rng.normal(size=(200, 8)))
s = G.singular_values()
print(f"σ₈ = {s[7]:.0f}, σ₉ = {s[8]:.0f}, predicted rate {ls.theory.contraction_rate(s, 8):.3f}")
history = ls.History()
ls.lorsum(G, init=start, iters=32, callback=history)
for K in (1, 2, 8, 32):
    print(f"K = {K:2}: excess {history.excess[K]:.1e}, largest angle {np.degrees(history.angle[K]):.0f}°")

# %% [markdown]
# After eight iterations the subspace is still 74° away from the right one, and yet the error is within half a percent
# of the optimum: where singular values are close, it hardly matters which of them one keeps. The angle is the harder
# measure, and not always the one that counts.
#
# ## What λ does
#
# The paper adds a proximal term $\lambda\|U - U_0\|^2$, `reg`, to each least-squares problem. It keeps the solves
# regular, and it leaves a bias that no number of iterations removes:

# %%
figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
for reg, colour in zip((0, 0.1, 1, 10), ("0.6", "#0072b2", "#009e73", "#d55e00"), strict=True):
    history = ls.History()
    ls.lorsum(target, iters=8, reg=reg, callback=history)
    axes.semilogy(history.iteration, np.maximum(history.excess, 1e-16), "o-", color=colour, label=f"λ = {reg}")
axes.set(xlabel="iteration K", ylabel="excess over the truncated SVD")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Ten times the λ costs a hundred times the excess. And a matrix has many factorisations, which λ tells apart: below,
# the same $W$ with its factors scaled by 30 and 1/30.

# %%
same = ls.LowRank(30 * W.U, W.V / 30)
for name, A in {"W": W, "scaled": same, "balanced": same.balanced()}.items():
    excess = [ls.gap(ls.lorsum(A - eta * G, iters=8, reg=reg), target).excess for reg in (0, 10)]
    print(f"{name:8}  λ = 0: {excess[0]:.0e}, λ = 10: {excess[1]:.1e}")

# %% [markdown]
# `balanced()` picks the factorisation $U\sqrt{s}$, $V\sqrt{s}$ of the SVD, so that λ weighs both sides alike.
#
# ## A fresh LoRA adapter
#
# LoRA starts with one zero factor, so that $W = 0$. The order that begins with the other one cannot move in its first
# half-step, and solving with the Gram matrix, as the paper's listing does, fails there. By default `lorsum` takes λ =
# 0 as the limit λ → 0, and neither order is a special case:

# %%
fresh = ls.LowRank(np.zeros((600, 8)), rng.normal(size=(200, 8)))
T = fresh - eta * G
for first in ("U", "V"):
    excess = [ls.gap(ls.lorsum(T, iters=K, first=first), T).excess for K in (0, 1, 2)]
    print(f"first={first!r}: excess {excess[0]:.3f} → {excess[1]:.3f} → {excess[2]:.3f}")
try:
    ls.lorsum(T, first="V", solver="gram")
except np.linalg.LinAlgError as error:
    print(f"solver='gram': {error}")

# %% [markdown]
# (Convergence is slow because this target is $-\eta G$ alone: no $W$ stands out of it yet.) Two zero factors have no
# direction to start from and stay zero for ever, which is why a momentum buffer begins with one random factor.
#
# ## A rule, and a problem to train on
#
# `lorsum.optim` makes update rules of this: `rule.init(W)` gives a state, `rule.step(W, G, state)` the next `W` and
# state, where `G` is the gradient with respect to the matrix, not to its factors. As an example, an adapter of rank 4
# is trained towards a matrix with the leading singular values 10, 3, 1 and 0.3. SGD and AdamW, which train the
# factors, have the best of the learning rates 1, 0.5, 0.2, 0.1, 0.05, …; the rules that step in the matrix go half the
# way to it.

# %%
m, n, r = 60, 40, 4
P, Q = (np.linalg.qr(rng.normal(size=(d, r)))[0] for d in (m, n))
A = P * [10, 3, 1, 0.3] @ Q.T + 0.003 * rng.normal(size=(m, n))
best = np.sum(np.linalg.svd(A, compute_uv=False)[r:] ** 2) / 2


def losses(rule, steps=40):
    W = ls.LowRank(np.zeros((m, r)), np.random.default_rng(1).normal(size=(n, r)) / n**0.5)
    state, losses = rule.init(W), []
    for _ in range(steps):
        G = W.to_dense() - A
        losses.append(np.sum(G**2) / 2 - best)
        W, state = rule.step(W, G, state)
    return losses


rules = {
    "LoRA, SGD": (optim.SGD(lr=0.1), {"color": "#cc79a7"}),
    "LoRA, AdamW": (optim.AdamW(lr=0.1), {"color": "#e69f00"}),
    "preconditioned SGD": (optim.PreconditionedSGD(lr=0.5), {"color": "#009e73"}),
    "OPLoRA ×1": (optim.OPLoRA(lr=0.5, iters=1), {"color": "#56b4e9", "linewidth": 4}),
    "SVDLoRA": (optim.SVDLoRA(lr=0.5), {"color": "black", "linestyle": "--"}),
}
figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
for name, (rule, style) in rules.items():
    axes.semilogy(losses(rule), label=name, **style)
axes.set(xlabel="step", ylabel="loss above the best of rank 4", ylim=(1e-13, 1e3))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Steps in the factors crawl along the small singular values. One alternating update a step follows the truncated SVD
# of the full step so closely that the two curves are one. Preconditioned SGD, which is a single simultaneous update,
# keeps up on this easy problem; the paper's linear task, `python -m paper_figures --only figure1`, tells them apart.
#
# Where to go from here: [convergence](convergence.ipynb) compares the iteration with its predicted rate over spectra,
# step sizes, λ, ranks and momentum; `help(ls.lorsum)` lists the options.

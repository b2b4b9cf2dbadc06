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
# # Convergence of LoRSum against K
#
# LoRSum with λ = 0 is subspace iteration, so theory predicts how fast it tends to the truncated SVD of its target:
# with
#
# $$\rho = \left(\frac{\sigma_{r+1}}{\sigma_r}\right)^2,$$
#
# each iteration after the first multiplies the tangent of the largest angle to the optimal subspaces by at most
# $\rho$, and the excess $\|X - T\| / \|T_r - T\| - 1$ in the end by $\rho^2$. This notebook holds measurements against
# that: where the prediction is right, where it is right and of no use, and what it leaves out.
#
# The measurements are those of `analysis/studies/convergence.py`, with two seeds instead of five.

# %%
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

if find_spec("analysis") is None:  # started in notebooks/, and not installed: the packages are one folder up
    sys.path.insert(0, str(Path.cwd().parent))

import matplotlib.pyplot as plt
import numpy as np

from analysis.experiments.records import read_records, run_study
from analysis.studies.convergence import SPECTRA, configurations, run, spectrum, table
from lorsum.theory import contraction_rate

folder = TemporaryDirectory()  # name a real one to keep the records, and to run nothing twice
records = run_study(run, configurations(seeds=2), folder.name, workers=1, progress=False)

plt.rcParams.update({"figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")
ROUNDING = 1e-13  # of an excess


def resolved(excess, largest=40):
    """K and the excess from K = 1 until it falls below rounding."""
    excess = np.maximum(excess[: largest + 1], ROUNDING)
    end = np.argmax(excess == ROUNDING) if ROUNDING in excess else largest
    return np.arange(1, end + 1), excess[1 : end + 1]


print(len(records), "runs")

# %% [markdown]
# ## Five spectra
#
# Each matrix is 300 × 200 with 48 singular values that are not zero, and is to be approximated by one of rank 8. The
# spectra differ in how fast they fall and in whether there is a gap behind $\sigma_8$.

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for name, colour in zip(SPECTRA, COLOURS, strict=True):
    s = spectrum(name)
    axes.semilogy(np.arange(1, 49), s, ".-", color=colour, label=f"{name}: ρ = {contraction_rate(s, 8):.3f}")
axes.axvline(8.5, color="0.8", zorder=0)
axes.set(xlabel="i", ylabel=r"$\sigma_i$", ylim=(1e-3, 2))
axes.legend()
plt.show()

# %% [markdown]
# ## From a cold start
#
# The iteration starts from a random matrix. Solid lines are measured, one for each seed; the dashed ones have the
# predicted slope and end where the first seed does.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
K = np.arange(1, 41)
for name, colour in zip(SPECTRA, COLOURS, strict=True):
    for record in read_records(folder.name, task="cold start", spectrum=name):
        results, first = record["results"], record["config"]["seed"] == 0
        curves = np.tan(results["angle"][1:]), np.array(results["excess"][1:])
        for axes, curve, power in zip(panels, curves, (1, 2), strict=True):
            last = np.flatnonzero(curve > ROUNDING)[-1]
            axes.semilogy(K[: last + 1], curve[: last + 1], color=colour, label=name if first else None)
            if first:
                line = curve[last] * results["rate"] ** (power * (K - K[last]))
                shown = (line <= curve[0]) & (np.arange(40) <= last)
                axes.semilogy(K[shown], line[shown], "--", color="black", linewidth=1)
for axes, title in zip(panels, ("tangent of the largest angle", "excess over the truncated SVD"), strict=True):
    axes.set(xlabel="K", title=title, ylim=(ROUNDING, 1e3))
axes.legend()
plt.show()

# %% [markdown]
# Four of the five settle on the predicted slope; how many iterations that takes, and how high the line then lies,
# depends on the start. On the flat spectrum, with $\rho = 0.987$, the angle has barely begun to fall after 40
# iterations, but the excess is down to a few in 10,000. What is slow to be told apart from the dominant subspace is
# worth little to the error.
#
# ## Measured against predicted
#
# The speed of an iteration is the number of decimal digits that it gains, $-\log_{10}$ of the rate. Below is one point
# for each run that shows a rate, from cold starts at several ranks and from warm starts with several step sizes. The
# digits of the excess are halved, since its rate is predicted to be $\rho^2$.

# %%
figure, axes = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
plain = [record["results"] for record in records if "angle_rate" in record["results"]]
predicted = -np.log10([results["rate"] for results in plain])
for column, power, marker, colour in (("angle_rate", 1, "o", "#0072b2"), ("excess_rate", 2, "x", "#d55e00")):
    measured = -np.log10([results[column] for results in plain]) / power
    axes.loglog(predicted, measured, marker, color=colour, fillstyle="none", label=column.replace("_rate", ""))
    ratio = (measured / predicted)[np.isfinite(measured)]
    print(
        f"{column}: {len(ratio)} of {len(plain)} runs; measured / predicted speed: median {np.median(ratio):.3f}, "
        f"{np.mean(np.abs(ratio - 1) < 0.1):.0%} within a tenth, {ratio.min():.3f} to {ratio.max():.2f}"
    )
axes.axline((0.1, 0.1), (1, 1), color="0.7", zorder=0)
axes.set(xlabel="predicted digits an iteration", ylabel="measured digits an iteration", aspect="equal")
axes.legend()
plt.show()

# %% [markdown]
# By case, medians over the seeds, where 1 is the predicted speed:

# %%
print(table(records))

# %% [markdown]
# nan says that no rate can be seen: the iteration is at rounding before there is one (small steps), or 40 iterations
# do not settle on one (flat, rank 16). Nothing is slower than predicted by more than a hundredth. Where the speed is
# above 1, singular values crowd around $\sigma_r$, and 40 iterations or double precision end before the slowest pair of
# them has the last word.
#
# ## Warm starts, as in training
#
# Now the target is $W - \eta G$ and the iteration starts at $W$, of rank 8 with $\sigma_8(W) = \|G\|_2 = 1$, so that
# $\rho \approx \eta^2$ as long as $\eta < 1$. How good are $K = 1$ and $K = 2$?

# %%
figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
warm = [record["results"] for record in read_records(folder.name, task="warm start")]
rho = np.array([results["rate"] for results in warm])
line = np.geomspace(rho.min(), 0.5, 50)
for K, marker, colour in ((0, "s", "0.6"), (1, "o", "#0072b2"), (2, "^", "#009e73"), (4, "v", "#d55e00")):
    excess = np.array([results["excess"][K] for results in warm])
    seen = excess > ROUNDING
    axes.loglog(rho[seen], excess[seen], marker, color=colour, fillstyle="none", label=f"K = {K}")
    if K:
        axes.loglog(line, 0.01 * line ** (2 * K - 1), "--", color=colour, linewidth=1)
axes.set(xlabel=r"$\rho = (\sigma_{r+1}/\sigma_r)^2$ of the target", ylabel="excess", ylim=(ROUNDING, 1))
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# Dashed is $0.01\,\rho^{2K-1}$, and nothing lies above it until $\rho$ comes near 1. Each further iteration brings
# $\rho^2$, as predicted, and the first one $\rho$: the last half-step fits one factor to the subspace of the other, so
# that $2K - 1$ of the $2K$ half-steps improve that subspace. (The excess at $K = 0$ is half the share of a random $G$
# that small changes of $W$'s factors can express, about $r(m+n)/2mn = 0.033$.)
#
# So a step of a tenth of the gap, $\rho = 0.01$, is within 0.01 % of the truncated SVD after one iteration. This is
# why $K = 1$ or $2$ is enough in training: not because LoRSum converges fast, but because its targets have a gap. Near
# $\rho = 1$ no small K finds the subspace, though each is within a few percent of the smallest error.
#
# ## What the rate leaves out: λ and conditioning
#
# Left, from the same warm start with $\eta = 0.1$ and spectrum $1/i$, the proximal term at several λ. Right, at $\eta
# = 0.3$, the same matrix $W$ with factors $UA$ and $VA^{-\top}$ of growing condition number, solved by
# orthogonalisation (solid) and with the Gram matrix as in the paper (dashed).

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
(plain,) = read_records(folder.name, task="warm start", spectrum="1/i", eta=0.1, seed=0)
weighted = sorted(read_records(folder.name, task="proximal term", seed=0), key=lambda record: record["config"]["reg"])
for record, colour in zip([plain, *weighted], ("0.6", *COLOURS), strict=False):
    excess = np.maximum(record["results"]["excess"][:9], 1e-16)
    left.semilogy(excess, ".-", color=colour, label=f"λ = {record['config'].get('reg', 0):g}")
left.set(xlabel="K", title="excess, by λ", ylim=(1e-16, 1e2))
left.legend(ncols=2, loc="upper right")
for solver, line in (("qr", "-"), ("gram", "--")):
    for kappa, colour in ((1, COLOURS[0]), (1e3, COLOURS[2]), (1e6, COLOURS[4])):
        (record,) = read_records(folder.name, task="conditioning", gauge=kappa, solver=solver, seed=0)
        label = f"κ = {kappa:.0e}, {solver}"
        right.semilogy(record["results"]["distance"][:25], line, color=colour, label=label)
right.set(xlabel="K", title="distance from the truncated SVD, by conditioning", ylim=(1e-16, 1e5))
right.legend(ncols=2)
plt.show()

# %% [markdown]
# λ, which is measured against $\sigma_r(W) = 1$ here, hardly touches the first iteration; after that the excess stays
# at a limit that grows with λ². Badly conditioned factors cost nothing when one orthogonalises. The Gram matrix squares
# their condition number: at κ = 10⁶ the iteration wanders about at a distance near ε κ² = 2·10⁻⁴.
#
# ## Rank, and the rank of the momentum
#
# For $\sigma_i = 1/i$ the rate is $(r/(r+1))^2$: the larger the rank, the slower. The right panel is about the
# momentum buffer $M \leftarrow \mathrm{LoRSum}(\alpha M + G)$, α = 0.9, after 40 mini-batches of a linear regression:
# its distance from the exact momentum for several K, with the truncated SVD in place of LoRSum (crosses), and the
# smallest distance that its rank allows (dashed). Means over the seeds.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
for rank, colour in zip((2, 4, 8, 16, 32), COLOURS, strict=True):
    task = "cold start" if rank == 8 else "rank"
    for record in read_records(folder.name, task=task, spectrum="1/i", rank=rank):
        label = f"r = {rank}" if record["config"]["seed"] == 0 else None
        left.semilogy(*resolved(record["results"]["excess"]), color=colour, label=label)
left.set(xlabel="K", title="excess, by rank", ylim=(ROUNDING, 2))
left.legend(loc="lower left")
for rank, colour in zip((8, 16, 32), COLOURS[2:], strict=True):
    buffers = [record["results"] for record in read_records(folder.name, task="momentum", momentum_rank=rank)]
    norm = np.array([results["norm"] for results in buffers])
    error = np.array([results["error"] for results in buffers]) / norm[:, None]
    right.plot(error.mean(0), "o-", color=colour, label=f"momentum of rank {rank}")
    right.plot(4, np.mean([results["limit"]["error"] for results in buffers] / norm), "x", color=colour)
    right.axhline(np.mean([results["limit"]["optimal"] for results in buffers] / norm), color=colour, linestyle="--")
right.set_xticks(range(5), [*buffers[0]["iteration"], "SVD"])
right.set(xlabel="K", title=r"$\|M - M_\mathrm{exact}\|\ /\ \|M_\mathrm{exact}\|$", ylim=(0.25, 0.5))
right.legend()
plt.show()

# %% [markdown]
# Unlucky starts are slow: at rank 16 one of the two is nearly orthogonal to a singular vector, the tangent of its angle
# 8·10⁴, and 40 iterations are not enough to turn it. For the momentum K hardly counts: from $K = 2$ on LoRSum does what
# the truncated SVD does. What it misses is what each update rounds away for good, and only a larger rank helps
# against that.
#
# ## Faster at the same price
#
# Two cures of slow convergence need no more passes over the factors: to iterate at rank $r + p$ and truncate at the end
# (`oversample=4`), and to take the best approximation in the span of all iterates (`accelerate="krylov"`), which have
# to be stored for it.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9.6, 4), sharey=True, layout="constrained")
options = {
    "plain": {"task": "cold start"},
    "oversample=4": {"task": "acceleration", "accelerate": None, "oversample": 4},
    'accelerate="krylov"': {"task": "acceleration", "accelerate": "krylov", "oversample": 0},
    "both": {"task": "acceleration", "accelerate": "krylov", "oversample": 4},
}
for axes, name in zip(panels, ("1/i", "flat"), strict=True):
    for (label, option), colour in zip(options.items(), COLOURS, strict=False):
        (record,) = read_records(folder.name, spectrum=name, seed=0, **option)
        axes.semilogy(*resolved(record["results"]["excess"], 20), ".-", color=colour, label=label)
    axes.set(xlabel="K", title=f"excess, cold start, spectrum: {name}", ylim=(ROUNDING, 1), xticks=range(0, 21, 5))
panels[1].legend(loc="lower right")
plt.show()

# %% [markdown]
# With oversampling the rate is $(\sigma_{r+p+1}/\sigma_r)^2$, which is worth much where the spectrum falls and little
# where it is flat; Krylov spaces gain an order of magnitude at $K = 4$ even there. (That both then end abruptly is
# because these matrices have rank 48: six blocks of eight span it all.)
#
# ## Conclusions
#
# 1. Wherever 40 iterations in double precision get far enough to show a rate, it is $(\sigma_{r+1}/\sigma_r)^2$ for the
#    angle and its square for the excess. Nine runs of ten agree within a tenth of the speed, none is slower.
# 2. One or two iterations suffice in training because a small step leaves a gap: the excess is then below
#    $0.01\,\rho^{2K-1}$ with $\rho \approx (\eta\|G\|_2/\sigma_r(W))^2$. From a random start, or without a gap, they do
#    not find the subspace.
# 3. Without a gap the rate says little about the error, which is near its optimum long before the angle is small.
# 4. λ > 0 ends the fall at a limit that grows with λ², the Gram matrix ends it at ε κ². The momentum's error is a
#    matter of its rank, not of K.
#
# All of it is measured on random singular vectors and matrices of 300 × 200. What real gradients do to K is the
# subject of the training studies in `analysis/`.

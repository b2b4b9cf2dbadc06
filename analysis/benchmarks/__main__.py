"""``python -m analysis.benchmarks``, which is ``python -m analysis benchmarks``: lorsum beside its competitors."""

from analysis.benchmarks.kernels.__main__ import command

if __name__ == "__main__":
    command()

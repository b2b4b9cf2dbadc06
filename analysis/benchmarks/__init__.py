"""The benchmark: lorsum beside its competitors and the machine's limit, ``python -m analysis.benchmarks``."""

"""What was asked and measured: `analysis.studies`, `analysis.benchmarks`, and what both share, `analysis.experiments`.

``python -m analysis`` lists them all, each with its question, and runs any by its name.
"""

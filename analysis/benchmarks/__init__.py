"""What lorsum is measured by; ``python -m analysis`` lists these beside the studies, and runs any by name.

Measured runs are recorded one by one (`analysis.benchmarks.recording`), and a page is written from the records: each
benchmark's ``page`` says how.
"""

from analysis.experiments.command_line import Study

__all__ = ["STUDIES"]

STUDIES = [
    Study(
        "benchmarks",
        "How fast is lorsum beside the paper's Listing 1, randomized and exact SVDs, and the machine's roofline?",
        "15 minutes",
        "analysis.benchmarks.kernels.__main__",
    ),
    Study(
        "training-cost",
        "What does a training step cost with each optimizer, in time and in memory, beside AdamW?",
        "3 minutes",
        "analysis.benchmarks.training_cost.__main__",
    ),
    Study(
        "step-time",
        "How long does a training step of LeNet5 take in PyTorch, and how long in JAX?",
        "3 minutes",
        "analysis.benchmarks.step_time",
    ),
    Study(
        "accuracy",
        "How far are the answers from exact arithmetic and from a dense SVD, and is every promise kept?",
        "1 minute",
        "analysis.benchmarks.accuracy",
    ),
]

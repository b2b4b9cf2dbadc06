"""Studies: a question in, records (JSON, with configuration, seed and environment) out.

A study is a list of configurations; `analysis.experiments.records` runs them, keeps a record of each and resumes where
it stopped. Listed here without importing them, some of which need PyTorch or JAX.
"""

from analysis.experiments.command_line import Study

__all__ = ["STUDIES"]

STUDIES = [
    Study(
        "convergence",
        "How fast does LoRSum converge with K, beside the predicted rate (σ_{r+1}/σ_r)²?",
        "1 minute",
        "analysis.studies.convergence",
    ),
    Study(
        "linear",
        "Figure 1: how close do K iterations come to SVDLoRA on a linear task, and to the best loss of rank 8?",
        "2 minutes",
        "analysis.studies.linear",
    ),
    Study(
        "mnist",
        "Does the order of the paper's Table 1 hold on an MLP, and how far from the truncated SVD do steps land?",
        "35 minutes",
        "analysis.studies.mnist",
    ),
    Study(
        "lenet5",
        "Does the MNIST column of Table 1 come out, in PyTorch and in JAX?",
        "3 hours",
        "analysis.studies.lenet5.study",
    ),
    Study(
        "mnli",
        "Does OPLoRA come near SVDLoRA, and either near AdamW, on a pretrained transformer?",
        "1 hour",
        "analysis.studies.mnli.study",
    ),
]

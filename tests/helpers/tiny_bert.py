"""A small BERT with random weights and a few made-up pairs of sentences, as the fine-tuning studies take them."""

import gzip

import numpy as np
import torch
import transformers

from analysis.studies.mnli.sentence_pairs import LABELS

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "a",
    "cat",
    "dog",
    "man",
    "eats",
    "runs",
    "and",
    "not",
    "is",
]


def write(folder):
    """Write the model to ``model`` and the pairs to ``data``."""
    rng = np.random.default_rng(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder / "model")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for name, count in (("train_23k.tsv.gz", 30), ("dev_matched.tsv.gz", 12)):
        rows = [[*(" ".join(rng.choice(WORDS[5:], 6)) for _ in range(2)), LABELS[i % 3]] for i in range(count)]
        lines = ["\t".join(row) for row in [["premise", "hypothesis", "label"], *rows]]
        (folder / "data" / name).write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))

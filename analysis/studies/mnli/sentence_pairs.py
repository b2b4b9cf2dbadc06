"""MNLI's pairs of sentences by name, as the token numbers of an encoder."""

import csv
import gzip
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from analysis.studies.mnli.pretrained_model import tokenizer

__all__ = ["LABELS", "SentencePairs", "Split", "sentence_pairs"]

LABELS = ("entailment", "neutral", "contradiction")
_FILES = ("train_23k.tsv.gz", "dev_matched.tsv.gz")
_HUB = "nyu-mll/glue"


class Split(NamedTuple):
    """Pairs as a tokenizer has them, unpadded, and the numbers of their labels."""

    encoded: list
    labels: list

    def examples(self, numbers: Iterable[int]) -> list[dict]:
        """The pairs of these numbers, as a collator takes them."""
        return [self.encoded[i] | {"labels": self.labels[i]} for i in numbers]


class SentencePairs(NamedTuple):
    """MNLI: for training, the matched development set, and what they are, in words to print on a figure."""

    train: Split
    dev: Split
    source: str


@cache
def sentence_pairs(data: str, model: str, length: int) -> SentencePairs:
    """The pairs, tokenised once.

    Parameters
    ----------
    data : str
        "mnli-23k", a part of the training pairs and all of the matched development set, in the folder ``mnli`` of the
        environment variable ``LORSUM_DATA``; "glue", all of GLUE's MNLI from the hub; or a folder with the files of
        the former.
    model : str
        Whose tokenizer (see `analysis.studies.mnli.pretrained_model`).
    length : int
        Tokens of a pair; longer ones lose the end of the longer sentence.

    Returns
    -------
    SentencePairs

    Raises
    ------
    FileNotFoundError
        If the pairs cannot be had.
    """
    encoder = tokenizer(model)
    texts = _from_hub() if data == "glue" else _from_folder(_folder(data))
    train, dev = (_encoded(split, encoder, length) for split in texts)
    source = f"MNLI, {len(train.labels):,} training pairs, {len(dev.labels):,} of the matched development set"
    return SentencePairs(train, dev, source)


def _encoded(split, encoder, length):
    premises, hypotheses, labels = split
    encoded = encoder(premises, hypotheses, truncation=True, max_length=length)
    return Split([{key: encoded[key][i] for key in encoded} for i in range(len(labels))], labels)


def _folder(data):
    if data != "mnli-23k":
        return Path(data)
    given = os.environ.get("LORSUM_DATA")
    if not given:
        raise FileNotFoundError(
            "`data` is 'mnli-23k', but `LORSUM_DATA` is not set: set it to a folder that holds "
            f"mnli/ with {', '.join(_FILES)}; or take 'glue', which is fetched from the Hugging Face hub."
        )
    return Path(given).expanduser() / "mnli"


def _from_folder(folder):
    for name in _FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"`data` is {str(folder)!r}, where there is no {name}.")
        yield _read(folder / name)


def _read(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    labels = [LABELS.index(row["label"]) for row in rows]
    return [row["premise"] for row in rows], [row["hypothesis"] for row in rows], labels


def _from_hub():
    try:
        import datasets

        mnli = datasets.load_dataset(_HUB, "mnli")
    except (ImportError, OSError) as error:
        raise FileNotFoundError(
            f"`data` is 'glue', and {_HUB} could not be had from the Hugging Face hub ({error}): it takes the package "
            "`datasets` and a network. Or give 'mnli-23k', or a folder."
        ) from error
    for name in ("train", "validation_matched"):
        part = mnli[name]
        yield list(part["premise"]), list(part["hypothesis"]), list(part["label"])

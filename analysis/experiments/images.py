"""MNIST's images as networks take them."""

from lorsum.typing import Array

__all__ = ["standardised"]


def standardised(pixels: Array) -> Array:
    """Pixels from 0 to 1 less their mean over the training images, over their standard deviation."""
    return (pixels - 0.1307) / 0.3081

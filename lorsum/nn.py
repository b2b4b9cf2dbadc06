"""A multilayer perceptron without autograd: forward and backward by hand, giving (X, S) for each layer.

>>> import numpy as np
>>> from lorsum import LowRank
>>> layers = mlp((784, 300, 100, 10), rank=8, rng=0)
>>> X, labels = np.zeros((5, 784), np.float32), np.arange(5)
>>> logits, inputs = forward(layers, X)
>>> loss, S = cross_entropy(logits, labels)
>>> [(X.shape, S.shape) for X, S in backward(layers, inputs, S)]
[((5, 784), (5, 300)), ((5, 300), (5, 100)), ((5, 100), (5, 10))]
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lorsum._checks import as_array, as_count, as_rank, refuse_masked
from lorsum.lowrank import LowRank
from lorsum.typing import RNG, Array, DType, Matrix

__all__ = ["Layer", "accuracy", "backward", "cross_entropy", "forward", "gradients", "mlp"]


class Layer(NamedTuple):
    """A linear layer ``x ↦ (weight + adapter) x + bias``.

    Attributes
    ----------
    weight : array, shape (d_out, d_in)
        Frozen.
    adapter : LowRank or array, shape (d_out, d_in)
        Trained; a dense array in full training.
    bias : array, shape (d_out,)
        Trained.
    """

    weight: Array
    adapter: Matrix
    bias: Array


def mlp(sizes: Sequence[int], *, rank: int, rng: RNG = 0, dtype: DType = np.float32) -> tuple[Layer, ...]:
    """Layers of an MLP with frozen weights, LoRA adapters that start at zero, and biases.

    Parameters
    ----------
    sizes : sequence of int
        Widths from input to output; (784, 300, 100, 10) is LeNet-300-100.
    rank : int
        Rank of the adapters, at most the smallest width.
    rng : int, numpy.random.Generator or None
        Of the parameters. Default: the seed 0, so that runs repeat; None: fresh entropy.
    dtype : dtype
        Of all parameters.

    Returns
    -------
    tuple of Layer
        Weights and biases are uniform on ±1/√d_in, as in PyTorch's ``nn.Linear``; U = 0, and V uniform on ±1/√d_in.

    Raises
    ------
    ValueError
        If there are fewer than two sizes, or ``rank`` is above one of them.

    Examples
    --------
    >>> [layer.adapter for layer in mlp((4, 3, 2), rank=1)]
    [LowRank(3 × 4, rank 1, float32), LowRank(2 × 3, rank 1, float32)]
    """
    sizes = [as_count(size, "sizes", least=1) for size in sizes]
    if len(sizes) < 2:
        raise ValueError(f"`sizes` is {sizes}; an input and an output width are needed.")
    rng = np.random.default_rng(rng)

    def layer(d_in: int, d_out: int) -> Layer:
        as_rank(rank, (d_out, d_in))

        def uniform(*shape: int) -> Array:
            return rng.uniform(-(d_in**-0.5), d_in**-0.5, shape).astype(dtype)

        weight, bias, V = uniform(d_out, d_in), uniform(d_out), uniform(d_in, rank)
        return Layer(weight, LowRank(np.zeros((d_out, rank), dtype), V), bias)

    return tuple(map(layer, sizes, sizes[1:]))


def forward(layers: Sequence[Layer], X: Array) -> tuple[Array, list[Array]]:
    """Outputs for a batch of inputs, with what :func:`backward` needs.

    Parameters
    ----------
    layers : sequence of Layer
        tanh stands between them.
    X : array, shape (batch, d_in)
        One example a row.

    Returns
    -------
    outputs : array, shape (batch, d_out)
        Of the last layer, without an activation.
    inputs : list of array
        The input of each layer.

    Raises
    ------
    ValueError
        If X does not fit the first layer.
    """
    X = as_array(X, "X")
    d_in = layers[0].weight.shape[1]
    if X.ndim != 2 or X.shape[1] != d_in:
        raise ValueError(f"`X` has shape {X.shape}; the first layer takes (batch, {d_in}).")
    inputs = [X]
    for layer in layers[:-1]:
        inputs.append(np.tanh(_output(layer, inputs[-1])))
    return _output(layers[-1], inputs[-1]), inputs


def backward(layers: Sequence[Layer], inputs: Sequence[Array], S: Array) -> list[tuple[Array, Array]]:
    """Inputs X and output gradients S of each layer, whose matrix gradient is SᵀX.

    Parameters
    ----------
    layers : sequence of Layer
        As given to :func:`forward`.
    inputs : list of array
        As returned by it.
    S : array, shape (batch, d_out)
        Gradient of the loss with respect to the outputs.

    Returns
    -------
    list of (X, S)
        First layer first.
    """
    pairs = [(inputs[-1], S)]
    for X, output, above in zip(inputs[-2::-1], inputs[:0:-1], layers[:0:-1], strict=True):
        S = (S @ above.weight + S @ above.adapter) * (1 - output * output)  # tanh' = 1 − tanh²
        pairs.append((X, S))
    return pairs[::-1]


def gradients(pairs: Sequence[tuple[Array, Array]]) -> list[tuple[LowRank, Array]]:
    """Gradients with respect to each layer's matrix and bias.

    Parameters
    ----------
    pairs : sequence of (X, S)
        As returned by :func:`backward`.

    Returns
    -------
    list of (LowRank, array)
        SᵀX as ``LowRank(S.T, X.T)``, which is never formed, and the column sums of S.
    """
    return [(LowRank(S.T, X.T), S.sum(axis=0)) for X, S in pairs]


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean cross-entropy of a batch, and its gradient with respect to the logits.

    Parameters
    ----------
    logits : array, shape (batch, classes)
        Unnormalised log-probabilities, of any size: the softmax is shifted and cannot overflow.
    labels : array of int, shape (batch,)
        From 0.

    Returns
    -------
    loss : float
        Mean over the batch.
    gradient : array, shape (batch, classes)
        (softmax − one-hot) / batch.

    Raises
    ------
    ValueError
        If the shapes do not agree or a label is no class.
    TypeError
        If the labels are no integers.

    Examples
    --------
    >>> loss, gradient = cross_entropy(np.zeros((1, 2)), np.array([0]))
    >>> round(loss, 4), gradient
    (0.6931, array([[-0.5,  0.5]]))
    """
    logits = as_array(logits, "logits")
    if logits.ndim > 2 or 0 in logits.shape or logits.dtype.kind == "c":
        needed = "real numbers are needed, one row for each example"
        raise ValueError(f"`logits` has shape {logits.shape} and dtype {logits.dtype}; {needed}.")
    labels = _as_labels(labels, len(logits))
    if labels.size and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"`labels` run from {labels.min()} to {labels.max()}; classes are 0 to {logits.shape[1] - 1}.")
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels]))
    gradient = exponentials / total
    gradient[rows, labels] -= 1
    return loss, gradient / len(labels)


def accuracy(layers: Sequence[Layer], X: Array, labels: Array) -> float:
    """Share of the examples whose largest output is their label.

    Parameters
    ----------
    layers, X
        As for :func:`forward`.
    labels : array of int, shape (batch,)
        From 0.

    Returns
    -------
    float
        Between 0 and 1.
    """
    outputs = forward(layers, X)[0]
    return float(np.mean(outputs.argmax(axis=1) == _as_labels(labels, len(outputs))))


def _as_labels(labels: Array, count: int) -> Array:
    """The classes of so many examples, as an array of integers."""
    refuse_masked(labels, "labels")
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"`labels` has shape {labels.shape}; one label for each of {count} rows is needed.")
    if labels.size and labels.dtype.kind not in "iu":
        raise TypeError(f"`labels` has dtype {labels.dtype}; integers from 0 are needed: convert it by `.astype(int)`.")
    return labels.astype(np.int64)


def _output(layer: Layer, X: Array) -> Array:
    return X @ layer.weight.T + X @ layer.adapter.T + layer.bias

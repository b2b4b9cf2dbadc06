"""LeNet5 with adapters in JAX, by Equinox, with the first weights of PyTorch's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import torch

import lorsum.jax

__all__ = ["Convolution", "LeNet5", "converted"]


class Convolution(eqx.Module):
    """A convolution as a product with the patches of the images, the axes being channels, images, height, width.

    XLA's own convolution runs three times slower than this inside of a loop over the batches.
    """

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images without the border that the kernel does not reach across."""
        out, _, *kernel = self.weight.shape
        channels, count, height, width = x.shape
        height, width = height - kernel[0] + 1, width - kernel[1] + 1
        shifted = [x[:, :, i : i + height, j : j + width] for i in range(kernel[0]) for j in range(kernel[1])]
        patches = jnp.stack(shifted, axis=1).reshape(channels * len(shifted), -1)
        y = self.weight.reshape(out, -1) @ patches + self.bias[:, None]
        return y.reshape(out, count, height, width)


class LeNet5(eqx.Module):
    """The network; tanh after the pooling, as in PyTorch's."""

    convolutions: list
    layers: list

    def __call__(self, images: jax.Array) -> jax.Array:
        """Scores of the digits, shape (images, 10), for images of shape (images, 1, 32, 32)."""
        x = images.swapaxes(0, 1)
        for convolution in self.convolutions:
            x = jnp.tanh(_pooled(convolution(x)))
        x = x.swapaxes(0, 1).reshape(len(images), -1)
        for layer in self.layers[:-1]:
            x = jnp.tanh(jax.vmap(layer)(x))
        return jax.vmap(self.layers[-1])(x)


def converted(model: torch.nn.Sequential) -> LeNet5:
    """The network of PyTorch as one of Equinox with the same weights."""
    convolutions, layers = [], []
    for part in model:
        if hasattr(part, "kernel_size") and hasattr(part, "weight"):
            convolutions.append(Convolution(_array(part.weight), _array(part.bias)))
        elif hasattr(part, "in_features"):
            layers.append(_linear(part))
    return LeNet5(convolutions, layers)


def _linear(layer):
    key = jax.random.key(0)  # that Equinox asks for; what is drawn of it is replaced
    base = getattr(layer, "base", layer)
    made = eqx.nn.Linear(layer.in_features, layer.out_features, key=key)
    made = eqx.tree_at(lambda x: (x.weight, x.bias), made, (_array(base.weight), _array(base.bias)))
    if base is layer:
        return made
    A, B = _array(layer.lora_A.weight), _array(layer.lora_B.weight)
    adapted = lorsum.jax.LoRALinear(made, len(A), key=key)
    return eqx.tree_at(lambda x: (x.W.U, x.W.V), adapted, (B, A.T))


def _array(p):
    return jnp.array(p.detach().numpy())


def _pooled(x):
    """The largest of each 2 × 2 pixels."""
    x = jnp.maximum(x[..., ::2, :], x[..., 1::2, :])
    return jnp.maximum(x[..., ::2], x[..., 1::2])

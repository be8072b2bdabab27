"""Convolutions of trained networks, their batch normalisation folded into kernel and bias.

In inference gamma (W x - mean) / sqrt(variance + epsilon) + beta is W' x + b with
W' = gamma W / sqrt(variance + epsilon) and b = beta - gamma mean / sqrt(variance + epsilon).
"""

from collections.abc import Iterable, Mapping

import keras
import numpy as np

Tensor = keras.KerasTensor

NORMALIZATION = ("weight", "bias", "running_mean", "running_var")


class FoldedConvolutions:
    """Adds convolutions to a functional network, and loads them from a state dict of PyTorch.

    Args:
        epsilon: of the batch normalisations.
    """

    def __init__(self, epsilon: float):
        self.epsilon = epsilon
        self._layers = {}  # names of convolution and normalisation in the state dict -> layer
        self._dense = {}  # name of a linear layer in the state dict -> layer

    def __call__(
        self,
        x: Tensor,
        convolution: str,
        normalization: str,
        filters: int | None,
        kernel_size: int | tuple[int, int],
        strides: int = 1,
        padding: str = "same",
    ) -> Tensor:
        """Returns x (B, H, W, C) convolved, without activation.

        Args:
            convolution: the name of the convolution, which has no bias, in the state dict.
            normalization: that of the batch normalisation that follows it.
            filters: channels of the output; None makes the convolution depthwise.
            kernel_size: height and width, odd.
            strides: 1 or 2.
            padding: "same", symmetric as in PyTorch; or "valid".
        """
        if padding == "same" and strides > 1:  # Keras would pad one side more than the other
            x, padding = keras.layers.ZeroPadding2D(kernel_size // 2, dtype="float32")(x), "valid"
        options = {
            "strides": strides,
            "padding": padding,
            "data_format": "channels_last",
            "dtype": "float32",
            "bias_initializer": _unset,
            # PyTorch refuses the dot in names of layers.
            "name": convolution.replace(".", "-"),
        }
        if filters is None:
            options["depthwise_initializer"] = _unset
            layer = keras.layers.DepthwiseConv2D(kernel_size, **options)
        else:
            options["kernel_initializer"] = _unset
            layer = keras.layers.Conv2D(filters, kernel_size, **options)
        self._layers[convolution, normalization] = layer
        return layer(x)

    def dense(self, x: Tensor, name: str, units: int, use_bias: bool = True) -> Tensor:
        """Returns a linear layer of x (B, C), called `name` in the state dict."""
        self._dense[name] = keras.layers.Dense(
            units,
            use_bias=use_bias,
            kernel_initializer=_unset,
            bias_initializer=_unset,
            dtype="float32",
            name=name.replace(".", "-"),
        )
        return self._dense[name](x)

    def load(
        self, state_dict: Mapping[str, np.ndarray], network: str, unused: Iterable[str] = ()
    ) -> dict[str, np.ndarray]:
        """Loads a state dict, and returns the entries that were loaded.

        Args:
            state_dict: PyTorch's names to arrays in PyTorch's layouts.
            network: what the error message calls the network.
            unused: names that it may have beside those of the layers.

        Raises:
            ValueError: if the state dict is another network's, or has values that are not finite.
        """
        shapes = self._shapes()
        extra = {n for n in state_dict if not n.endswith(".num_batches_tracked")}
        extra -= shapes.keys() | set(unused)
        problems = [f"{name} is missing" for name in shapes if name not in state_dict]
        problems += [f"{name} is not expected" for name in sorted(extra)]
        entries = {name: np.asarray(state_dict[name]) for name in shapes if name in state_dict}
        for name, array in entries.items():
            if array.shape != shapes[name]:
                problems.append(f"{name} has the shape {array.shape} instead of {shapes[name]}")
            elif array.dtype.kind != "f" or not np.isfinite(array).all():
                problems.append(f"{name} is not made of finite floats")
        if problems:
            others = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError(
                f"The weights must be those of {network}, under PyTorch's names. "
                f"Received: {'; '.join(problems[:5])}{others}"
            )
        for (convolution, normalization), layer in self._layers.items():
            kernel = entries[f"{convolution}.weight"].astype(np.float64)
            gamma, beta, mean, variance = (
                entries[f"{normalization}.{part}"].astype(np.float64) for part in NORMALIZATION
            )
            scale = gamma / np.sqrt(variance + self.epsilon)
            kernel = _to_keras(kernel * scale[:, None, None, None], layer)
            layer.kernel.assign(kernel.astype(np.float32))
            layer.bias.assign((beta - mean * scale).astype(np.float32))
        for name, layer in self._dense.items():
            layer.kernel.assign(entries[f"{name}.weight"].T)
            if layer.use_bias:
                layer.bias.assign(entries[f"{name}.bias"])
        return entries

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes that a state dict must have."""
        shapes = {}
        for (convolution, normalization), layer in self._layers.items():
            shapes[f"{convolution}.weight"] = _torch_shape(layer)
            filters = _torch_shape(layer)[0]
            shapes |= {f"{normalization}.{part}": (filters,) for part in NORMALIZATION}
        for name, layer in self._dense.items():
            shapes[f"{name}.weight"] = tuple(layer.kernel.shape)[::-1]
            if layer.use_bias:
                shapes[f"{name}.bias"] = tuple(layer.bias.shape)
        return shapes


def _unset(shape: tuple[int, ...], dtype: str | None = None) -> np.ndarray:
    """Zeros, until weights are loaded; made here, as JAX would compile a program for each shape."""
    return np.zeros(shape, dtype)


def _is_depthwise(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.DepthwiseConv2D)


def _torch_shape(layer: keras.Layer) -> tuple[int, ...]:
    """The shape of a convolution's weight in PyTorch: (out, in per group, height, width)."""
    height, width, inputs, outputs = layer.kernel.shape
    return (inputs, 1, height, width) if _is_depthwise(layer) else (outputs, inputs, height, width)


def _to_keras(weight: np.ndarray, layer: keras.Layer) -> np.ndarray:
    """The kernel (height, width, in, out or 1) of a weight of PyTorch's."""
    return weight.transpose((2, 3, 0, 1) if _is_depthwise(layer) else (2, 3, 1, 0))

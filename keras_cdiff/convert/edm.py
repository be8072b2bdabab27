"""Official EDM checkpoints as Keras weights."""

from collections.abc import Iterator, Mapping

import keras
import numpy as np

from keras_cdiff.backbones import DhariwalUNet, SongUNet
from keras_cdiff.backbones.unet import UNet
from keras_cdiff.backbones.unet_layers import GroupNorm, UNetBlock
from keras_cdiff.convert.state_dict import Entry, check_constructor, check_entries, dense, plain

# The official constructors' defaults; the first three must be given.
_REQUIRED = ("img_resolution", "in_channels", "out_channels")
_SHARED = {
    **dict.fromkeys(_REQUIRED),
    "label_dim": 0,
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "dropout": 0.10,
    "label_dropout": 0,
}
_DEFAULTS = {
    "SongUNet": {
        **_SHARED,
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": {
        **_SHARED,
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}
_HEAD_CHANNELS = 64
_WRAPPER = "model."


def edm_from_official(
    state_dict: Mapping[str, np.ndarray], model_type: str, **constructor: object
) -> UNet:
    """Builds a U-Net with the weights of an official EDM network (NVlabs/edm).

    Args:
        state_dict: official names to arrays, of the network or of the preconditioning around it.
        model_type: "SongUNet" (DDPM++, NCSN++) or "DhariwalUNet" (ADM).
        **constructor: arguments of the official constructor by their official names:
            img_resolution, in_channels and out_channels; label_dim, augment_dim, model_channels,
            channel_mult, channel_mult_emb, num_blocks, attn_resolutions, dropout, label_dropout and
            for SongUNet embedding_type, channel_mult_noise, encoder_type, decoder_type and
            resample_filter, with their official defaults.

    Returns:
        The network, to be used with the parameterization that the checkpoint was trained with, such
        as `EDMPreconditioning`.

    Raises:
        ValueError: if an argument is unknown or missing, or naming every entry that is missing,
            unexpected or of another shape.
    """
    if model_type not in _DEFAULTS:
        raise ValueError(
            f"`model_type` must be one of {', '.join(_DEFAULTS)}. "
            f"Received: model_type={model_type!r}"
        )
    official = check_constructor(model_type, _DEFAULTS[model_type], constructor)
    missing = [name for name in _REQUIRED if official[name] is None]
    if missing:
        raise ValueError(
            f"The official {model_type} needs {', '.join(_REQUIRED)}. Received: no {missing}"
        )
    network = _network(model_type, official)
    state_dict = _unwrapped(state_dict)
    entries, filters = dict(_entries(network)), dict(_filters(network))
    shapes = {name: entry.shape for name, entry in entries.items()}
    check_entries(state_dict, shapes | {name: taps.shape for name, taps in filters.items()})
    for name, taps in filters.items():
        if not np.allclose(state_dict[name], taps, atol=1e-6):
            raise ValueError(
                f"`{name}` must be the filter that resample_filter="
                f"{list(official.get('resample_filter', [1, 1]))} makes. "
                f"Received: {state_dict[name].tolist()}"
            )
    for name, entry in entries.items():
        entry.variable.assign(entry.layout(state_dict[name]))
    return network


def _network(model_type: str, official: dict) -> UNet:
    sizes = {
        "image_size": official["img_resolution"],
        "channels": official["in_channels"],
        "out_channels": official["out_channels"],
        "num_classes": official["label_dim"],
        "label_dropout": official["label_dropout"],
        "augment_features": official["augment_dim"],
        "width": official["model_channels"],
        "channel_multipliers": official["channel_mult"],
        "embedding_multiplier": official["channel_mult_emb"],
        "num_blocks": official["num_blocks"],
        "dropout": official["dropout"],
    }
    levels = {
        sizes["image_size"] >> i: multiplier * sizes["width"]
        for i, multiplier in enumerate(sizes["channel_multipliers"])
    }
    attention = official["attn_resolutions"]
    if model_type == "SongUNet":
        return SongUNet(
            attention_resolutions=attention,
            embedding=official["embedding_type"],
            noise_multiplier=official["channel_mult_noise"],
            encoder=official["encoder_type"],
            decoder=official["decoder_type"],
            resample_filter=official["resample_filter"],
            **sizes,
        )
    # Official ones do not attend where the channels do not fill a head.
    return DhariwalUNet(
        attention_resolutions=[s for s in attention if levels.get(s, 0) >= _HEAD_CHANNELS],
        middle_attention=[*levels.values()][-1] >= _HEAD_CHANNELS,
        head_channels=_HEAD_CHANNELS,
        **sizes,
    )


def _unwrapped(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's entries, without what a preconditioning around it adds."""
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    if not any(name.startswith(_WRAPPER) for name in arrays):
        return arrays
    arrays.pop("u", None)  # iDDPM's table of noise levels
    return {name.removeprefix(_WRAPPER): value for name, value in arrays.items()}


def _layers(network: UNet) -> Iterator[tuple[str, keras.layers.Layer]]:
    """The official names of all blocks and convolutions outside of them."""
    sizes = [network.image_size >> i for i in range(len(network.channel_multipliers))]
    yield f"enc.{sizes[0]}x{sizes[0]}_conv", network.stem
    side = {"skip": "aux_skip", "residual": "aux_residual"}.get(network.encoder)
    for i, size in enumerate(sizes):
        name = f"enc.{size}x{size}"
        if i > 0:
            yield f"{name}_down", network.down_blocks[i - 1]
            if side is not None:
                yield f"{name}_{side}", network.side_layers[i - 1]
        for j, block in enumerate(network.encoder_blocks[i]):
            yield f"{name}_block{j}", block
    for j, block in enumerate(network.middle_blocks):
        yield f"dec.{sizes[-1]}x{sizes[-1]}_in{j}", block
    outputs = list(zip(network.output_norms, network.output_convs, strict=True))
    for i, size in enumerate(reversed(sizes)):
        name = f"dec.{size}x{size}"
        if i > 0:
            yield f"{name}_up", network.up_blocks[i - 1]
        for j, block in enumerate(network.decoder_blocks[i]):
            yield f"{name}_block{j}", block
        if network.decoder == "skip" or i == len(sizes) - 1:
            norm, conv = outputs.pop(0)
            adm = isinstance(network, DhariwalUNet)
            yield ("out_norm" if adm else f"{name}_aux_norm"), norm
            yield ("out_conv" if adm else f"{name}_aux_conv"), conv


def _entries(network: UNet) -> Iterator[tuple[str, Entry]]:
    if getattr(network, "frequencies", None) is not None:
        yield "map_noise.freqs", plain(network.frequencies)
    for name, layer in (
        ("map_label", network.map_label),
        ("map_augment", network.map_augment),
        ("map_layer0", network.map_hidden),
        ("map_layer1", network.map_output),
    ):
        if layer is not None:
            yield from dense(name, layer).items()
    for name, layer in _layers(network):
        if isinstance(layer, UNetBlock):
            yield from _block_entries(name, layer)
        else:
            yield from _layer_entries(name, layer)


def _layer_entries(name: str, layer: keras.layers.Layer) -> Iterator[tuple[str, Entry]]:
    """Entries of a norm, or of a convolution, which where it is 1 x 1 is a dense layer here."""
    if isinstance(layer, GroupNorm):
        yield f"{name}.weight", plain(layer.gamma)
        yield f"{name}.bias", plain(layer.beta)
        return
    kernel = layer.kernel
    if isinstance(layer, keras.layers.Conv2D):
        height, width, channels_in, channels = kernel.shape
        shape = (channels, channels_in, height, width)
        yield f"{name}.weight", Entry(kernel, shape, lambda w: w.transpose(2, 3, 1, 0))
    else:
        channels_in, channels = kernel.shape
        yield f"{name}.weight", Entry(kernel, (channels, channels_in, 1, 1), lambda w: _matrix(w).T)
    yield f"{name}.bias", plain(layer.bias)


def _block_entries(name: str, block: UNetBlock) -> Iterator[tuple[str, Entry]]:
    yield from _layer_entries(f"{name}.norm0", block.norm_in)
    yield from _layer_entries(f"{name}.conv0", block.conv_in)
    yield from dense(f"{name}.affine", block.modulation).items()
    yield from _layer_entries(f"{name}.norm1", block.norm_out)
    yield from _layer_entries(f"{name}.conv1", block.conv_out)
    if block.skip is not None:
        yield from _layer_entries(f"{name}.skip", block.skip)
    if block.attention is not None:
        yield from _layer_entries(f"{name}.norm2", block.norm_attention)
        yield from _layer_entries(f"{name}.proj", block.attention.projection)
        qkv, heads = block.attention.qkv, block.num_heads

        def separate(rows: np.ndarray) -> np.ndarray:
            # (head, channel, {q, k, v}) -> ({q, k, v}, head, channel) along the first axis.
            split = rows.reshape(heads, -1, 3, *rows.shape[1:])
            return np.moveaxis(split, 2, 0).reshape(rows.shape)

        channels_in, channels = qkv.kernel.shape
        yield (
            f"{name}.qkv.weight",
            Entry(qkv.kernel, (channels, channels_in, 1, 1), lambda w: separate(_matrix(w)).T),
        )
        yield f"{name}.qkv.bias", Entry(qkv.bias, (channels,), separate)


def _matrix(kernel: np.ndarray) -> np.ndarray:
    """A 1 x 1 convolution's weight (out, in, 1, 1) as (out, in)."""
    return kernel[:, :, 0, 0]


def _filters(network: UNet) -> Iterator[tuple[str, np.ndarray]]:
    """The resampling filters, which state dicts hold too though they are never trained."""
    taps = np.divide(network.resample_filter, np.sum(network.resample_filter))
    kernel = np.outer(taps, taps)[None, None]
    first = network.output_norms[0]
    for name, layer in _layers(network):
        if isinstance(layer, UNetBlock) and layer.resample is not None:
            yield f"{name}.conv0.resample_filter", kernel
            yield f"{name}.skip.resample_filter", kernel
        elif name.endswith("aux_residual"):
            yield f"{name}.resample_filter", kernel
        elif name.endswith("aux_skip"):
            yield f"{name.removesuffix('skip')}down.resample_filter", kernel
        elif name.endswith("aux_norm") and network.decoder == "skip" and layer is not first:
            yield f"{name.removesuffix('norm')}up.resample_filter", kernel

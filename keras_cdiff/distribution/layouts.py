"""How the arrays of a model are split over devices, for `keras.distribution.ModelParallel`."""

import keras

# By pairs of layers, as Megatron: the first is split by its outputs, so that each device computes
# a part of the features between the two, and the second by its inputs, whose products the devices
# add up. What is split is always a multiple of the network's width, or a perceptron's hidden width.
# The kernels `N_side` of SongUNet are left out: they have two axes with one of its encoders and
# four with another, which a path does not tell.
_LAYOUTS = {
    # Dense layers and tables, by their outputs, and by their inputs.
    (None, "model"): (
        "positions",
        "label_embedding/embeddings",
        "(level_embedding/hidden|context_embedding/(projection|pooled))/kernel",
        "(patch_embedding|modulation|final_modulation)/kernel",
        r"(attention/qkv|cross_attention/(query|key_value)|block_\d+/hidden)/kernel",
        "(map_label|map_augment|map_hidden|skip)/kernel",
    ),
    ("model", None): (
        r"((cross_)?attention|level_embedding|block_\d+)/projection/kernel",
        "(final_projection|map_output)/kernel",
    ),
    # Convolutions, likewise.
    (None, None, None, "model"): ("(stem|conv_in)/kernel",),
    (None, None, "model", None): (r"(conv_out|\d+_output)/kernel",),
}


def layout_map(device_mesh: keras.distribution.DeviceMesh) -> keras.distribution.LayoutMap:
    """Returns how `keras.distribution.ModelParallel` splits a `DiT`, a `SongUNet` or a
    `DhariwalUNet` over the axis "model" of the devices.

    Arrays of several axes are split, those of the averages and of the optimizer as the weights they
    belong to; not the convolutions of a SongUNet's own path of the image, a hundredth of it.
    Vectors are whole on each device. Only JAX has this.

    Args:
        device_mesh: the devices, with an axis "model" whose size divides the network's width and a
            perceptron's hidden width; another, "batch", shares out the images, and its size must
            divide the batch size.

    Raises:
        ValueError: if the backend is not JAX, or the mesh has no axis "model".

    Example:

    ```python
    mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"])  # of eight devices
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout_map(mesh), batch_dim_name="batch")
    )
    model = keras_cdiff.DiffusionModel.from_preset("dit_xl_2_imagenet256")  # built after that
    ```

    Source: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using
        Model Parallelism", 2019, section 3.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "Keras splits a model over devices only on JAX: set KERAS_BACKEND=jax before Keras is "
            f"imported. Received: backend={keras.backend.backend()!r}"
        )
    if "model" not in device_mesh.axis_names:
        raise ValueError(
            '`device_mesh` must have an axis called "model". '
            f"Received: device_mesh.axis_names={list(device_mesh.axis_names)}"
        )
    layouts = keras.distribution.LayoutMap(device_mesh)
    for axes, ends in _LAYOUTS.items():
        layouts[f".*/({'|'.join(ends)})"] = axes
    return layouts

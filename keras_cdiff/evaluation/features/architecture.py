"""What a Keras model computes, apart from its weights, as text that is the same everywhere."""

import json

import keras

# Of an object's config: what is of no consequence once there are weights.
_LEFT_OUT = ("trainable", "build_config", "build_input_shape", "compile_config", "shared_object_id")


def architecture(model: keras.layers.Layer) -> str:
    """Returns a text that tells a model's layers, their arguments and how they are connected.

    The names of layers count what was built before, so places in the model stand for them. The
    text is the same on every backend and in every process. A custom class counts by its name, its
    module and its config; where `get_config` fails, by its class and the layers within.
    """
    return json.dumps(_described(model), sort_keys=True)


def _described(layer: keras.layers.Layer) -> object:
    kind = type(layer)
    try:
        config = _plain(keras.saving.serialize_keras_object(layer), {})
    except Exception:  # whatever the layer's own get_config raises
        config = None
    if _holds_all_layers(config):
        return config
    policy = keras.saving.serialize_keras_object(layer.dtype_policy)
    within = [_described(part) for part in getattr(layer, "layers", ())]
    return [kind.__module__, kind.__qualname__, policy, config, within]


def _holds_all_layers(config: object) -> bool:
    """Whether it is the config of a `Sequential` or of a functional model."""
    inner = config.get("config") if isinstance(config, dict) else None
    return isinstance(inner, dict) and (
        "output_layers" in inner or (config["class_name"] == "Sequential" and "layers" in inner)
    )


def _plain(value: object, places: dict[str, int]) -> object:
    """Plain data for JSON of what Keras serialized, with the places of layers for their names."""
    if isinstance(value, list | tuple):
        return [_plain(item, places) for item in value]
    if not isinstance(value, dict):
        known = value is None or isinstance(value, bool | int | float | str)
        return value if known else f"{type(value).__module__}.{type(value).__qualname__}"
    kind = str(value.get("class_name", ""))
    if kind == "__keras_tensor__":
        return _connection(value["config"]["keras_history"], places)
    if "DTypePolicy" in kind:
        return value  # whose name says what it is
    layers = value.get("layers")
    if isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers):
        places = {layer.get("name"): place for place, layer in enumerate(layers)}
    plain = {}
    for key, item in value.items():
        if key in ("input_layers", "output_layers"):
            plain[key] = _connection(item, places)
        elif key == "batch_shape" and isinstance(item, list | tuple):
            plain[key] = list(item[1:])  # the size of a batch is the extractor's
        elif key != "name" and key not in _LEFT_OUT:
            plain[str(key)] = _plain(item, places)
    return plain


def _connection(value: object, places: dict[str, int]) -> object:
    """[name, node, tensor], alone or within lists and dicts, with the place for the name."""
    if isinstance(value, dict):
        return {key: _connection(item, places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == 3 and isinstance(value[0], str):
            return [places.get(value[0], "?"), *value[1:]]
        return [_connection(item, places) for item in value]
    return value

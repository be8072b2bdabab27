"""The model card that an export carries: what it is, and how to call it, in Markdown."""


def model_card(metadata: dict) -> str:
    """Returns the card of an export.

    Args:
        metadata: what is written to metadata.json.
    """
    description, sampler = metadata["description"], metadata["sampler"]
    height, width, channels = metadata["image_shape"]
    classes, null = metadata["num_classes"], metadata["null_label"]
    about = {
        "Preset": description.get("preset"),
        "Data": description.get("data"),
        "Licence of the data": description.get("licence") or "not stated",
        "Curriculum": description.get("curriculum"),
        "Training steps": f"{metadata['iterations']:,}" if metadata["iterations"] else None,
        "Weights": f"{_weights(metadata)}, {metadata['parameters']:,} numbers",
        "Sampler": f"{sampler['class_name']}, {metadata['num_steps']} steps",
        "Images": f"{height} x {width} x {channels}",
        "Classes": "none" if classes == 0 else _classes(classes, null),
        "Contexts": _contexts(metadata),
        "Autoencoder": _autoencoder(metadata),
        "Guidance, recommended": _scale(metadata) if metadata["can_be_guided"] else None,
        "Backend of training": description.get("backend"),
    }
    lines = ["# A diffusion model that samples", ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if value is not None]
    lines += ["", "## Metrics", "", *_metrics(description.get("evaluation"))]
    lines += ["", "## Use", "", *_USES[metadata["format"]](metadata), ""]
    return "\n".join([*lines, "metadata.json describes each signature.", ""])


def _weights(metadata: dict) -> str:
    if "weights_file" in metadata["description"]:
        return f"those of {metadata['description']['weights_file']}"
    if metadata["ema"] is None:
        return metadata["weights"]
    ema = metadata["ema"]
    arguments = ", ".join(f"{name}={value}" for name, value in ema["config"].items())
    return f"{metadata['weights']} by {ema['class_name']}({arguments})"


def _classes(classes: int, null: int | None) -> str:
    return f"{classes}, 0 to {classes - 1}" + (
        "" if null is None else f"; {null} is the null label"
    )


def _contexts(metadata: dict) -> str | None:
    width, encoder = metadata["context_width"], metadata["description"].get("text_encoder")
    if not width:
        return None
    made = f", made of texts by {_named(encoder)}" if encoder else ""
    return f"rows of {width} features{made}; rows of zeros are padding"


def _autoencoder(metadata: dict) -> str | None:
    autoencoder = metadata["autoencoder"]
    return None if autoencoder is None else f"{_named(autoencoder)}, with its decoder"


def _named(part: dict) -> str:
    return f"{part['name']} (fingerprint {part['fingerprint'][:16]})"


def _metrics(evaluation: dict | None) -> list[str]:
    if not evaluation:
        return ["Not evaluated."]
    lines = [f"Of {evaluation['of']}, after {evaluation['iteration']} training steps:", ""]
    # Numbers that are not finite are words, or null.
    return lines + [
        f"- {name}: {value:.6g}" if isinstance(value, float) else f"- {name}: {value}"
        for name, value in evaluation["metrics"].items()
    ]


def _scale(metadata: dict) -> float:
    return metadata["guidance"]["config"]["scale"] if metadata["can_be_guided"] else 1.0


def _noise(metadata: dict) -> str:
    """The shape of the noise of four images."""
    _, *shape = metadata["signatures"]["sample_from_noise"]["inputs"]["noise"]["shape"]
    return f"({', '.join(map(str, [4, *shape]))})"


def _python(*lines: str | None) -> list[str]:
    return ["```python", *(line for line in lines if line is not None), "```"]


def _use_saved_model(metadata: dict) -> list[str]:
    classes, width = metadata["num_classes"], metadata["context_width"]
    return [
        "TensorFlow is all it needs. Sample i depends on seeds[i]"
        f"{' and label[i]' if classes else ''}{' and context[i]' if width else ''} alone.",
        "",
        *_python(
            "import tensorflow as tf",
            "",
            'model = tf.saved_model.load("path")',
            'images = model.signatures["sample"](',
            "    seeds=tf.constant([0, 1, 2, 3], tf.int64),",
            "    label=tf.zeros(4, tf.int32)," if classes else None,
            f"    context=tf.zeros((4, 1, {width}))," if width else None,
            f"    guidance=tf.constant({_scale(metadata)})," if classes or width else None,
            f')["images"]  # uint8 {_shape(metadata)}',
        ),
    ]


def _use_onnx(metadata: dict) -> list[str]:
    classes, width = metadata["num_classes"], metadata["context_width"]
    return [
        "onnxruntime is all it needs. Requests are not checked.",
        "",
        *_python(
            "import numpy as np",
            "import onnxruntime",
            "",
            'model = onnxruntime.InferenceSession("path/sample_from_noise.onnx")',
            f'noise = np.random.default_rng(0).standard_normal({_noise(metadata)}, "float32")',
            'request = {"noise": noise}',
            'request["label"] = np.zeros(4, "int32")' if classes else None,
            f'request["context"] = np.zeros((4, 1, {width}), "float32")' if width else None,
            f'request["guidance"] = np.array({_scale(metadata)}, "float32")'
            if classes or width
            else None,
            'images = model.run(["images"], request)[0]'
            f"  # float32 {_shape(metadata)} in about [-1, 1]",
        ),
    ]


def _use_litert(metadata: dict) -> list[str]:
    classes, width = metadata["num_classes"], metadata["context_width"]
    return [
        "ai-edge-litert is all it needs. Requests are not checked.",
        "",
        *_python(
            "import numpy as np",
            "from ai_edge_litert.interpreter import Interpreter",
            "",
            'model = Interpreter("path/model.tflite")',
            'images = model.get_signature_runner("sample_from_noise")(',
            f'    noise=np.random.default_rng(0).standard_normal({_noise(metadata)}, "float32"),',
            '    label=np.zeros(4, "int32"),' if classes else None,
            f'    context=np.zeros((4, 1, {width}), "float32"),' if width else None,
            f"    guidance=np.float32({_scale(metadata)})," if classes or width else None,
            f')["images"]  # float32 {_shape(metadata)} in about [-1, 1]',
        ),
    ]


def _shape(metadata: dict) -> str:
    return f"({', '.join(map(str, [4, *metadata['image_shape']]))})"


_USES = {"saved_model": _use_saved_model, "onnx": _use_onnx, "litert": _use_litert}

"""The model card that an exported sampler carries: what it is, and how to call it, in Markdown."""


def model_card(metadata: dict) -> str:
    """Returns the card of an export.

    Args:
        metadata: what is written to metadata.json.
    """
    description = metadata["description"]
    height, width, channels = metadata["image_shape"]
    classes = metadata["num_classes"]
    sampler = metadata["sampler"]
    about = {
        "Preset": description.get("preset"),
        "Data": description.get("data"),
        "Licence of the data": description.get("licence") or "not stated",
        "Curriculum": description.get("curriculum"),
        "Training steps": f"{metadata['iterations']:,}",
        "Weights": f"{metadata['weights']}, {metadata['parameters']:,} numbers",
        "Sampler": f"{sampler['class_name']}, {sampler['config']['num_steps']} steps",
        "Images": f"{height} x {width} x {channels}",
        "Classes": f"{classes} ({classes} itself is the null label)" if classes else "none",
        "Guidance, recommended": metadata["guidance"]["scale"] if classes else None,
        "Backend of training": description.get("backend") or metadata["exported_from"],
    }
    lines = ["# A diffusion model that samples", ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if value is not None]
    lines += ["", "## Metrics", "", *_metrics(description.get("evaluation"))]
    condition = ""
    if classes:
        condition = (
            ",\n    label=tf.zeros(4, tf.int32),"
            f"\n    guidance=tf.constant({float(metadata['guidance']['scale'])})"
        )
    lines += [
        "",
        "## Use",
        "",
        "TensorFlow is all it needs.",
        "",
        "```python",
        "import tensorflow as tf",
        "",
        'model = tf.saved_model.load("path")',
        'images = model.signatures["sample"](',
        f"    seeds=tf.constant([0, 1, 2, 3], tf.int64){condition},",
        f')["images"]  # uint8 (4, {height}, {width}, {channels})',
        "```",
        "",
        "Sample i depends on seeds[i] and its label alone. metadata.json describes each signature.",
        "",
    ]
    return "\n".join(lines)


def _metrics(evaluation: dict | None) -> list[str]:
    if not evaluation:
        return ["Not evaluated."]
    lines = [f"Of {evaluation['of']}, after {evaluation['iteration']} training steps:", ""]
    return lines + [f"- {name}: {value:.6g}" for name, value in evaluation["metrics"].items()]

"""The parts of a model as their configurations."""


def part(class_name: str, **config: object) -> dict:
    """Returns the serialised form of a registered keras_cdiff object."""
    return {
        "class_name": class_name,
        "config": config,
        "module": None,
        "registered_name": f"keras_cdiff>{class_name}",
    }

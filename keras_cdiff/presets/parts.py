"""What presets have in common: parts of a model as configurations, and the run on the emoji."""


def part(class_name: str, **config: object) -> dict:
    """Returns the serialised form of a registered keras_cdiff object."""
    return {
        "class_name": class_name,
        "config": config,
        "module": None,
        "registered_name": f"keras_cdiff>{class_name}",
    }


def emoji_run(steps: int) -> dict:
    """Returns all of a preset on the embedded emoji that does not depend on its network.

    Args:
        steps: training steps.
    """
    return {
        "data": "emoji",
        "training": {
            "learning_rate": 2e-3,
            "learning_rate_schedule": "cosine",
            "warmup_steps": 100,
            "weight_decay": 0.0,
            "batch_size": 32,
            "steps": steps,
            "horizontal_flip": False,
        },
        # Short runs need fewer clusters and less patience: 20 clusters at patience 200 cost about
        # 7,000 steps.
        "curriculum": {"clusters": "quantile", "num_clusters": 5, "patience": 25},
        "sampling": {"sampler": "heun", "num_steps": 18, "guidance": 2.0},
    }

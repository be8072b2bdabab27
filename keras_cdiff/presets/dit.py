"""Presets: named configurations as plain data, each with its source.

A preset holds the parts of the model as their configurations, the training settings, the
curriculum's defaults and the sampler that shows its results. `DiffusionModel.from_preset` and
`keras_cdiff.training` turn them into objects.
"""

import copy


def _part(class_name: str, **config: object) -> dict:
    """The serialised form of a registered keras_cdiff object."""
    return {
        "class_name": class_name,
        "config": config,
        "module": None,
        "registered_name": f"keras_cdiff>{class_name}",
    }


# Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023, table 1.
DIT_SIZES = {
    "s": {"depth": 12, "width": 384, "num_heads": 6},
    "b": {"depth": 12, "width": 768, "num_heads": 12},
    "l": {"depth": 24, "width": 1024, "num_heads": 16},
    "xl": {"depth": 28, "width": 1152, "num_heads": 16},
}


def _dit_imagenet256(size: str, patch_size: int) -> dict:
    """DiT on 32 x 32 x 4 latents of 256 x 256 ImageNet, as in section 4 of its paper."""
    return {
        "description": f"DiT-{size.upper()}/{patch_size} on latents of ImageNet 256 x 256.",
        "source": "Peebles and Xie, 2023, section 4; facebookresearch/DiT",
        "model": {
            "backbone": {
                "class_name": "DiT",
                "image_size": 32,
                "patch_size": patch_size,
                "channels": 4,
                "out_channels": 8,
                "num_classes": 1000,
                "label_dropout": 0.1,
                **DIT_SIZES[size],
            },
            "schedule": _part("LinearBeta", num_timesteps=1000),
            "parameterization": _part("Epsilon", learned_variance=True),
            "objective": _part("UniformTimesteps", num_timesteps=1000, weighting=_part("Constant")),
            "ema": _part("FixedDecay", decay=0.9999),
        },
        "data": "latents:PATH",
        "training": {
            "learning_rate": 1e-4,
            "learning_rate_schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "batch_size": 256,
            "steps": 400_000,
            "horizontal_flip": True,
        },
        # The reference settings of the method: see DESIGN, "The curriculum, exactly".
        "curriculum": {"clusters": "snr", "num_clusters": 20, "patience": 200},
        "sampling": {"sampler": "ddpm", "num_steps": 250, "guidance": 1.5},
    }


def _dit_emoji16() -> dict:
    """A DiT that learns the embedded emoji at 16 x 16 on two CPU cores in minutes."""
    return {
        "description": "Small class-conditional DiT under EDM's process, emoji at 16 x 16.",
        "source": "keras_cdiff; sized for two CPU cores",
        "model": {
            "backbone": {
                "class_name": "DiT",
                "image_size": 16,
                "patch_size": 2,
                "channels": 3,
                "num_classes": 8,
                "label_dropout": 0.1,
                "width": 128,
                "depth": 6,
                "num_heads": 4,
            },
            "schedule": _part("EDM", sigma_min=0.002, sigma_max=80.0),
            "parameterization": _part("EDMPreconditioning", sigma_data=0.8),
            "objective": _part(
                "LogNormalSigma",
                p_mean=-0.4,
                p_std=1.4,
                weighting=_part("EDMWeight", sigma_data=0.8),
            ),
            "ema": _part("FixedDecay", decay=0.998),
        },
        "data": "emoji",
        "training": {
            "learning_rate": 2e-3,
            "learning_rate_schedule": "cosine",
            "warmup_steps": 100,
            "weight_decay": 0.0,
            "batch_size": 32,
            "steps": 2600,
            "horizontal_flip": False,
        },
        # Short runs need fewer clusters and less patience: 20 clusters at patience 200 cost about
        # 7,000 steps.
        "curriculum": {"clusters": "quantile", "num_clusters": 5, "patience": 25},
        "sampling": {"sampler": "heun", "num_steps": 18, "guidance": 2.0},
    }


PRESETS = {
    **{
        f"dit_{size}_{patch_size}_imagenet256": _dit_imagenet256(size, patch_size)
        for size in DIT_SIZES
        for patch_size in (2, 4, 8)
    },
    "dit_emoji16": _dit_emoji16(),
}


def preset(name: str) -> dict:
    """Returns a copy of the configuration called `name`.

    Raises:
        ValueError: if there is none, naming those that there are.
    """
    if name not in PRESETS:
        raise ValueError(f"A preset must be one of {', '.join(PRESETS)}. Received: name={name!r}")
    return copy.deepcopy(PRESETS[name])

"""Presets: named configurations as plain data, each with its source.

A preset holds the parts of the model as their configurations, the training settings, the
curriculum's defaults and the sampler that shows its results. `DiffusionModel.from_preset` and
`keras_cdiff.training` turn them into objects.

The apps list the presets before Keras is imported, so this file imports the standard library alone.
"""

import copy


def preset(name: str) -> dict:
    """Returns a copy of the configuration called `name`.

    Raises:
        ValueError: if there is none, naming those that there are.
    """
    if name not in PRESETS:
        raise ValueError(f"A preset must be one of {', '.join(PRESETS)}. Received: name={name!r}")
    return copy.deepcopy(PRESETS[name])


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


# DiT, and SiT, which is the same network trained on straight lines.

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
            "schedule": part("LinearBeta", num_timesteps=1000),
            "parameterization": part("Epsilon", learned_variance=True),
            "objective": part("UniformTimesteps", num_timesteps=1000, weighting=part("Constant")),
            "ema": part("FixedDecay", decay=0.9999),
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


def _dit_ffhq256() -> dict:
    """DiT-B/2 without labels, on latents of FFHQ, at the protocol of `_dit_imagenet256`."""
    preset = _dit_imagenet256("b", 2)
    preset["description"] = "Unconditional DiT-B/2 on latents of FFHQ 256 x 256."
    preset["source"] = f"{_PROTOCOL}; FFHQ: Karras et al., 2019"
    preset["model"]["backbone"] |= {"num_classes": 0}
    preset["sampling"]["guidance"] = 1.0
    return preset


def _dit_coco256() -> dict:
    """DiT-B/2 conditioned on captions, on latents of MS-COCO, at the same protocol."""
    preset = _dit_imagenet256("b", 2)
    preset["description"] = "Text-to-image DiT-B/2 on latents of MS-COCO 256 x 256."
    preset["source"] = f"{_PROTOCOL}; captions: Chen et al., 2015; CLIP: Radford et al., 2021"
    preset["model"]["backbone"] |= {
        "num_classes": 0,
        "context_width": 768,
        "context_dropout": 0.1,
    }
    preset["text_encoder"] = "clip"
    return preset


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
            "schedule": part("EDM", sigma_min=0.002, sigma_max=80.0),
            "parameterization": part("EDMPreconditioning", sigma_data=0.8),
            "objective": part(
                "LogNormalSigma",
                p_mean=-0.4,
                p_std=1.4,
                weighting=part("EDMWeight", sigma_data=0.8),
            ),
            "ema": part("FixedDecay", decay=0.998),
        },
        **emoji_run(steps=2600),
    }


def _dit_text_emoji16() -> dict:
    """The network and data of `dit_emoji16`, conditioned on the emoji's names instead of classes.

    Its names are embedded by all-MiniLM-L6-v2.
    """
    preset = _dit_emoji16()
    preset["description"] = "Small text-to-image DiT under EDM's process, emoji at 16 x 16."
    preset["model"]["backbone"] |= {
        "num_classes": 0,
        "context_width": 384,
        "context_dropout": 0.1,
    }
    preset["text_encoder"] = "minilm:PATH"
    return preset


def _dit_latent_emoji64() -> dict:
    """The network and run of `dit_emoji16` on 16 x 16 x 4 latents of 64 x 64 images, as a small
    autoencoder makes them (`apps/encode.py --autoencoder=train`).
    """
    preset = _dit_emoji16()
    preset["description"] = "Small class-conditional DiT on latents of 64 x 64 emoji."
    preset["model"]["backbone"] |= {"channels": 4}
    # Latents are scaled to a standard deviation of about 1.
    preset["model"]["parameterization"] = part("EDMPreconditioning", sigma_data=1.0)
    preset["model"]["objective"] = part(
        "LogNormalSigma", p_mean=-0.4, p_std=1.4, weighting=part("EDMWeight", sigma_data=1.0)
    )
    preset["data"] = "latents:PATH"
    return preset


def _sit_imagenet256(size: str, patch_size: int) -> dict:
    """SiT on the latents of DiT: straight lines from image to noise, the network predicts their
    velocity.
    """
    preset = _dit_imagenet256(size, patch_size)
    preset["description"] = f"SiT-{size.upper()}/{patch_size} on latents of ImageNet 256 x 256."
    preset["source"] = (
        "Ma et al., 'SiT', 2024, sections 3 and 4, which draws its times uniformly (objective="
        "UniformTime()); logit-normal times are those of Esser et al., 'Scaling Rectified Flow "
        "Transformers', 2024, section 3.1"
    )
    preset["model"]["backbone"]["out_channels"] = 4
    preset["model"] |= _FLOW
    preset["curriculum"]["clusters"] = "uniform"
    preset["sampling"] = {**_FLOW_SAMPLING, "guidance": 1.5}
    return preset


def _sit_emoji16() -> dict:
    """The network and data of `dit_emoji16`, trained as SiT."""
    preset = _dit_emoji16()
    preset["description"] = "Small class-conditional SiT, emoji at 16 x 16."
    preset["model"] |= _FLOW
    preset["curriculum"]["clusters"] = "uniform"
    preset["sampling"] = {**_FLOW_SAMPLING, "guidance": 2.0}
    return preset


_FLOW = {
    "schedule": part("RectifiedFlow"),
    "parameterization": part("Velocity", learned_variance=False),
    "objective": part("LogitNormalTime", mean=0.0, std=1.0, weighting=part("Constant")),
}
_FLOW_SAMPLING = {"sampler": "heun", "num_steps": 25, "options": {"coordinate": "level"}}

_PROTOCOL = (
    "The protocol of the method's authors in their sibling projects, which train DiT so: AdamW "
    "1e-4, EMA 0.9999, batch 256, 400,000 steps, 250 steps of DDPM, guidance 1.5"
)

_DIT_NAMES = [(size, patch_size) for size in DIT_SIZES for patch_size in (2, 4, 8)]

DIT_PRESETS = {
    **{
        f"dit_{size}_{patch}_imagenet256": _dit_imagenet256(size, patch)
        for size, patch in _DIT_NAMES
    },
    "dit_b_2_ffhq256": _dit_ffhq256(),
    "dit_b_2_coco256": _dit_coco256(),
    "dit_emoji16": _dit_emoji16(),
    "dit_text_emoji16": _dit_text_emoji16(),
    "dit_latent_emoji64": _dit_latent_emoji64(),
    **{
        f"sit_{size}_{patch}_imagenet256": _sit_imagenet256(size, patch)
        for size, patch in _DIT_NAMES
    },
    "sit_emoji16": _sit_emoji16(),
}

# EDM's networks.

_SOURCE = "Karras et al., 2022, table 7 and appendix F; the training configurations of NVlabs/edm"

_DDPMPP = {
    "class_name": "SongUNet",
    "channels": 3,
    "label_dropout": 0.0,
    "augment_features": 9,
    "width": 128,
    "embedding_multiplier": 4,
    "num_blocks": 4,
    "attention_resolutions": [16],
}
_NCSNPP = {
    **_DDPMPP,
    "embedding": "fourier",
    "noise_multiplier": 2,
    "encoder": "residual",
    "resample_filter": [1, 3, 3, 1],
}


def _model(
    backbone: dict, augment: float, halflife: float, sigma_data: float = 0.5
) -> dict[str, dict | None]:
    """The parts of a model that EDM trains.

    Args:
        backbone: configuration of the network.
        augment: probability of each augmentation, 0 for none.
        halflife: of the average of the weights, in images.
        sigma_data: standard deviation of the images.
    """
    return {
        "backbone": backbone,
        "schedule": part("EDM", sigma_min=0.002, sigma_max=80.0),
        "parameterization": part("EDMPreconditioning", sigma_data=sigma_data),
        "objective": part(
            "LogNormalSigma",
            p_mean=-1.2,
            p_std=1.2,
            weighting=part("EDMWeight", sigma_data=sigma_data),
        ),
        "ema": part("WarmupDecay", halflife=halflife, rampup=0.05),
        "augmentation": part("Augmentation", probability=augment) if augment else None,
    }


def _training(learning_rate: float, batch_size: int, images: float) -> dict:
    """EDM's training: a rate that rises over the first ten million images and stays.

    Args:
        learning_rate: of Adam.
        batch_size: images a step.
        images: how many images are seen in all.
    """
    return {
        "learning_rate": learning_rate,
        "learning_rate_schedule": "constant",
        "warmup_steps": round(10e6 / batch_size),
        "weight_decay": 0.0,
        "batch_size": batch_size,
        "steps": round(images / batch_size),
        "horizontal_flip": False,
    }


# PAPER's partition for EDM, with its reference patience.
_CURRICULUM = {"clusters": "quantile", "num_clusters": 20, "patience": 200}


def _cifar10(name: str, backbone: dict, num_classes: int) -> dict:
    conditional = "class-conditional" if num_classes else "unconditional"
    sizes = {"image_size": 32, "num_classes": num_classes, "channel_multipliers": [2, 2, 2]}
    return {
        "description": f"EDM with {name}, {conditional}, on CIFAR-10.",
        "source": _SOURCE,
        "model": _model({**backbone, **sizes, "dropout": 0.13}, augment=0.12, halflife=500_000),
        "data": "tfds:cifar10",
        "training": _training(1e-3, batch_size=512, images=200e6),
        "curriculum": _CURRICULUM,
        "sampling": {"sampler": "heun", "num_steps": 18, "guidance": 1.0},
    }


def _ddpmpp_ffhq64() -> dict:
    sizes = {"image_size": 64, "num_classes": 0, "channel_multipliers": [1, 2, 2, 2]}
    return {
        "description": "EDM with DDPM++, unconditional, on FFHQ at 64 x 64.",
        "source": _SOURCE,
        "model": _model({**_DDPMPP, **sizes, "dropout": 0.05}, augment=0.15, halflife=500_000),
        "data": "folder:PATH",
        "training": _training(2e-4, batch_size=256, images=200e6),
        "curriculum": _CURRICULUM,
        "sampling": {"sampler": "heun", "num_steps": 40, "guidance": 1.0},
    }


def _adm_imagenet64() -> dict:
    backbone = {
        "class_name": "DhariwalUNet",
        "image_size": 64,
        "channels": 3,
        "num_classes": 1000,
        "label_dropout": 0.0,
        "width": 192,
        "channel_multipliers": [1, 2, 3, 4],
        "embedding_multiplier": 4,
        "num_blocks": 3,
        "attention_resolutions": [32, 16, 8],
        "dropout": 0.1,
    }
    churn = {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}
    return {
        "description": "EDM with ADM, class-conditional, on ImageNet at 64 x 64.",
        "source": _SOURCE,
        "model": _model(backbone, augment=0.0, halflife=50e6),
        "data": "folder:PATH",
        "training": _training(1e-4, batch_size=4096, images=2.5e9),
        "curriculum": _CURRICULUM,
        "sampling": {"sampler": "heun", "num_steps": 256, "guidance": 1.0, "options": churn},
    }


def _emoji16() -> dict:
    """A U-Net that learns the embedded emoji at 16 x 16 on two CPU cores in minutes."""
    backbone = {
        "class_name": "SongUNet",
        "image_size": 16,
        "channels": 3,
        "num_classes": 8,
        "label_dropout": 0.1,
        "width": 32,
        "channel_multipliers": [1, 2, 2],
        "embedding_multiplier": 4,
        "num_blocks": 2,
        "attention_resolutions": [],  # the block in the middle attends
        "dropout": 0.0,
    }
    # The images' own standard deviation; little noise decides too little at 16 x 16 pixels.
    model = _model(backbone, augment=0.0, halflife=500_000, sigma_data=0.8)
    model["objective"]["config"] |= {"p_mean": -0.4, "p_std": 1.4}
    model["ema"] = part("FixedDecay", decay=0.998)
    return {
        "description": "Small class-conditional U-Net under EDM's process, emoji at 16 x 16.",
        "source": "keras_cdiff; sized for two CPU cores",
        "model": model,
        **emoji_run(steps=3000),
    }


EDM_PRESETS = {
    "edm_ddpmpp_cifar10": _cifar10("DDPM++", _DDPMPP, num_classes=0),
    "edm_ddpmpp_cifar10_cond": _cifar10("DDPM++", _DDPMPP, num_classes=10),
    "edm_ncsnpp_cifar10": _cifar10("NCSN++", _NCSNPP, num_classes=0),
    "edm_ncsnpp_cifar10_cond": _cifar10("NCSN++", _NCSNPP, num_classes=10),
    "edm_ddpmpp_ffhq64": _ddpmpp_ffhq64(),
    "edm_adm_imagenet64": _adm_imagenet64(),
    "edm_emoji16": _emoji16(),
}

PRESETS = {**DIT_PRESETS, **EDM_PRESETS}

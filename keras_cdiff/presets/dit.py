"""Presets of DiT, and of SiT, which is the same network trained on straight lines."""

from keras_cdiff.presets.parts import emoji_run, part

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

"""Presets of EDM's networks."""

from keras_cdiff.presets.parts import emoji_run, part

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

"""The settings of the table: data, network, budget and how many seeds of which method.

One size names the whole table: "cpu" is what docs/evidence.md was measured with, "gpu" the same
questions for larger networks and longer runs, "paper" the paper's data sets and networks at the
settings of their presets, "smoke" a few seconds to try the machinery.
"""

import dataclasses

from methods import METHODS, NUM_CLUSTERS, PATIENCE

from keras_cdiff.presets import DIT_SIZES, part, preset


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data, network and budget, which all methods share.

    Attributes:
        title: what the page calls it.
        preset: the whole configuration to start from, with its "name".
        methods: number of seeds by name of method; the first is what others are compared with.
        data: name of a data set that data_sets.py makes; None for what the preset or --data names.
        learning_rates: those tried on the first method, whose best is the preset's.
        curriculum_rates: those tried on the method "curriculum" besides, which may want another.
        points: points of a curve.
        curve_samples: samples at each.
        final_samples: samples after the last step.
        study: experts and steps of the study that measures clusters, or None.
    """

    title: str
    preset: dict
    methods: dict[str, int]
    data: str | None = None
    learning_rates: tuple[float, ...] = ()
    curriculum_rates: tuple[float, ...] = ()
    points: int = 10
    curve_samples: int = 1000
    final_samples: int = 10_000
    study: tuple[int, int] | None = None


_DDPM = {
    "schedule": part("LinearBeta", num_timesteps=1000),
    "parameterization": part("Epsilon"),
    "objective": part("UniformTimesteps", num_timesteps=1000, weighting=part("Constant")),
}


def _edm(sigma_data: float, p_mean: float, p_std: float) -> dict:
    weighting = part("EDMWeight", sigma_data=sigma_data)
    return {
        "schedule": part("EDM", sigma_min=0.002, sigma_max=80.0),
        "parameterization": part("EDMPreconditioning", sigma_data=sigma_data),
        "objective": part("LogNormalSigma", p_mean=p_mean, p_std=p_std, weighting=weighting),
    }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A setting of the sizes "cpu" and "gpu", but for how large it is.

    Attributes:
        title: what the page calls it.
        data: a name in `_DATA`.
        network: "transformer" or "unet".
        process: schedule, parameterization and objective.
        methods: number of seeds by name of method.
        learning_rate: the best of those that were tried on vanilla at the size "cpu"; of two
            within 1 % that of the lower validation loss.
        learning_rates: those that are tried; none where another comparison's is taken over.
        curriculum_rates: those that are tried on the curriculum, too.
        steps: share of the scale's steps.
        study: whether clusters are measured.
    """

    title: str
    data: str
    network: str
    process: dict
    methods: dict[str, int]
    learning_rate: float
    learning_rates: tuple[float, ...]
    curriculum_rates: tuple[float, ...] = ()
    steps: float = 1.0
    study: bool = False


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large networks and runs of the comparisons are.

    Attributes:
        transformer: width, depth and heads of the DiT.
        patch_sizes: its patches by data set.
        unet: width and blocks a level of the U-Net.
        steps: of a run.
        batch_size: images a step.
        halflife: of the average of the weights, in images; a tenth of those seen until then.
        curve_samples: samples at each point of a curve.
        final_samples: samples after the last step, no more than the data set's training images.
    """

    transformer: dict
    patch_sizes: dict[str, int]
    unet: dict
    steps: int
    batch_size: int
    halflife: float
    curve_samples: int
    final_samples: int = 10_000


_DATA = {
    "emoji": {"image_size": 16, "channels": 3, "num_classes": 8},
    "fashion_mnist": {"image_size": 28, "channels": 1, "num_classes": 10},
    "cifar10": {"image_size": 32, "channels": 3, "num_classes": 10},
}
_TRAINING_IMAGES = {"emoji": 1472, "fashion_mnist": 60_000, "cifar10": 50_000}
_EMOJI_EDM, _CIFAR_EDM = _edm(0.8, -0.4, 1.4), _edm(0.5, -1.2, 1.2)
_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)

_PAIR = {"vanilla": 3, "curriculum": 3}

_COMPARISONS = {
    "emoji_edm": Comparison(
        "Emoji, DiT, EDM",
        "emoji",
        "transformer",
        _EMOJI_EDM,
        {
            **dict.fromkeys(("vanilla", "curriculum"), 5),
            **dict.fromkeys(("difficulty", "fixed", "unordered", "hard_to_easy", "isolated"), 3),
            **dict.fromkeys(("vanilla_min_snr", "curriculum_min_snr"), 3),
            **dict.fromkeys((name for name in METHODS if name.startswith("n")), 1),
        },
        4e-3,
        _RATES,
        steps=3 / 4,
        study=True,
    ),
    "emoji_ddpm": Comparison(
        "Emoji, DiT, timesteps",
        "emoji",
        "transformer",
        _DDPM,
        {"vanilla": 5, "curriculum": 5, "uniform": 3},
        8e-3,
        _RATES,
        _RATES[:2],
    ),
    "fashion_ddpm": Comparison(
        "Fashion-MNIST, DiT, timesteps",
        "fashion_mnist",
        "transformer",
        _DDPM,
        _PAIR,
        4e-3,
        _RATES[1:],
    ),
    "emoji_edm_unet": Comparison(
        "Emoji, U-Net, EDM",
        "emoji",
        "unet",
        _EMOJI_EDM,
        _PAIR,
        4e-3,
        _RATES[:3],
        steps=3 / 8,
    ),
    "cifar_edm": Comparison(
        "CIFAR-10, DiT, EDM",
        "cifar10",
        "transformer",
        _CIFAR_EDM,
        _PAIR,
        8e-3,
        _RATES,
        _RATES[1:2],
        steps=1 / 2,
    ),
}
# The same runs gone on, at the same rate: whether a lead is left when training takes longer.
_COMPARISONS["emoji_edm_long"] = dataclasses.replace(
    _COMPARISONS["emoji_edm"],
    title="Emoji, DiT, EDM, longer",
    methods=_PAIR,
    learning_rates=(),
    steps=3,
    study=False,
)


def _compared(scale: Scale) -> dict[str, Setting]:
    """The settings of the comparisons at a scale."""
    return {
        name: Setting(
            comparison.title,
            _preset(name, comparison, scale),
            comparison.methods,
            comparison.data,
            comparison.learning_rates,
            comparison.curriculum_rates,
            curve_samples=scale.curve_samples,
            final_samples=min(scale.final_samples, _TRAINING_IMAGES[comparison.data]),
            study=(10, scale.steps // 16) if comparison.study else None,
        )
        for name, comparison in _COMPARISONS.items()
    }


def _preset(name: str, comparison: Comparison, scale: Scale) -> dict:
    """A preset whose learning rate stays, so that every point of a curve is comparable."""
    if comparison.network == "transformer":
        patch_size = scale.patch_sizes[comparison.data]
        backbone = {"class_name": "DiT", "patch_size": patch_size, **scale.transformer}
    else:
        backbone = {
            "class_name": "SongUNet",
            "channel_multipliers": [1, 2, 2],
            "embedding_multiplier": 4,
            "attention_resolutions": [],  # the block in the middle attends
            "dropout": 0.0,
            **scale.unet,
        }
    backbone |= {"label_dropout": 0.1, **_DATA[comparison.data]}
    average = part("WarmupDecay", halflife=scale.halflife, rampup=0.1)
    return {
        "name": name,
        "model": {"backbone": backbone, **comparison.process, "ema": average},
        "data": "given",  # by the run
        "training": {
            "learning_rate": comparison.learning_rate,
            "learning_rate_schedule": "constant",
            "warmup_steps": 100,
            "weight_decay": 0.0,
            "batch_size": scale.batch_size,
            "steps": round(comparison.steps * scale.steps),
            "horizontal_flip": False,
        },
        "curriculum": {
            "clusters": "snr" if comparison.process is _DDPM else "quantile",
            "num_clusters": NUM_CLUSTERS,
            "patience": PATIENCE,
        },
        "sampling": {"sampler": "dpm_solver", "num_steps": 15, "guidance": 1.0},
    }


def _published(title: str, name: str) -> Setting:
    """A setting of the size "paper": a preset as it is, with and without its curriculum."""
    return Setting(
        title,
        {**preset(name), "name": name},
        {"vanilla": 3, "preset": 3},
        points=20,
        curve_samples=5000,
        final_samples=50_000,
    )


# Seconds a run, to try the machinery.
_SMOKE = _compared(
    Scale(
        transformer={"width": 16, "depth": 1, "num_heads": 2},
        patch_sizes={"emoji": 4, "fashion_mnist": 7, "cifar10": 4},
        unet={"width": 16, "num_blocks": 1},
        steps=40,
        batch_size=8,
        halflife=50.0,
        curve_samples=16,
        final_samples=32,
    )
)

SIZES = {
    "smoke": {
        "emoji_edm": dataclasses.replace(
            _SMOKE["emoji_edm"],
            methods={"vanilla": 2, "curriculum": 2},
            learning_rates=(),
            points=2,
        )
    },
    "cpu": _compared(
        Scale(
            transformer={"width": 64, "depth": 4, "num_heads": 4},
            patch_sizes={"emoji": 4, "fashion_mnist": 7, "cifar10": 4},
            unet={"width": 16, "num_blocks": 1},
            steps=8000,
            batch_size=32,
            halflife=20_000.0,
            curve_samples=1000,
        )
    ),
    "gpu": _compared(
        Scale(
            transformer=DIT_SIZES["s"],
            patch_sizes={"emoji": 2, "fashion_mnist": 2, "cifar10": 2},
            unet={"width": 64, "num_blocks": 2},
            steps=60_000,
            batch_size=256,
            halflife=500_000.0,
            curve_samples=5000,
        )
    ),
    "paper": {
        "ffhq256": _published("FFHQ 256 x 256, DiT-B/2", "dit_b_2_ffhq256"),
        "imagenet256": _published("ImageNet 256 x 256, DiT-B/2", "dit_b_2_imagenet256"),
        "cifar10": _published("CIFAR-10, EDM's DDPM++", "edm_ddpmpp_cifar10_cond"),
    },
}

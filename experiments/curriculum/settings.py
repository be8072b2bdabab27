"""The table of runs: methods, settings (data, network, budget, seeds), and a run of each cell.

One size names the whole table: "cpu" is what docs/evidence.md was measured with, "gpu" the same
questions for larger networks and longer runs, "paper" the paper's data sets and networks at the
settings of their presets, "smoke" a few seconds to try the machinery.
"""

import argparse
import dataclasses
from pathlib import Path

from keras_cdiff.presets import DIT_SIZES, part, preset


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train, as arguments of `keras_cdiff.training.resolve`."""

    title: str  # on the page
    options: dict  # the arguments
    measured_clusters: bool = False  # whether its clusters come from a study of the setting
    unordered: str | None = None  # the method of fixed stages whose steps it takes shuffled


# What the short runs of the sizes "cpu" and "gpu" share: an early guess, chosen before any result
# was seen. The grid varies both numbers.
NUM_CLUSTERS, PATIENCE = 5, 100
# As long as the stages of the first run of the curriculum (emoji_edm, seed 0) lasted on average.
FIXED_STEPS = 330
GRID = tuple((n, tau) for n in (5, 10, 20) for tau in (25, 100, 200))

_STAGED = {"num_clusters": NUM_CLUSTERS, "patience": PATIENCE}

# Where no clusters are named they are the setting's, those of the paper: SNR clusters of timesteps,
# quantiles of EDM's noise.
METHODS = {
    "vanilla": Method("vanilla", {"curriculum": "none"}),
    "curriculum": Method("curriculum", _STAGED),
    "uniform": Method("curriculum, uniform clusters", {**_STAGED, "clusters": "uniform"}),
    "difficulty": Method(
        "curriculum, clusters of equal measured difficulty",
        {"patience": PATIENCE},
        measured_clusters=True,
    ),
    "fixed": Method(
        "control: stages of fixed length",
        {"num_clusters": NUM_CLUSTERS, "stage_steps": FIXED_STEPS},
    ),
    # Whether it is their order that matters, or only how often each noise level is trained.
    "unordered": Method(
        "control: the steps of these stages in random order",
        {"curriculum": "none"},
        unordered="fixed",
    ),
    "hard_to_easy": Method("control: hard to easy", {**_STAGED, "curriculum": "hard_to_easy"}),
    "isolated": Method("control: each cluster alone", {**_STAGED, "curriculum": "isolated"}),
    "vanilla_min_snr": Method(
        "vanilla, min-SNR weights", {"curriculum": "none", "weighting": "min_snr"}
    ),
    "curriculum_min_snr": Method(
        "curriculum, min-SNR weights", {**_STAGED, "weighting": "min_snr"}
    ),
    **{
        f"n{n}_tau{tau}": Method(
            f"curriculum, N = {n}, tau = {tau}", {"num_clusters": n, "patience": tau}
        )
        for n, tau in GRID
        if (n, tau) != (NUM_CLUSTERS, PATIENCE)
    },
    # The presets' own number of clusters and patience.
    "preset": Method("curriculum of the preset", {}),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data, network and budget, which all methods share."""

    title: str  # on the page
    preset: dict  # the whole configuration to start from, with its "name"
    methods: dict[str, int]  # seeds by method; others are compared with the first
    data: str | None = None  # of data_sets.py; None for what the preset or --data names
    learning_rates: tuple[float, ...] = ()  # tried on the first method; the preset's is the best
    curriculum_rates: tuple[float, ...] = ()  # tried on the method "curriculum" besides
    points: int = 10  # of a curve
    curve_samples: int = 1000  # at each of them
    final_samples: int = 10_000  # after the last step
    study: tuple[int, int] | None = None  # experts and steps of the study that measures clusters


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
    """A setting of the sizes "cpu" and "gpu", but for how large it is."""

    title: str  # on the page
    data: str  # a name in `_DATA`
    network: str  # "transformer" or "unet"
    process: dict  # schedule, parameterization and objective
    methods: dict[str, int]  # seeds by method
    # The best of those tried on vanilla at the size "cpu"; of two within 1 % that of the lower
    # validation loss.
    learning_rate: float
    learning_rates: tuple[float, ...]  # to be tried; none where another comparison's is taken over
    curriculum_rates: tuple[float, ...] = ()  # tried on the curriculum, too
    steps: float = 1.0  # share of the scale's steps
    study: bool = False  # whether clusters are measured


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large networks and runs of the comparisons are."""

    transformer: dict  # width, depth and heads of the DiT
    patch_sizes: dict[str, int]  # of the DiT, by data set
    unet: dict  # width and blocks a resolution
    steps: int  # of a run
    batch_size: int
    halflife: float  # of the average of the weights, in images; at most a tenth of those seen
    curve_samples: int  # at each point of a curve
    final_samples: int = 10_000  # after the last step, no more than there are training images


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


@dataclasses.dataclass(frozen=True)
class Run:
    """One cell of the table."""

    setting: str
    method: str
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        return f"{self.setting}/{self.method}/lr{self.learning_rate:g}/seed{self.seed}"


def runs(size: str) -> list[Run]:
    """Returns all runs of a size: those that tune the rate first, then seed by seed."""
    table = []
    for name, setting in SIZES[size].items():
        rate = setting.preset["training"]["learning_rate"]
        first = next(iter(setting.methods))
        table += [Run(name, first, 0, value) for value in setting.learning_rates]
        table += [Run(name, "curriculum", 0, value) for value in setting.curriculum_rates]
        for seed in range(max(setting.methods.values())):
            table += [Run(name, m, seed, rate) for m, n in setting.methods.items() if seed < n]
    return list(dict.fromkeys(table))


def find_run(size: str, name: str) -> Run:
    """Returns the run of a name."""
    for run in runs(size):
        if run.name == name:
            return run
    raise ValueError(
        f"A run must be one of the table's, which run.py --size={size} --list shows. "
        f"Received: run={name!r}"
    )


def workdir_of(run: Run, size: str, output: Path) -> Path:
    """Returns the folder of a run within that of all runs."""
    return output / size / "runs" / run.name


def run_parser(words: str) -> argparse.ArgumentParser:
    """Returns the flags of a program that works on one run."""
    parser = argparse.ArgumentParser(description=words.split("\n")[0])
    parser.add_argument("--run", required=True, help="name of the run; see run.py --list")
    parser.add_argument("--size", default="cpu", choices=SIZES)
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs")
    return parser

"""The ways to train that are compared, as arguments of `keras_cdiff.training.resolve`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train, as arguments of `keras_cdiff.training.resolve`.

    Attributes:
        title: what the page calls it.
        options: the arguments.
        measured_clusters: whether its clusters come from a study of the setting.
        unordered: the method of fixed stages whose steps it takes in random order, if any.
    """

    title: str
    options: dict
    measured_clusters: bool = False
    unordered: str | None = None


def _staged(num_clusters: int, patience: int, **options: object) -> dict:
    return {"num_clusters": num_clusters, "patience": patience, **options}


# What the short runs of the sizes "cpu" and "gpu" share: an early guess, chosen before any result
# was seen. The grid varies both numbers.
NUM_CLUSTERS, PATIENCE = 5, 100
# As long as the stages of the first run of the curriculum (emoji_edm, seed 0) lasted on average.
FIXED_STEPS = 330
GRID = tuple((n, tau) for n in (5, 10, 20) for tau in (25, 100, 200))

# Where no clusters are named they are the setting's, those of the paper: SNR clusters of timesteps,
# quantiles of EDM's noise.
METHODS = {
    "vanilla": Method("vanilla", {"curriculum": "none"}),
    "curriculum": Method("curriculum", _staged(NUM_CLUSTERS, PATIENCE)),
    "uniform": Method(
        "curriculum, uniform clusters", _staged(NUM_CLUSTERS, PATIENCE, clusters="uniform")
    ),
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
    "hard_to_easy": Method(
        "control: hard to easy", _staged(NUM_CLUSTERS, PATIENCE, curriculum="hard_to_easy")
    ),
    "isolated": Method(
        "control: each cluster alone", _staged(NUM_CLUSTERS, PATIENCE, curriculum="isolated")
    ),
    "vanilla_min_snr": Method(
        "vanilla, min-SNR weights", {"curriculum": "none", "weighting": "min_snr"}
    ),
    "curriculum_min_snr": Method(
        "curriculum, min-SNR weights", _staged(NUM_CLUSTERS, PATIENCE, weighting="min_snr")
    ),
    **{
        f"n{n}_tau{tau}": Method(f"curriculum, N = {n}, tau = {tau}", _staged(n, tau))
        for n, tau in GRID
        if (n, tau) != (NUM_CLUSTERS, PATIENCE)
    },
    # The presets' own number of clusters and patience.
    "preset": Method("curriculum of the preset", {}),
}

"""The curriculum of a training run as plain data: its kind, its clusters, when a stage ends."""

import dataclasses
from pathlib import Path

import keras

from keras_cdiff.common.checks import check_choice
from keras_cdiff.curriculum import Clusters
from keras_cdiff.training.building import make_clusters, make_pacing

CURRICULA = ("paper", "none", "hard_to_easy", "isolated")
CLUSTERS = ("uniform", "snr", "quantile")


def resolve_curriculum(
    model: dict,
    staging: dict,
    kind: str,
    clusters: str | Clusters | None = None,
    num_clusters: int | None = None,
    patience: int | None = None,
    stage_steps: int | None = None,
) -> tuple[dict | None, list[float]]:
    """Returns a run's curriculum, None for plain training, and the edges of its clusters.

    Args:
        model: the configuration of the model, with its schedule and objective.
        staging: the preset's curriculum, the defaults of what is None.
        kind, clusters, num_clusters, patience, stage_steps: as for `training.resolve`.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """
    check_choice("curriculum", kind, CURRICULA)
    if patience is not None and stage_steps is not None:
        raise ValueError(
            "A stage ends by patience or after a fixed number of steps: leave one of both out. "
            f"Received: patience={patience}, stage_steps={stage_steps}"
        )
    staging = {**staging, **given(num_clusters=num_clusters)}
    if patience is not None or stage_steps is not None:  # in place of the preset's, of either kind
        staging = {k: v for k, v in staging.items() if k not in ("patience", "stage_steps")}
        staging |= given(patience=patience, stage_steps=stage_steps)
    make_pacing(staging)
    wanted = staging["clusters"] if clusters is None else clusters
    chosen = _find_clusters(wanted, model, staging, num_clusters)
    staging.update(clusters=chosen.name, num_clusters=chosen.num_clusters)
    edges = chosen.get_config()["edges"]
    return (None if kind == "none" else {"kind": kind, **staging, "edges": edges}), edges


def _find_clusters(
    clusters: str | Clusters, model: dict, staging: dict, num_clusters: int | None
) -> Clusters:
    """The clusters that are given, or read from a file, or made as their kind says."""
    if isinstance(clusters, str) and clusters in CLUSTERS:
        made = make_clusters(model, {**staging, "clusters": clusters})
        return dataclasses.replace(made, name=clusters)
    if not isinstance(clusters, Clusters) and not Path(clusters).is_file():
        raise ValueError(
            f"`clusters` must be one of {', '.join(CLUSTERS)}, or the path of a JSON file that "
            f"`Clusters.save` wrote. Received: clusters={str(clusters)!r}"
        )
    found = clusters if isinstance(clusters, Clusters) else Clusters.load(clusters)
    if num_clusters not in (None, found.num_clusters):
        raise ValueError(
            f"The clusters that are given are {found.num_clusters}: leave their number out. "
            f"Received: clusters={str(clusters)!r}, num_clusters={num_clusters}"
        )
    schedule = keras.saving.deserialize_keras_object(model["schedule"])
    found.check_coordinate(schedule.coordinate)
    low, high = schedule.bounds
    if found.edges[0] > low or found.edges[-1] < high:
        raise ValueError(
            f"The clusters must cover the schedule's levels, {low:g} to {high:g}, or the rest would"
            " never be trained. "
            f"Received: clusters from {found.edges[0]:g} to {found.edges[-1]:g}"
        )
    return found


def given(**values: object) -> dict:
    """Returns the values that are not None, by name."""
    return {name: value for name, value in values.items() if value is not None}

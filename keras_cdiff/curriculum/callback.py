"""The callback that trains the clusters of noise levels one stage after the other."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.curriculum.clusters import ORDERS, Clusters
from keras_cdiff.curriculum.pacing import Pacing, PatiencePacing


class CurriculumCallback(keras.callbacks.Callback):
    """Restricts training to part of the noise range and widens it when a stage has converged.

    At stage n of N the model draws noise levels from the n easiest (noisiest) clusters; when the
    pacing ends the stage, the next cluster joins. A stage change assigns one variable: nothing is
    recompiled and the optimizer and the averaged weights carry on. The last stage trains the whole
    range to the end. Stage and pacing live in `model.curriculum_state`, are written into it before
    every save, and are picked up from it when training begins.

    Args:
        clusters: `Clusters`, or their ascending edges in the native coordinate.
        pacing: decides when a stage ends; defaults to `PatiencePacing(200)`.
        order: "easy_to_hard" (much noise first), or "hard_to_easy" as a control.
        cumulative: whether a stage keeps the clusters before it; if not, each cluster is trained
            alone, and the whole range once all have been.
        check_every: look at every k-th iteration's loss only; 1 is exact per iteration.
        verbose: whether to print each stage with its interval and why the one before ended.

    Attributes:
        stage: 1..N, or N + 1 for the whole range after isolated stages; 0 before training.
        interval: the stage's noise levels [low, high).
        history: one dict a stage: stage, interval, iteration at which it began, and reason.

    Source: Kim et al., "Denoising Task Difficulty-based Curriculum for Training Diffusion Models",
        ICLR 2025.
    """

    def __init__(
        self,
        clusters: Clusters | Sequence[float],
        pacing: Pacing | None = None,
        order: str = "easy_to_hard",
        cumulative: bool = True,
        check_every: int = 1,
        verbose: int = 1,
    ):
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f"`order` must be one of {ORDERS}. Received: order={order!r}")
        self.clusters = clusters if isinstance(clusters, Clusters) else Clusters(clusters)
        self.pacing = pacing if pacing is not None else PatiencePacing(200)
        self.order = order
        self.cumulative = cumulative
        self.check_every = check_integer("check_every", check_every)
        self.verbose = verbose
        self.stage = 0
        self.interval = self.clusters.full_interval
        self.history = []

    @property
    def num_stages(self) -> int:
        """N, or N + 1 where the whole range follows isolated clusters."""
        return self.clusters.num_clusters + (0 if self.cumulative else 1)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.clusters = self._within(model.objective.support, model.schedule.coordinate)
        model.track_clusters(self.clusters.edges)
        # Held directly: on JAX every use of `self.model` during fit copies the state back.
        self._state = model.curriculum_state

    def on_train_begin(self, logs: dict | None = None) -> None:
        stage, *pacing_state = keras.ops.convert_to_numpy(self._state).tolist()
        self._iteration = int(keras.ops.convert_to_numpy(self.model.iteration))
        self.model.before_save(self._write_state)
        if stage == 0:
            self.pacing.reset()
            self._enter(1, "training began")
            return
        if stage > self.num_stages:
            raise ValueError(
                f"The model was saved at a stage beyond this curriculum's {self.num_stages}: give "
                "the "
                f"clusters that it was trained with. Received: stage={stage:g}"
            )
        self.pacing.set_state(pacing_state)
        self._enter(int(stage), "training resumed")

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._last_batch = -1
        self._waiting = 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        # With steps_per_execution > 1 this is called once a group of iterations.
        iterations = batch - self._last_batch
        self._last_batch = batch
        self._iteration += iterations
        self._waiting += iterations
        if self.stage == self.num_stages or self._waiting < self.check_every:
            return
        waited, self._waiting = self._waiting, 0
        if self.pacing.update(float(logs["batch_loss"]), waited):
            self._enter(self.stage + 1, self.pacing.reason)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._write_state()

    def on_train_end(self, logs: dict | None = None) -> None:
        self._write_state()
        self.model.before_save(None)

    def _enter(self, stage: int, reason: str) -> None:
        previous, self.stage = self.stage, stage
        if stage > self.clusters.num_clusters:
            self.interval = self.clusters.full_interval
        else:
            self.interval = self.clusters.stage_interval(stage, self.order, self.cumulative)
        self.model.noise_interval.assign(np.asarray(self.interval, dtype="float32"))
        self._write_state()
        record = {
            "stage": stage,
            "interval": list(self.interval),
            "iteration": self._iteration,
            "reason": reason,
        }
        self.history.append(record)
        if self.verbose:
            name = self.model.schedule.coordinate
            low, high = self.interval
            cause = f"stage {previous} ended: {reason}" if previous else reason
            print(
                f"\nCurriculum stage {stage}/{self.num_stages} at iteration {self._iteration}: "
                f"{name} in [{low:.4g}, {high:.4g}) ({cause})",
                flush=True,
            )

    def _within(self, support: tuple[float, float], coordinate: str) -> Clusters:
        """Returns the clusters, the outer two cut off where no continuous level is drawn."""
        self.clusters.check_coordinate(coordinate)
        edges = np.asarray(self.clusters.edges, dtype="float64")
        inside = np.clip(edges, *support)
        changed = inside[[0, -1]].tolist() != edges[[0, -1]].tolist()
        if np.any(np.diff(inside) <= 0.0) or (changed and coordinate == "timestep"):
            low, high = support
            raise ValueError(
                f"The clusters must lie within the noise levels [{low:g}, {high:g}) that the "
                f"model's objective draws. Received: edges from {edges[0]:g} to {edges[-1]:g}"
            )
        return dataclasses.replace(self.clusters, edges=inside) if changed else self.clusters

    def _write_state(self) -> None:
        self._state.assign(np.asarray([self.stage, *self.pacing.state], dtype="float32"))

"""The control that tells the order of a curriculum's stages from what is trained in them."""

import keras
import numpy as np

from keras_cdiff.curriculum import Clusters


class UnorderedStages(keras.callbacks.Callback):
    """Trains the steps of stages of fixed length in blocks of random order, then the whole range.

    Each range of noise is trained for as many steps as under `FixedPacing(stage_steps)`, and the
    last stage, the whole range, for the same steps: only the order within the first ones differs.
    It depends on the seed alone, so that a resumed run goes on exactly. `steps_per_execution` must
    be 1.

    Args:
        clusters: of the stages; stage n of N trains the n noisiest.
        stage_steps: steps of each stage but the last.
        seed: of the order.
        block: steps in a row with the same range; it divides `stage_steps`.

    Raises:
        ValueError: if `block` does not divide `stage_steps`.
    """

    def __init__(self, clusters: Clusters, stage_steps: int, seed: int = 0, block: int = 10):
        super().__init__()
        if block < 1 or stage_steps % block:
            raise ValueError(
                "`block` must be at least 1 and divide `stage_steps`. Received: "
                f"block={block}, stage_steps={stage_steps}"
            )
        self.clusters, self.block = clusters, block
        stages = np.repeat(np.arange(1, clusters.num_clusters), stage_steps // block)
        self.stages = np.random.default_rng(seed).permutation(stages)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._iteration = int(keras.ops.convert_to_numpy(self.model.iteration))
        self._enter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._iteration += 1
        if self._iteration % self.block == 0 and self._iteration // self.block <= len(self.stages):
            self._enter()

    def _enter(self) -> None:
        number, interval = self._iteration // self.block, self.clusters.full_interval
        if number < len(self.stages):
            interval = self.clusters.stage_interval(int(self.stages[number]))
        inside = np.clip(interval, *self.model.objective.support)
        self.model.noise_interval.assign(inside.astype("float32"))

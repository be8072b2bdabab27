"""The loss by noise level on levels and noises that stay the same, so that it can be compared."""

import itertools
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff.backbones.backbone import holds_latents
from keras_cdiff.common.batch_function import model_function
from keras_cdiff.common.checks import check_integer
from keras_cdiff.curriculum import Clusters
from keras_cdiff.distribution import share, sharing
from keras_cdiff.model.checks import check_contexts, check_images, check_labels
from keras_cdiff.objectives import Objective

Tensor = keras.KerasTensor


class ValidationLoss:
    """The weighted loss of a model for each cluster of noise levels, on a fixed grid of levels and
    noises.

    Within cluster c the levels are the quantiles (j + 1/2) / L, j = 0..L-1, of the objective's
    density restricted to the cluster, and

    loss_c = mean over images i and levels j of w(t_cj) mean (output - target)^2,
    loss = sum_c m_c loss_c / sum_c m_c,

    m_c being the density's mass of the cluster: an estimate of the training loss on the union of
    the clusters, whatever a curriculum trains at the moment. The noise of (image i, cluster c,
    level j) is a function of `seed` alone, on every backend, so stages and runs differ by their
    weights alone. The processes of `distribution.shared_by` share the C L N noisy images.

    Args:
        images: float (N, H, W, C) in [-1, 1], at least two, that training does not see.
        labels: classes (N,), or None for an unconditional model, or for the null label.
        clusters: `Clusters` or their edges, ascending, in the native coordinate; what lies outside
            of the objective's support is cut off. None: the clusters of the model's `cluster_loss`,
            which are those of its curriculum while it trains.
        levels_per_cluster: L >= 1.
        seed: of all noise, >= 0.
        batch_size: images that the network sees at once; it changes no loss beyond rounding.
        context: the images' contexts (N, L, D), or None for a model without, or for the null
            context.

    Raises:
        ValueError: if an argument is not of that kind.

    Example:

    ```python
    validation_loss = ValidationLoss(held_out, clusters=uniform_clusters(model.schedule, 20))
    validation_loss(model)["cluster_loss"]
    ```
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | Sequence[int] | None = None,
        clusters: Clusters | Sequence[float] | None = None,
        levels_per_cluster: int = 4,
        seed: int = 0,
        batch_size: int = 64,
        context: np.ndarray | None = None,
    ):
        images = np.asarray(images)
        if images.ndim != 4 or len(images) < 2:
            raise ValueError(
                "`images` must be an array (N, H, W, C) of at least two images, from whose spread "
                f"the standard errors come. Received: images of shape {images.shape}"
            )
        check_images(images, images.shape[1:], holds_latents(images.shape[-1]))
        labels = None if labels is None else np.asarray(labels)
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(
                f"`labels` must be {len(images)} classes, one an image. "
                f"Received: labels of shape {labels.shape}"
            )
        context = None if context is None else np.asarray(context, np.float32)
        if context is not None and (context.ndim != 3 or len(context) != len(images)):
            raise ValueError(
                f"`context` must be {len(images)} contexts (N, L, D), one an image. "
                f"Received: context of shape {context.shape}"
            )
        self.context = context
        if clusters is not None and not isinstance(clusters, Clusters):
            clusters = Clusters(clusters)
        self.images, self.labels, self.clusters = images, labels, clusters
        self.levels_per_cluster = check_integer(
            "levels_per_cluster", levels_per_cluster, 1, None, "quantiles of each cluster"
        )
        self.seed = check_integer("seed", seed, 0, None, "of all noise")
        self.batch_size = check_integer("batch_size", batch_size, 1, None, "images at once")

    def __call__(self, model: keras.Model, use_ema: bool = True) -> dict:
        """Evaluates the loss; the model's metrics, noise streams and interval stay as they are.

        Args:
            model: a `DiffusionModel`.
            use_ema: whether the averaged weights answer, if the model keeps an average.

        Returns:
            A dict: "loss" and its "standard_error", that of a mean over N random images; for each
            of the C clusters "cluster_loss", "cluster_standard_error" and "cluster_mass"; the grid,
            "cluster_edges" (C + 1) and "levels" (C x L); "iteration", "num_images", "seed" and
            "use_ema".

        Raises:
            ValueError: if images, labels or clusters do not fit the model.
        """
        edges = self.check(model)
        use_ema = bool(use_ema and model.ema_backbone is not None)
        levels = middle_levels(model.objective, edges, self.levels_per_cluster)
        mass = np.diff(cumulative_mass(model.objective, edges))
        losses = self._losses(model, use_ema, levels).mean(axis=1)  # (C, N)
        overall = np.average(losses, axis=0, weights=mass)
        return {
            "iteration": int(ops.convert_to_numpy(model.iteration)),
            "use_ema": use_ema,
            "num_images": len(self.images),
            "seed": self.seed,
            "loss": float(overall.mean()),
            "standard_error": float(_standard_error(overall)),
            "cluster_loss": losses.mean(axis=1).tolist(),
            "cluster_standard_error": _standard_error(losses).tolist(),
            "cluster_mass": mass.tolist(),
            "cluster_edges": edges.tolist(),
            "levels": levels.tolist(),
        }

    def check(self, model: keras.Model) -> np.ndarray:
        """Returns the edges of the clusters, float64 (C + 1,), within the objective's support.

        Raises:
            ValueError: if images, labels or clusters do not fit the model.
        """
        if self.images.shape[1:] != model.image_shape:
            raise ValueError(
                f"`images` must be of the model's shape, {model.image_shape}. "
                f"Received: images of shape {self.images.shape}"
            )
        if self.labels is not None:
            check_labels(self.labels, model.num_classes)
        if self.context is not None:
            check_contexts(self.context, model.network_inputs.context_width)
        clusters = Clusters(model.cluster_loss.edges) if self.clusters is None else self.clusters
        return _within(clusters.edges, model.objective, model.schedule.coordinate)

    def _losses(self, model: keras.Model, use_ema: bool, levels: np.ndarray) -> np.ndarray:
        """Returns the loss of each cluster, level and image, (C, L, N), in float64."""
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()  # within fit() on JAX the weights are not on the model
        evaluate = model_function(model, _sample_losses, use_ema)
        shape = (*levels.shape, len(self.images))
        count = int(np.prod(shape))
        size = min(self.batch_size, -(-count // sharing().count))
        labels = self.labels
        if labels is None and model.num_classes:
            labels = np.full(len(self.images), model.num_classes)
        # The last batch repeats its last sample, so that nothing compiles again.
        batches = [
            np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)
        ]

        def work(rows: np.ndarray) -> np.ndarray:
            cluster, level, image = np.unravel_index(rows, shape)
            inputs = {
                "image": self.images[image].astype("float32"),
                "level": levels[cluster, level],
                "noise": np.stack(list(map(self._noise, cluster, level, image))),
            }
            if labels is not None:
                inputs["label"] = labels[image].astype("int32")
            if self.context is not None:
                inputs["context"] = self.context[image]
            return evaluate(inputs)

        losses = np.concatenate(list(share(batches, work)))[:count]
        return losses.astype(np.float64).reshape(shape)

    def _noise(self, cluster: int, level: int, image: int) -> np.ndarray:
        # The counter's first word counts the numbers drawn, the others tell the streams apart.
        counter = [0, int(level), int(cluster), int(image)]
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
        return generator.standard_normal(self.images.shape[1:], dtype="float32")


def _sample_losses(model: keras.Model, inputs: dict, use_ema: bool) -> Tensor:
    """Returns the weighted loss (B,) of images on given levels and noise."""
    drawn = (inputs[name] for name in ("image", "level", "noise"))
    condition = {name: inputs.get(name) for name in ("label", "context")}
    outputs = model.process.forward(model.network(use_ema), *drawn, condition)
    return model.process.losses(**outputs)


def middle_levels(objective: Objective, edges: np.ndarray, count: int) -> np.ndarray:
    """Returns the levels in the middle of L = `count` equally probable parts of each cluster,
    float32 (C, L), ascending.
    """
    middles = ops.convert_to_tensor((np.arange(count) + 0.5) / count, dtype="float32")
    intervals = [ops.convert_to_tensor(i, "float32") for i in itertools.pairwise(edges)]
    return np.stack([ops.convert_to_numpy(objective.draw(middles, i)) for i in intervals])


def cumulative_mass(objective: Objective, levels: np.ndarray) -> np.ndarray:
    """Returns the probability with which an objective draws a level below each of `levels`.

    F(t), as the inverse of `host_quantile` by bisection: the middle of all p whose quantile is t,
    which for timesteps, whose quantiles are rounded, is t / T.
    """
    levels = np.asarray(levels, dtype=np.float64)

    def first(reached: np.ufunc) -> np.ndarray:
        low, high = np.zeros(levels.shape), np.ones(levels.shape)
        for _ in range(64):
            middle = (low + high) / 2.0
            beyond = reached(objective.host_quantile(middle), levels)
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        return high

    mass = (first(np.greater_equal) + first(np.greater)) / 2.0
    lowest, highest = objective.support
    return np.where(levels <= lowest, 0.0, np.where(levels >= highest, 1.0, mass))


def _within(edges: np.ndarray, objective: Objective, coordinate: str) -> np.ndarray:
    """Returns the edges, the outer two cut off where no level is drawn."""
    low, high = objective.support
    inside = np.clip(edges, low, high)
    timesteps = coordinate == "timestep"
    ascending = bool(np.all(np.diff(inside) > 0.0))
    if not ascending or (timesteps and not np.array_equal(np.round(inside), edges)):
        kind = "whole timesteps" if timesteps else "noise levels"
        raise ValueError(
            f"The edges of the clusters must be {kind} within [{low:g}, {high:g}], which the "
            f"model's objective draws. Received: edges={edges.tolist()}"
        )
    if not np.diff(cumulative_mass(objective, inside[[0, -1]])) > 0.0:
        raise ValueError(
            "The clusters must hold levels that the model's objective draws at times: widen them. "
            f"Received: edges={edges.tolist()}"
        )
    return inside


def _standard_error(losses: np.ndarray) -> np.ndarray:
    """Returns the standard error of the mean over the last axis, that of the images."""
    with np.errstate(invalid="ignore"):  # the loss of a run that diverged may be infinite
        return losses.std(axis=-1, ddof=1) / np.sqrt(losses.shape[-1])

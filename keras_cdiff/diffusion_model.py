"""DiffusionModel: a network, a noise schedule, a parameterization and an objective, trained by
`fit`.
"""

import types
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff import replica
from keras_cdiff.augmentation import Augmentation, check_augmentation
from keras_cdiff.averages import Averages
from keras_cdiff.composition import Composition
from keras_cdiff.denoising import Denoising
from keras_cdiff.ema import Decay, FixedDecay
from keras_cdiff.metrics import LastValue, LossPerCluster
from keras_cdiff.objectives import Objective
from keras_cdiff.parameterizations import Parameterization
from keras_cdiff.schedules import Schedule
from keras_cdiff.train_step import TrainStep
from keras_cdiff.validation import (
    check_batch,
    check_contexts,
    check_images,
    check_labels,
    check_names,
    check_parts,
)

Tensor = keras.KerasTensor

# Draws of random arrays in one step are fewer than this, so the streams of two steps never meet.
_DRAWS_PER_STEP = 256


@keras.saving.register_keras_serializable("keras_cdiff")
class DiffusionModel(TrainStep, Averages, Denoising, Composition, keras.Model):
    """A diffusion model that `fit` trains: each step draws noise levels, adds noise and learns to
    remove it.

    `fit`, `evaluate` and the like take images (B, H, W, C) in [-1, 1], or (images, labels), or a
    dict with "image" and optionally "label" and "context" (B, L, D), the embedded tokens of a text,
    rows of zeros being padding; "level" (B,) and "noise" (B, H, W, C) may be given too and are then
    not drawn.

    Noise and levels of a step are a function of (seed, iteration) alone. The average of the weights
    lives in a second copy of the network, `ema_backbone`; see also `averages`.

    Args:
        backbone: the network, such as `keras_cdiff.backbones.DiT`.
        schedule: a `Schedule`.
        parameterization: a `Parameterization`.
        objective: an `Objective`; its support must lie on the schedule.
        ema: decay profile of the average of the weights; several keep as many averages, of which
            the first is `ema_backbone`; None keeps none.
        seed: seed of all noise, >= 0.
        augmentation: what is done to images in training, or None; the backbone must have been built
            with augment_features=9 to be told of it.

    Attributes:
        noise_interval: weight (2,), the levels [low, high) that training draws, in the native
            coordinate.
        iteration: weight (), training steps taken.
        curriculum_state: weight (4,), kept for a curriculum so that it is saved with the model.

    Example:

    ```python
    model = keras_cdiff.DiffusionModel.from_preset("dit_emoji16", num_classes=0)
    model.compile(keras.optimizers.AdamW(1e-3))
    model.fit(images, batch_size=32, epochs=10)
    samples = keras_cdiff.sample(model, 16)
    ```
    """

    def __init__(
        self,
        backbone: keras.Model,
        schedule: Schedule,
        parameterization: Parameterization,
        objective: Objective,
        ema: Decay | Sequence[Decay] | None = FixedDecay(0.9999),  # noqa: B008 (immutable)
        seed: int = 0,
        augmentation: Augmentation | None = None,
        name: str | None = None,
    ):
        # Noise levels and losses are float32 under every policy; the backbone keeps its own.
        super().__init__(dtype="float32", autocast=False, name=name)
        check_parts(backbone, schedule, parameterization, objective)
        check_augmentation(augmentation, backbone)
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"`seed` must be an integer >= 0. Received: seed={seed!r}")
        self.backbone = backbone
        self.schedule = schedule
        self.parameterization = parameterization
        self.objective = objective
        self.augmentation = augmentation
        self.seed = int(seed)
        self.keep_averages(ema)

        keys = np.random.SeedSequence(self.seed).generate_state(3) & 0x7FFFFFFF
        self._training_key, self._dropout_key, evaluation_key = map(int, keys)
        self.noise_generator = keras.random.SeedGenerator(self._training_key)
        self.evaluation_generator = keras.random.SeedGenerator(evaluation_key)
        self.build()

    def build(self, input_shape: object = None) -> None:
        def state(name: str, value: Sequence[float] | float, dtype: str = "float32"):
            return self.add_weight(
                name=name,
                shape=np.shape(value),
                initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype=dtype),
                dtype=dtype,
                trainable=False,
                autocast=False,
            )

        self.noise_interval = state("noise_interval", self.objective.support)
        self.curriculum_state = state("curriculum_state", [0.0] * 4)
        self.iteration = state("iteration", 0, dtype="int")
        self.batch_loss = LastValue(name="batch_loss")
        # In a namespace, because Keras would go on listing a metric that was replaced.
        self._untracked = types.SimpleNamespace(before_save=None, cluster_loss=None)
        self.track_clusters(np.unique(self.objective.host_quantile(np.linspace(0.0, 1.0, 11))))

    def call(self, inputs: object, training: bool = False) -> dict[str, Tensor]:
        """Adds noise to the images, augmented in training, and asks the network.

        Returns:
            {"image", "level", "noise", "output"}: the images used, what was drawn, the answer.
        """
        batch = self.batch(inputs)
        image = ops.cast(batch["image"], "float32")
        condition = {name: batch.get(name) for name in ("label", "context")}
        if training:
            self._seed_step()
        generator = self.noise_generator if training else self.evaluation_generator
        if training and self.augmentation is not None:
            image, condition["augment"] = self.augmentation(image, generator)
        level, noise = batch.get("level"), batch.get("noise")
        if level is None:
            uniform = replica.uniform(ops.shape(image)[:1], generator)
            level = self.objective.draw(uniform, ops.convert_to_tensor(self.noise_interval))
        if noise is None:
            noise = replica.normal(ops.shape(image), generator)
        noisy = self.add_noise(image, noise, level)
        output = self.ask(self.backbone, noisy, level, condition, training)
        level = ops.cast(level, "float32")
        return {"image": image, "level": level, "noise": noise, "output": output}

    # Training

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | str | None = None,
        jit_compile: bool | str = "auto",
        **kwargs: object,
    ) -> None:
        """Configures training.

        Args:
            optimizer: defaults to AdamW(1e-4) without weight decay, as for DiT.
            jit_compile: whether XLA (or torch.compile) compiles the step. "auto" is Keras' choice,
                except on TensorFlow, where it is what the backbone is faster with.
            **kwargs: other arguments of `keras.Model.compile`.
        """
        if kwargs.get("loss") is not None:
            raise ValueError(
                "The loss of a DiffusionModel is its objective: leave `loss` out of compile(). "
                f"Received: loss={kwargs['loss']!r}"
            )
        if jit_compile == "auto" and not kwargs.get("run_eagerly"):
            jit_compile = self.prefers_jit()
        optimizer = optimizer or keras.optimizers.AdamW(1e-4, weight_decay=0.0)
        with self.variable_scope():
            super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

    def prefers_jit(self) -> bool | str:
        """Returns the `jit_compile` that suits the backbone: a bool, or "auto" for Keras' choice.

        On a CPU Keras does not use XLA with TensorFlow by itself; a transformer is faster with it.
        """
        if keras.backend.backend() == "tensorflow":
            return getattr(self.backbone, "prefers_xla", "auto")
        return "auto"

    def compile_from_config(self, config: dict) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(
        self, x: object = None, y: object = None, *args: object, **kwargs: object
    ) -> keras.callbacks.History:
        """Trains the model as `keras.Model.fit` does; arrays are checked before the first step."""
        if isinstance(x, dict):
            check_names(x)
        images = x["image"] if isinstance(x, dict) else x
        labels = y if y is not None or not isinstance(x, dict) else x.get("label")
        if isinstance(images, np.ndarray):
            if replica.replica().count > 1:
                raise ValueError(
                    "Each process would train on all of these images: give fit() what the engine's "
                    "`batches` makes of a data set of its own `shard`. "
                    f"Received: an array of shape {images.shape}"
                )
            check_images(images, self.image_shape)
        if isinstance(labels, np.ndarray | list):
            check_labels(labels, self.num_classes)
        if isinstance(x, dict) and isinstance(x.get("context"), np.ndarray):
            check_contexts(x["context"], self.context_width)
        if self.compiled and not self.optimizer.built:
            # If the first step made the optimizer's variables, TensorFlow would trace it twice.
            self.optimizer.build(self.trainable_variables)
        return super().fit(x, y, *args, **kwargs)

    def batch(self, inputs: object) -> dict[str, Tensor]:
        """Returns `inputs`, images or a dict, as a checked dict of tensors."""
        batch = dict(inputs) if isinstance(inputs, dict) else {"image": inputs}
        check_batch(batch, self.image_shape, self.num_classes, self.context_width)
        return batch

    def pack(self, data: object) -> tuple:
        """Returns a batch as `fit` yields it with its labels moved to where the network finds
        them.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        batch = dict(x) if isinstance(x, dict) else {"image": x}
        if y is not None:
            batch["label"] = y
        return batch, None, sample_weight

    def compute_loss(
        self,
        x: object = None,
        y: object = None,
        y_pred: dict | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """Returns the mean of `sample_losses` over the batch."""
        losses = self.weighted_losses(y_pred, sample_weight)
        self.record_losses(losses, y_pred["level"])
        return ops.mean(losses)

    def weighted_losses(self, y_pred: dict, sample_weight: Tensor | None) -> Tensor:
        """Returns the loss of each sample, (B,), times its weight of `fit`, if there is one."""
        losses = self.sample_losses(**y_pred)
        if sample_weight is not None:
            losses = losses * ops.cast(sample_weight, "float32")
        return losses

    def record_losses(self, losses: Tensor, level: Tensor) -> None:
        """Tells the metrics of the losses (B,) of a batch and their noise levels (B,)."""
        self.batch_loss.update_state(ops.mean(losses))
        self.cluster_loss.update_state(losses, level)

    def record_batch(self, losses: Tensor, level: Tensor) -> dict[str, Tensor]:
        """Tells all metrics of the losses (B,) of a global batch, and returns what they say."""
        self.record_losses(losses, level)
        mean_loss = next(metric for metric in self.metrics if metric.name == "loss")
        mean_loss.update_state(self.batch_loss.result(), sample_weight=ops.shape(losses)[0])
        return self.get_metrics_result()

    def _seed_step(self) -> None:
        """Makes all randomness of this step a function of (seed, iteration)."""
        streams = [(self.noise_generator, self._training_key)]
        if hasattr(self.backbone, "seed_generator"):
            streams.append((self.backbone.seed_generator, self._dropout_key))
        for generator, key in streams:
            key, draws, iteration = (
                ops.cast(ops.convert_to_tensor(value), generator.state.dtype)
                for value in (key, _DRAWS_PER_STEP, self.iteration)
            )
            generator.state.assign(ops.stack([key, draws * iteration]))

    # Metrics

    @property
    def metrics(self) -> list[keras.Metric]:
        return [*super().metrics, self.cluster_loss]

    @property
    def cluster_loss(self) -> LossPerCluster:
        """The metric that holds the mean loss per cluster of noise levels since the last reset."""
        return self._untracked.cluster_loss

    def track_clusters(self, edges: Sequence[float]) -> None:
        """Sets the clusters by which `cluster_loss` reports: N + 1 ascending edges in the native
        coordinate.
        """
        with self.variable_scope():
            metric = LossPerCluster(edges)
        if self._untracked.cluster_loss is None or self.cluster_loss.edges != metric.edges:
            self._untracked.cluster_loss = metric
            self.train_function = self.test_function = None

    def get_metrics_result(self) -> dict:
        # One number a cluster would drown the progress bar: `cluster_loss` is read on its own.
        result = super().get_metrics_result()
        result.pop(self.cluster_loss.name, None)
        return result

    # Saving

    def before_save(self, function: Callable[[], None] | None) -> None:
        """Sets the function that writes a curriculum's state into the weights before each save."""
        self._untracked.before_save = function

    def save_own_variables(self, store: dict) -> None:
        if self._untracked.before_save is not None:
            self._untracked.before_save()
        super().save_own_variables(store)

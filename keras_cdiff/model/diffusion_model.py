"""DiffusionModel: a network, a noise schedule, a parameterization and an objective, trained by
`fit`.
"""

import types
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
from keras import ops

from keras_cdiff.augmentation import Augmentation, check_augmentation
from keras_cdiff.backbones.backbone import NetworkInputs, check_backbone
from keras_cdiff.common.checks import check_integer
from keras_cdiff.distribution import replica
from keras_cdiff.ema import Decay, FixedDecay
from keras_cdiff.model.checks import check_arrays, check_batch, check_parts
from keras_cdiff.model.parts import build, deserialize, parts_of_preset
from keras_cdiff.model.process import Process
from keras_cdiff.model.tracking import (
    LastValue,
    LossPerCluster,
    accumulation_steps,
    check_decays,
    copy_network,
    move_averages,
)
from keras_cdiff.model.train_step import TrainStep
from keras_cdiff.objectives import Objective
from keras_cdiff.parameterizations import Parameterization
from keras_cdiff.schedules import Schedule

Tensor = keras.KerasTensor

# Draws of random arrays in one step are fewer than this, so the streams of two steps never meet.
_DRAWS_PER_STEP = 256


@keras.saving.register_keras_serializable("keras_cdiff")
class DiffusionModel(TrainStep, keras.Model):
    """A diffusion model that `fit` trains: each step draws noise levels, adds noise and learns to
    remove it.

    `fit`, `evaluate` and the like take images (B, H, W, C) in [-1, 1], or (images, labels), or a
    dict with "image" and optionally "label" and "context" (B, L, D), the embedded tokens of a text,
    rows of zeros being padding; "level" (B,) and "noise" (B, H, W, C) may be given too and are then
    not drawn.

    Noise and levels of a step are a function of (seed, iteration) alone. The average of the weights
    lives in a second copy of the network, `ema_backbone`; see also `averages`. What a step
    computes is written in `keras_cdiff.model.process`.

    Args:
        backbone: the network, such as `keras_cdiff.backbones.DiT`.
        schedule: a `Schedule`.
        parameterization: a `Parameterization`.
        objective: an `Objective`; its support must lie on the schedule.
        ema: decay profile of the average of the weights; several keep as many averages, of which
            the first is `ema_backbone`; None keeps none.
        seed: seed of all noise, >= 0.
        augmentation: what is done to images in training, or None; the backbone must have been built
            with augment_features=9 to be conditioned on it.

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
        check_backbone(backbone, augmented=augmentation is not None)
        check_parts(backbone, schedule, parameterization, objective)
        check_augmentation(augmentation, backbone)
        self.backbone = backbone
        self.process = Process(schedule, parameterization, objective)
        self.augmentation = augmentation
        self.seed = check_integer("seed", seed, 0)
        decays = check_decays(ema)
        self.ema = ema if ema is None or isinstance(ema, Decay) else decays
        networks = [copy_network(backbone) for _ in decays]
        self.ema_backbone = networks[0] if networks else None
        self.further_averages = networks[1:]

        keys = np.random.SeedSequence(self.seed).generate_state(3) & 0x7FFFFFFF
        self._training_key, self._dropout_key, evaluation_key = map(int, keys)
        self.noise_generator = keras.random.SeedGenerator(self._training_key)
        self.evaluation_generator = keras.random.SeedGenerator(evaluation_key)
        self.build()

    schedule = property(lambda self: self.process.schedule, doc="The `Schedule`.")
    parameterization = property(
        lambda self: self.process.parameterization, doc="The `Parameterization`."
    )
    objective = property(lambda self: self.process.objective, doc="The `Objective`.")
    network_inputs = property(
        lambda self: NetworkInputs.of(self.backbone), doc="What the backbone takes."
    )
    image_shape = property(lambda self: self.network_inputs.image_shape, doc="(H, W, C).")
    num_classes = property(
        lambda self: self.network_inputs.num_classes, doc="Number of classes; 0 for no labels."
    )
    is_latent = property(lambda self: self.network_inputs.is_latent, doc="If images are latents.")

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
        """Adds noise to the images, augmented in training, and runs the network.

        Returns:
            The arguments of `Process.losses`: the images used, what was drawn, and the output.
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
        level = ops.cast(level, "float32")
        return self.process.forward(self.backbone, image, level, noise, condition, training)

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
        check_arrays(x, y, self.network_inputs)
        if self.compiled and not self.optimizer.built:
            # If the first step made the optimizer's variables, TensorFlow would trace it twice.
            self.optimizer.build(self.trainable_variables)
        return super().fit(x, y, *args, **kwargs)

    def batch(self, inputs: object) -> dict[str, Tensor]:
        """Returns `inputs`, images or a dict, as a checked dict of tensors."""
        batch = dict(inputs) if isinstance(inputs, dict) else {"image": inputs}
        check_batch(batch, self.network_inputs)
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
        """Returns the mean loss of the batch."""
        losses = self.weighted_losses(y_pred, sample_weight)
        self.record_losses(losses, y_pred["level"])
        return ops.mean(losses)

    def weighted_losses(self, y_pred: dict, sample_weight: Tensor | None) -> Tensor:
        """Returns the loss of each sample, (B,), times its weight of `fit`, if there is one."""
        losses = self.process.losses(**y_pred)
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

    def update_averages(self, batch_size: Tensor | int, before: Tensor, after: Tensor) -> None:
        """Counts the step and, if it changed the weights, moves the averages towards them.

        Gradient accumulation counts as the larger batches it stands for.

        Args:
            batch_size: images of the step.
            before: the optimizer's `iterations` before the step, which count updates: a step that
                is skipped or only accumulated leaves them.
            after: the same after the step.
        """
        self.iteration.assign_add(1)
        accumulated = accumulation_steps(self.optimizer)
        update = ops.maximum(ops.convert_to_tensor(self.iteration) // accumulated, 1)
        moved = ops.not_equal(before, after)
        move_averages(self.averages(), self.backbone, update, batch_size * accumulated, moved)

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

    # Averages and estimates

    def averages(self) -> list[tuple[Decay, keras.Model]]:
        """Returns each decay with the network that carries its average; the first is
        `ema_backbone`.
        """
        if self.ema_backbone is None:
            return []
        decays = self.ema if isinstance(self.ema, tuple) else (self.ema,)
        return list(zip(decays, (self.ema_backbone, *self.further_averages), strict=True))

    def network(self, use_ema: bool) -> keras.Model:
        """Returns the first average, if it is wanted and there is one, else the backbone."""
        return self.ema_backbone if use_ema and self.ema_backbone is not None else self.backbone

    def estimate(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        guidance: Tensor | float = 1.0,
        guidance_channels: int | None = None,
        use_ema: bool = False,
    ) -> dict[str, Tensor | None]:
        """Returns the estimate of the clean image, and the learned variance's channels if there are
        any.

        Guidance is as in `keras_cdiff.model.process.guide`; the variance stays conditional.

        Args:
            x: (B, H, W, C) noisy images.
            level: (B,) or (), noise levels in the schedule's native coordinate.
            label: (B,) int class labels; `num_classes` is the null label.
            context: (B, L, D) conditioning sequence; rows of zeros are padding, and zeros alone the
                null context.
            guidance: the scale w; exactly 1.0 runs the network once instead of twice.
            guidance_channels: guide only that many first channels (official DiT: 3).
            use_ema: whether the averaged weights are used.

        Returns:
            {"clean": (B, H, W, C) float32, "variance": (B, H, W, C) float32 or None}.
        """
        network = self.ema_backbone if use_ema else self.backbone
        if network is None:
            raise ValueError("This model keeps no average of its weights. Received: use_ema=True")
        x = ops.cast(x, "float32")
        level = ops.broadcast_to(ops.cast(level, "float32"), ops.shape(x)[:1])
        condition = {"label": label, "context": context}
        if isinstance(guidance, int | float) and guidance == 1.0:
            coefficients = self.process.coefficients(level)
            output = self.process.predict(network, x, coefficients, condition)
            return self.process.estimate(x, output, coefficients)
        if label is None and context is None:
            raise ValueError(
                "Guidance needs a condition to strengthen: give `label` or `context`, or leave "
                f"guidance at 1.0. Received: guidance={guidance}, label=None, context=None"
            )
        null = {
            "label": None if label is None else ops.full_like(label, self.num_classes),
            "context": None if context is None else ops.zeros_like(context),
        }
        channels = guidance_channels or self.backbone.channels
        return self.process.guided_estimate(network, x, level, condition, null, guidance, channels)

    def denoise(self, x: Tensor, level: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Returns the estimate of the clean image (B, H, W, C) float32; the arguments are those of
        `estimate`.
        """
        return self.estimate(x, level, *args, **kwargs)["clean"]

    # Building and saving

    @classmethod
    def from_preset(
        cls, name: str, load_weights: bool = False, **overrides: object
    ) -> "DiffusionModel":
        """Builds a model from a preset, which is a configuration: the weights are random.

        Args:
            name: a name in `keras_cdiff.presets.PRESETS`.
            load_weights: whether trained weights are loaded; no preset has any yet.
            **overrides: schedule, parameterization, objective, ema, augmentation or seed; anything
                else is an argument of the backbone, such as image_size, num_classes or dtype.
        """
        parts = parts_of_preset(name, overrides)
        if load_weights:
            raise ValueError(
                "No preset has trained weights yet: train one, as by apps/train.py "
                f"--preset={name}, and open the run by keras_cdiff.load(workdir). "
                f"Received: name={name!r}, load_weights=True"
            )
        return cls.from_parts(parts)

    @classmethod
    def from_parts(cls, parts: Mapping, seed: int | None = None) -> "DiffusionModel":
        """Builds the model of a preset's "model", with random weights.

        Args:
            parts: "backbone", the name of a backbone's class and its arguments; schedule,
                parameterization, objective, ema and augmentation, objects or their configurations.
            seed: of weights and noise; None for that among the parts, or the default.
        """
        return cls(**build(parts if seed is None else {**parts, "seed": seed}))

    def get_config(self) -> dict:
        parts = {
            "backbone": self.backbone,
            "schedule": self.schedule,
            "parameterization": self.parameterization,
            "objective": self.objective,
            "ema": list(self.ema) if isinstance(self.ema, tuple) else self.ema,
            "augmentation": self.augmentation,
        }
        config = {k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}
        return {**config, "seed": self.seed, "name": self.name}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "DiffusionModel":
        with keras.saving.custom_object_scope(custom_objects or {}):
            return cls(**{name: deserialize(value) for name, value in config.items()})

    def before_save(self, function: Callable[[], None] | None) -> None:
        """Sets the function that writes a curriculum's state into the weights before each save."""
        self._untracked.before_save = function

    def save_own_variables(self, store: dict) -> None:
        if self._untracked.before_save is not None:
            self._untracked.before_save()
        super().save_own_variables(store)

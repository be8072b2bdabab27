"""Callbacks that evaluate a model now and then while `fit` trains it."""

import abc
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import keras

from keras_cdiff.common.callbacks import PeriodicCallback
from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import append_record, strict_json
from keras_cdiff.common.tensorboard import TensorBoardWriter
from keras_cdiff.evaluation.image_sets import GeneratedImages
from keras_cdiff.evaluation.validation_loss import ValidationLoss
from keras_cdiff.samplers import Guidance, Sampler


class PeriodicEvaluation(PeriodicCallback):
    """Base of callbacks that evaluate the model every some steps and at the end of training.

    An evaluation comes at the end of an epoch, and its numbers join that epoch's `logs`.

    Args:
        every: training steps between two evaluations, rounded up to the end of an epoch, >= 1.
        path: JSON-lines file to append a record of each evaluation to, or None. In it null stands
            for NaN, and "inf" for infinity.
        tensorboard: a `TensorBoardWriter`, or None.
        verbose: whether to print a line an evaluation.

    Attributes:
        records: one dict an evaluation, as the file has it.
    """

    def __init__(
        self,
        every: int,
        path: str | os.PathLike | None = None,
        tensorboard: TensorBoardWriter | None = None,
        verbose: int = 1,
    ):
        super().__init__(every)
        self.path = None if path is None else Path(path)
        self.tensorboard = tensorboard
        self.verbose = verbose
        self.records = []

    @abc.abstractmethod
    def evaluate(self, model: keras.Model) -> tuple[dict, dict[str, float], dict[str, float]]:
        """Returns a plain record, the numbers for `logs`, and those for TensorBoard by tag."""

    def act(self, step: int, logs: dict | None) -> None:
        record, numbers, scalars = self.evaluate(self.model)
        record = strict_json({"step": step, **record})
        self.records.append(record)
        if logs is not None:
            logs.update(numbers)
        if self.path is not None:
            append_record(self.path, record)
        if self.tensorboard is not None:
            self.tensorboard.scalars(step, scalars)
        if self.verbose:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(f"\nEvaluation at step {step}: {shown}", flush=True)


class EvaluationCallback(PeriodicEvaluation):
    """Compares samples of the model with a reference: distances such as the Frechet distance.

    All evaluations draw the samples of the same seeds. A small `num_samples` biases the distances
    upwards: they show a run's progress, and are no numbers to report.

    Args:
        evaluator: a `keras_cdiff.evaluation.Evaluator`, which keeps the reference's features.
        reference: what `evaluator.evaluate` takes as such.
        every: training steps between two evaluations, rounded up to the end of an epoch, >= 1.
        num_samples: samples drawn for each.
        sampler: how samples are drawn; by default as `keras_cdiff.sample` does.
        label: class of all samples, or one each; None shows the classes in turn.
        guidance: scale of the guidance, or a `Guidance`.
        use_ema: whether the averaged weights are used, if the model keeps an average.
        seed: seed of the first sample, >= 0; the others follow by ones.
        batch_size: samples drawn at once.
        generate: makes what `evaluator.evaluate` takes as generated, called once, when training
            begins, with the model, num_samples, and sampler, seed, label, guidance, use_ema and
            batch_size by name; None for `keras_cdiff.evaluation.GeneratedImages`.
        path, tensorboard, verbose: as in `PeriodicEvaluation`.

    Raises:
        ValueError: if a number is out of its range; or, when training begins, if samples of that
            kind cannot be drawn from the model.

    Example:

    ```python
    callback = EvaluationCallback(Evaluator(extractor), "npz:held_out.npz", 5000, num_samples=1000)
    model.fit(images, epochs=100, callbacks=[callback])
    ```
    """

    def __init__(
        self,
        evaluator: object,
        reference: object,
        every: int,
        num_samples: int = 1000,
        sampler: Sampler | None = None,
        label: object = None,
        guidance: float | Guidance = 1.0,
        use_ema: bool = True,
        seed: int = 0,
        batch_size: int = 64,
        generate: Callable | None = None,
        path: str | os.PathLike | None = None,
        tensorboard: TensorBoardWriter | None = None,
        verbose: int = 1,
    ):
        super().__init__(every, path, tensorboard, verbose)
        self.evaluator = evaluator
        self.reference = reference
        self.num_samples = check_integer("num_samples", num_samples, 2, None, "of each evaluation")
        check_integer("batch_size", batch_size, 1, None, "samples drawn at once")
        self.options = {
            "sampler": sampler,
            "seed": seed,
            "label": label,
            "guidance": Guidance.of(guidance),
            "use_ema": use_ema,
            "batch_size": batch_size,
        }
        self.generate = generate or GeneratedImages

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        # Made now, so that what does not fit the model is said before the first step.
        self._generated = self.generate(self.model, self.num_samples, **self.options)
        self.evaluator.check(self._generated, self.reference)

    def evaluate(self, model: keras.Model) -> tuple[dict, dict[str, float], dict[str, float]]:
        try:
            with warnings.catch_warnings():  # a small sample's bias; the record says it too
                warnings.filterwarnings("ignore", "the Frechet distance of", UserWarning)
                result = self.evaluator.evaluate(self._generated, self.reference)
        except FloatingPointError as error:  # that a run diverges is for its log to tell
            return {"metrics": {}, "notes": [str(error)]}, {}, {}
        metrics = {name: float(value) for name, value in result.metrics.items()}
        tags = {f"evaluation/{name}": value for name, value in metrics.items()}
        return dict(result.record), metrics, tags


class ValidationLossCallback(PeriodicEvaluation):
    """Evaluates the loss per cluster of noise levels on images that training does not see.

    `logs` receive "validation_loss", the loss on the union of the clusters; the file and
    TensorBoard receive each cluster's too.

    Args:
        validation_loss: a `ValidationLoss`.
        every: training steps between two evaluations, rounded up to the end of an epoch, >= 1.
        use_ema: whether the averaged weights answer, if the model keeps an average.
        path, tensorboard, verbose: as in `PeriodicEvaluation`.

    Raises:
        ValueError: if `every` is out of its range; or, when training begins, if the validation loss
            does not fit the model.
    """

    def __init__(
        self,
        validation_loss: ValidationLoss,
        every: int,
        use_ema: bool = True,
        path: str | os.PathLike | None = None,
        tensorboard: TensorBoardWriter | None = None,
        verbose: int = 1,
    ):
        super().__init__(every, path, tensorboard, verbose)
        self.validation_loss = validation_loss
        self.use_ema = use_ema

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self.validation_loss.check(self.model)

    def evaluate(self, model: keras.Model) -> tuple[dict, dict[str, float], dict[str, float]]:
        record = self.validation_loss(model, self.use_ema)
        tags = {"validation_loss": record["loss"]}
        for number, loss in enumerate(record["cluster_loss"], start=1):
            tags[f"validation_cluster_loss/{number:02d}"] = loss
        return record, {"validation_loss": record["loss"]}, tags

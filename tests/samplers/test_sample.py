import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.model.process import Process
from keras_cdiff.parameterizations import Epsilon
from keras_cdiff.samplers import DDIM, DDPM, DPMSolver, Euler, Guidance, Heun, sample

QUIET = {"progress": False}


def assert_close(actual, expected):
    # Relative to the largest value, which an untrained network lets grow.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def training_batch(model, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.uniform(-1.0, 1.0, (8, *model.image_shape)).astype("float32")
    return images, generator.integers(0, model.num_classes, 8)


def by_hand(model, num_samples, sampler, seeds, use_ema=True, **condition):
    """What `sample` should return, with the network asked without compilation."""
    draws = [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]

    def draw():
        blocks = [g.standard_normal(model.image_shape, dtype="float32") for g in draws]
        return np.stack(blocks)

    def denoise(x, level):
        return model.estimate(x, level, use_ema=use_ema, **condition)

    x = sampler.initial_scale(model.schedule) * draw()
    *_, (x, _) = sampler.trajectory(denoise, x, model.schedule, draw)
    return ops.convert_to_numpy(ops.stop_gradient(x))


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        ("ddpm", DDIM(4)),
        ("ddpm", DDIM(4, eta=0.7)),
        ("ddpm", DDPM(4)),
        ("ddpm", Heun(3)),
        ("edm", Heun(3)),
        ("edm", DDPM(4)),
        ("edm", Heun(3, s_churn=2.0)),
        ("flow", Euler(4, "level")),
        ("ddpm", DPMSolver(4)),
    ],
)
def test_equals_the_uncompiled_loop(small_model, kind, sampler):
    model = small_model(kind, learned_variance=kind == "ddpm")
    labels = [0, 2, 3]
    actual = sample(model, 3, sampler, seed=[5, 5, 9], label=labels, **QUIET)
    expected = by_hand(model, 3, sampler, [5, 5, 9], label=np.array(labels))
    assert actual.dtype == "float32"
    assert actual.shape == (3, 4, 4, 4)
    assert_close(actual, expected)


@pytest.mark.parametrize("guidance", [0.0, 2.5, Guidance.official_dit(1.5)])
def test_guidance_equals_the_uncompiled_loop(small_model, guidance):
    model = small_model(learned_variance=True)
    actual = sample(model, 2, DDPM(3), label=1, guidance=guidance, **QUIET)
    guidance = Guidance.of(guidance)
    expected = by_hand(
        model,
        2,
        DDPM(3),
        [0, 1],
        label=np.array([1, 1]),
        guidance=guidance.scale,
        guidance_channels=guidance.channels,
    )
    assert_close(actual, expected)


def test_guidance_within_an_interval(small_model):
    model = small_model("edm")
    model.compile(optimizer="sgd", run_eagerly=True)  # so that Python counts every network call
    sampler, guidance = DDIM(5, clip=False), Guidance(3.0, interval=(0.1, 10.0))
    asked = []

    class Counting(Process):
        def predict(self, network, noisy, coefficients, *arguments, **options):
            level = np.exp(4.0 * float(coefficients.noise[0]))  # c_noise is ln(sigma) / 4
            asked.append((level, len(noisy)))
            return super().predict(network, noisy, coefficients, *arguments, **options)

    model.process = Counting(model.schedule, model.parameterization, model.objective)
    actual = sample(model, 2, sampler, label=1, guidance=guidance, **QUIET)
    levels = sampler.levels(model.schedule)
    within = (levels >= 0.1) & (levels < 10.0)
    assert 0 < np.sum(within) < len(levels)
    # Where it is guided the network gets every image twice, with and without the label.
    assert [images for _, images in asked] == np.where(within, 4, 2).tolist()
    np.testing.assert_allclose([level for level, _ in asked], levels, rtol=1e-5)

    def denoise(x, level):
        scale = guidance.scale_at(ops.convert_to_tensor(level))
        return model.estimate(x, level, label=np.array([1, 1]), guidance=scale, use_ema=True)

    draws = [np.random.Generator(np.random.Philox(key=seed)) for seed in (0, 1)]
    noise = np.stack([g.standard_normal(model.image_shape, dtype="float32") for g in draws])
    x = sampler.initial_scale(model.schedule) * noise
    *_, (expected, _) = sampler.trajectory(denoise, x, model.schedule)
    assert_close(actual, ops.convert_to_numpy(ops.stop_gradient(expected)))


def test_an_estimate_that_divides_by_no_signal(small_model):
    flow = small_model("flow")
    model = DiffusionModel(flow.backbone, flow.schedule, Epsilon(), flow.objective, ema=None)
    with pytest.raises(ValueError, match=r"With Epsilon no clean image .* level 1.0 of Rectified"):
        sample(model, 1, Euler(3), **QUIET)
    below = Euler(spacing=[0.99, 0.5, 0.1])
    assert np.all(np.isfinite(sample(model, 1, below, **QUIET)))


def test_a_sampler_that_the_schedule_cannot_serve(small_model):
    with pytest.raises(ValueError, match="needs a continuous schedule"):
        sample(small_model(), 1, Heun(3, coordinate="level"), **QUIET)


def test_official_dit_guides_three_channels(small_model):
    model = small_model("edm")
    once = {"sampler": DDIM(1, clip=False), "label": 1, **QUIET}
    plain, all_channels, official = (
        sample(model, 2, guidance=g, **once) for g in (1.0, 4.0, Guidance.official_dit(4.0))
    )
    assert_close(official[..., :3], all_channels[..., :3])
    assert_close(official[..., 3], plain[..., 3])
    assert np.abs(official[..., :3] - plain[..., :3]).max() > 1e-3
    assert np.abs(all_channels[..., 3] - plain[..., 3]).max() > 1e-3


def test_a_scale_of_zero_forgets_the_label(small_model):
    model = small_model("edm")
    unconditional = sample(model, 2, Heun(2), label=None, **QUIET)
    null = sample(model, 2, Heun(2), label=model.num_classes, **QUIET)
    unguided = sample(model, 2, Heun(2), label=1, guidance=0.0, **QUIET)
    conditional = sample(model, 2, Heun(2), label=1, **QUIET)
    assert_close(unguided, unconditional)
    np.testing.assert_array_equal(null, unconditional)
    assert np.abs(conditional - unconditional).max() > 1e-3


@pytest.mark.parametrize("sampler", [DDPM(3), Heun(2)])
def test_a_sample_depends_on_its_seed_alone(small_model, sampler):
    model = small_model()
    seeds, labels = [7, 3, 3, 0, 12], [0, 1, 2, 3, 0]
    reference = sample(model, 5, sampler, seed=seeds, label=labels, **QUIET)
    small_batches = sample(model, 5, sampler, seed=seeds, label=labels, batch_size=2, **QUIET)
    assert_close(small_batches, reference)
    order = [4, 2, 0, 1, 3]
    reordered = sample(
        model, 5, sampler, seed=[seeds[i] for i in order], label=[labels[i] for i in order], **QUIET
    )
    assert_close(reordered, reference[order])


def test_an_integer_seed_counts_up(small_model):
    model = small_model(num_classes=0)
    counted = sample(model, 3, DDIM(2), seed=10, **QUIET)
    listed = sample(model, 3, DDIM(2), seed=[10, 11, 12], **QUIET)
    np.testing.assert_array_equal(counted, listed)
    assert np.abs(counted[0] - counted[1]).max() > 1e-3


def test_context_of_all_or_of_each(small_model):
    model = small_model(num_classes=0, context_width=6)
    context = np.random.default_rng(0).standard_normal((2, 5, 6)).astype("float32")
    each = sample(model, 2, DDIM(2), context=context, guidance=2.0, **QUIET)
    second = sample(model, 2, DDIM(2), context=context[1], guidance=2.0, **QUIET)
    assert_close(each[1], second[1])
    assert np.abs(each[0] - second[0]).max() > 1e-3


def test_default_sampler(small_model):
    for model, sampler in (
        (small_model("edm"), Heun(18)),
        (small_model(channels=3), DDIM(50)),
        (small_model(channels=4), DDIM(50, clip=False)),
        (small_model("flow"), Heun(25, coordinate="level")),
    ):
        np.testing.assert_array_equal(sample(model, 1, **QUIET), sample(model, 1, sampler, **QUIET))


def test_nothing_compiles_twice(small_model):
    model = small_model()
    sample(model, 4, DDIM(3), label=1, batch_size=4, **QUIET)
    sample(model, 4, DDIM(3), label=1, guidance=2.0, batch_size=4, **QUIET)
    before = model.ema_backbone.num_calls
    sample(model, 4, DDIM(5), label=[0, 1, 2, 3], batch_size=4, **QUIET)
    sample(model, 6, DDIM(3, eta=1.0), label=2, batch_size=4, **QUIET)
    sample(model, 4, DDPM(3), label=2, guidance=7.5, batch_size=4, **QUIET)
    calls = model.ema_backbone.num_calls - before
    # Eagerly Python runs the network at every step of every batch; compiled, never again.
    assert calls == (5 + 2 * 3 + 3 if keras.backend.backend() == "torch" else 0)


def test_follows_training(small_model):
    model = small_model("edm", ema=0.5)
    images, labels = training_batch(model)
    sampled = {"sampler": Heun(2), "label": 1, **QUIET}
    for _ in range(3):
        weights, average = model.backbone.get_weights(), model.ema_backbone.get_weights()
        for use_ema in (True, False):
            expected = by_hand(model, 2, Heun(2), [0, 1], use_ema, label=np.array([1, 1]))
            actual = sample(model, 2, use_ema=use_ema, **sampled)
            assert_close(actual, expected)
        for before, after in zip(weights, model.backbone.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
        for before, after in zip(average, model.ema_backbone.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
        model.fit(images, labels, batch_size=4, epochs=1, verbose=0)
        assert any(
            np.abs(before - after).max() > 1e-5
            for before, after in zip(weights, model.backbone.get_weights(), strict=True)
        )


class SampleEveryStep(keras.callbacks.Callback):
    """Samples after every training step, through `self.model` or through the model it was given."""

    def __init__(self, model=None):
        super().__init__()
        self.given = model
        self.samples = []

    def on_train_batch_end(self, batch, logs=None):
        model = self.given or self.model
        for use_ema in (True, False):
            self.samples.append(sample(model, 2, Heun(2), label=1, use_ema=use_ema, **QUIET))


@pytest.mark.parametrize("give_model", [False, True])
def test_sampling_within_fit(small_model, give_model):
    keras.utils.set_random_seed(1)
    model, undisturbed = small_model("edm"), small_model("edm")
    undisturbed.set_weights(model.get_weights())
    images, labels = training_batch(model)
    callback = SampleEveryStep(model if give_model else None)
    fit = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
    history = model.fit(images, labels, callbacks=[callback], **fit)
    expected = undisturbed.fit(images, labels, **fit)
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-6)
    for ours, theirs in zip(model.get_weights(), undisturbed.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    assert len(callback.samples) == 8
    assert np.abs(callback.samples[0] - callback.samples[-2]).max() > 1e-4
    last = sample(model, 2, Heun(2), label=1, **QUIET)
    assert_close(callback.samples[-2], last)


def test_leaves_the_model_as_it_was(small_model, tmp_path):
    model = small_model()
    paths = [weight.path for weight in model.weights]
    attributes = set(vars(model))
    sample(model, 2, DDIM(2), label=1, **QUIET)
    assert [weight.path for weight in model.weights] == paths
    assert set(vars(model)) == attributes
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        sample(model, 2, DDIM(2), label=1, **QUIET), sample(restored, 2, DDIM(2), label=1, **QUIET)
    )


def test_keeps_no_model_alive(small_model):
    model = small_model()
    sample(model, 2, DDIM(2), label=1, **QUIET)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_noise_levels_stay_float32_under_mixed_precision(small_model):
    keras.config.set_dtype_policy("mixed_bfloat16")
    # The network's weights stay float32, so only the level and the image could lose digits.
    model = small_model("edm", dtype="float32")
    actual = sample(model, 2, Heun(3), label=1, **QUIET)
    expected = by_hand(model, 2, Heun(3), [0, 1], label=np.array([1, 1]))
    assert_close(actual, expected)


def test_without_an_average_the_weights_answer(small_model):
    model = small_model(ema=None)
    np.testing.assert_array_equal(
        sample(model, 2, DDIM(2), **QUIET), sample(model, 2, DDIM(2), use_ema=False, **QUIET)
    )


def test_progress_is_shown_only_on_request(small_model, capsys):
    model = small_model()
    sample(model, 3, DDIM(2), batch_size=2, progress=False)
    assert capsys.readouterr().out == ""
    sample(model, 3, DDIM(2), batch_size=2, progress=True)
    assert "4/4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "`num_samples` must be"),
        ({"num_samples": 2.0}, "`num_samples` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"seed": [1]}, "`seed` must be"),
        ({"seed": [1, 0.5]}, "`seed` must be"),
        ({"label": 4}, "`label` must be"),
        ({"label": -1}, "`label` must be"),
        ({"label": [0, 1, 2]}, "`label` must be"),
        ({"label": 0.5}, "`label` must be"),
        ({"context": np.zeros((3, 5, 6))}, "`context` must have"),
        ({"context": np.zeros(5)}, "`context` must have"),
        ({"label": 1, "guidance": -1.0}, "guidance scale must be"),
        ({"label": 1, "guidance": float("nan")}, "guidance scale must be"),
        ({"guidance": 2.0}, "Guidance strengthens a condition"),
    ],
)
def test_bad_arguments(small_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(
            small_model(context_width=6),
            **{"num_samples": 2, "sampler": DDIM(2), **QUIET, **arguments},
        )


def test_labels_for_a_model_without_classes(small_model):
    with pytest.raises(ValueError, match="has no classes"):
        sample(small_model(num_classes=0), 2, DDIM(2), label=0, **QUIET)


def test_guidance_needs_a_null_label_that_was_trained(small_model):
    model = small_model()
    model.backbone.label_dropout = 0.0
    with pytest.raises(ValueError, match=r"train with label_dropout > 0.*Received: guidance=2.0"):
        sample(model, 1, DDIM(2), label=1, guidance=2.0, **QUIET)
    assert np.all(np.isfinite(sample(model, 1, DDIM(2), label=1, **QUIET)))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, r"never saw in training: give a label in 0\.\.\d+. Received: label=None"),
        ("null", r"`label` must be an integer, or 2 of them, in 0\.\.\d+. Received"),
    ],
)
def test_a_null_label_that_was_not_trained_is_refused(small_model, label, message):
    model = small_model()
    model.backbone.label_dropout = 0.0
    sample(model, 2, DDIM(2), label=0, **QUIET)
    with pytest.raises(ValueError, match=message):
        sample(model, 2, DDIM(2), label=label and model.num_classes, **QUIET)


def test_guidance_of_more_channels_than_there_are(small_model):
    guidance = Guidance(2.0, channels=5)
    with pytest.raises(ValueError, match=r"Received: channels=5, for a model of 4 channels"):
        sample(small_model(), 1, DDIM(2), label=1, guidance=guidance, **QUIET)


def test_an_interval_without_any_level(small_model):
    guidance = Guidance(2.0, interval=(100.0, 200.0))
    with pytest.raises(ValueError, match=r"between 0 and 99.*Received: interval=.100.0, 200.0"):
        sample(small_model(), 1, DDIM(2), label=1, guidance=guidance, **QUIET)

"""DiffusionModel: its losses against the official ones, its training on each backend, its state."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import DiffusionModel, ema
from keras_cdiff.model.variational import Posterior, variational_term
from keras_cdiff.parameterizations import Epsilon
from keras_cdiff.schedules import LinearBeta

BACKEND = keras.backend.backend()

# torch.compile takes minutes to follow Keras' code.
COMPILED, EAGER = {"jit_compile": True}, {"run_eagerly": True}
MODES = {
    "torch": [
        {"eager": EAGER},
        pytest.param({"compiled": COMPILED}, marks=pytest.mark.exhaustive),
    ],
    "tensorflow": [
        {
            "eager": EAGER,
            "compiled": COMPILED,
            "grouped": {"steps_per_execution": 2, "jit_compile": False},
        }
    ],
    "jax": [{"eager": EAGER, "compiled": COMPILED, "grouped": {"steps_per_execution": 2}}],
}[BACKEND]


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def weights_of(layer):
    return [ops.convert_to_numpy(w) for w in layer.weights]


# Against the official diffusion code


def test_noisy_images_and_posterior_equal_the_official_ones(golden, make_model):
    data = golden("ddpm_ops")
    image, noise, t = nhwc(data["in/x_start"]), nhwc(data["in/noise"]), data["in/t"]
    schedule = LinearBeta(1000)
    alpha, sigma = schedule.alpha_sigma(t)
    noisy = alpha[:, None, None, None] * image + sigma[:, None, None, None] * noise
    np.testing.assert_allclose(noisy, nhwc(data["out/q_sample"]), atol=2e-6)
    posterior = Posterior(schedule.betas)
    scale = [
        table[t][:, None, None, None] for table in (posterior.clean_scale, posterior.noisy_scale)
    ]
    mean = scale[0] * image + scale[1] * nhwc(data["out/q_sample"])
    np.testing.assert_allclose(mean, nhwc(data["out/q_posterior_mean"]), atol=2e-6)
    log_variance = data["out/q_posterior_log_variance_clipped"][:, 0, 0, 0]
    np.testing.assert_allclose(posterior.log_variance[t], log_variance, rtol=1e-5)
    np.testing.assert_allclose(
        posterior.variance[t], data["out/q_posterior_variance"][:, 0, 0, 0], rtol=1e-5
    )


@pytest.mark.parametrize(("output", "first"), [("analytic", 1e-5), ("network", 0.05)])
def test_losses_equal_the_official_ones(golden, output, first):
    """`first`: tolerance at t = 0, where the official float32 and float64 runs differ by 2 %."""
    data = golden("ddpm_ops")
    image, noise, t = nhwc(data["in/x_start"]), nhwc(data["in/noise"]), data["in/t"]
    noisy = nhwc(data["out/q_sample"])
    if output == "analytic":
        predicted = np.concatenate([noise + 0.2 * np.tanh(noisy), 0.5 * np.tanh(noisy)], axis=-1)
        expected = data.folder("out/f64/analytic/training_losses")
    else:
        predicted = nhwc(data["out/model_output"])
        expected = data.folder("out/f64/training_losses")
    schedule, level = LinearBeta(1000), ops.convert_to_tensor(t, "float32")
    mse = np.mean((predicted[..., :4] - noise) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(mse, expected["mse"], rtol=1e-5)
    alpha, sigma = (c[:, None, None, None] for c in schedule.alpha_sigma(t))
    clean = (noisy - sigma * predicted[..., :4]) / alpha
    tensors = map(np.float32, (image, noisy, clean, predicted[..., 4:]))
    term = variational_term(schedule, level, *map(ops.convert_to_tensor, tensors))
    term = ops.convert_to_numpy(term)
    later = t > 0
    np.testing.assert_allclose(term[later], expected["vb"][later], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(term[~later], expected["vb"][~later], rtol=first)


def test_the_model_trains_with_the_official_loss(golden):
    """The whole path: converted network, noise, level, label -> mean of the official losses."""
    from keras_cdiff import convert, objectives

    data, weights = golden("ddpm_ops"), golden("dit_base")
    backbone = convert.dit_from_official(
        weights.folder("weights"), **data.config["dit_constructor"]
    )
    model = DiffusionModel(
        backbone,
        LinearBeta(1000),
        Epsilon(learned_variance=True),
        objectives.UniformTimesteps(1000),
    )
    batch = {
        "image": nhwc(data["in/x_start"]),
        "noise": nhwc(data["in/noise"]),
        "level": data["in/t"].astype("float32"),
        "label": data["in/y"].astype("int32"),
    }
    batch = {name: ops.convert_to_tensor(value) for name, value in batch.items()}
    drawn = model(batch, training=False)
    losses = ops.convert_to_numpy(model.process.losses(**drawn))
    expected = data["out/f64/training_losses/loss"]
    later = data["in/t"] > 0
    np.testing.assert_allclose(losses[later], expected[later], rtol=1e-4)
    np.testing.assert_allclose(losses[~later], expected[~later], rtol=0.05)


def test_the_variational_term_trains_the_variance_alone(make_model, batch):
    model = make_model("ddpm", parameterization=Epsilon(learned_variance=True))
    schedule, level = model.schedule, ops.convert_to_tensor([0.0, 3.0, 50.0, 99.0])
    image = ops.convert_to_tensor(batch[0][:4])
    noisy = batch[0][:4] + np.float32(0.1)
    x = ops.convert_to_tensor(noisy)

    def gradients(clean, variance):
        def total(clean, variance):
            return ops.sum(variational_term(schedule, level, image, x, clean, variance))

        return gradient(total, clean, variance)

    clean, variance = np.float32(0.3 * noisy), np.float32(0.2 * noisy)
    by_clean, by_variance = gradients(clean, variance)
    assert by_clean is None or not np.any(by_clean)
    assert np.all(np.isfinite(by_variance))
    assert np.any(by_variance)


def gradient(function, *values):
    """Gradients of a scalar function, on the backend at hand."""
    if BACKEND == "jax":
        import jax

        return jax.grad(function, argnums=tuple(range(len(values))))(*values)
    if BACKEND == "torch":
        import torch

        values = [torch.tensor(v, requires_grad=True) for v in values]
        function(*values).backward()
        return [None if v.grad is None else v.grad.numpy() for v in values]
    import tensorflow as tf

    values = [tf.constant(v) for v in values]
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = function(*values)
    return [None if g is None else g.numpy() for g in tape.gradient(loss, values)]


# Training


@pytest.mark.parametrize("kind", ["edm", "ddpm"])
def test_fit_lowers_the_loss(make_model, batch, quick, kind):
    model = make_model(kind)
    model.compile(keras.optimizers.SGD(0.1), **quick)
    before = model.evaluate(*batch, batch_size=16, verbose=0, return_dict=True)["loss"]
    images, labels = (np.concatenate([array] * 20) for array in batch)
    history = model.fit(images, labels, batch_size=16, epochs=3, verbose=0).history
    assert set(history) == {"loss", "batch_loss"}
    assert history["loss"][-1] < 0.7 * before  # the mean of the last 20 of 60 steps


def test_every_form_of_input_trains(make_model, batch):
    images, labels = batch
    model = make_model()
    model.compile("sgd", run_eagerly=True)  # compiling takes longer, and is done for each form
    forms = (
        (images,),
        (images, labels),
        ({"image": images},),
        ({"image": images, "label": labels},),
        ({"image": images}, labels),
        (images, labels.astype("int64")),
    )
    for arguments in forms:
        before = model.backbone.get_weights()
        loss = model.fit(*arguments, batch_size=16, verbose=0).history["loss"]
        assert np.all(np.isfinite(loss))
        moved = [np.any(a != b) for a, b in zip(before, model.backbone.get_weights(), strict=True)]
        assert moved == [True, True, True]  # an absent label is the null label
    assert int(model.iteration) == len(forms)


# torch.compile warns of its own deprecations, and that Keras' random generators break its graph.
@pytest.mark.filterwarnings("default" if BACKEND == "torch" else "error")
@pytest.mark.parametrize("modes", MODES)
def test_steps_per_execution_and_modes_of_execution(make_model, batch, modes):
    images, labels = batch
    # Given, because TensorFlow's random numbers differ under XLA.
    noise = np.random.default_rng(1).normal(size=images.shape).astype("float32")
    level = np.geomspace(0.01, 10.0, 16).astype("float32")
    data = {"image": images, "label": labels, "noise": noise, "level": level}
    if BACKEND == "torch":
        model = make_model()
        model.compile(steps_per_execution=2)
        with pytest.raises(ValueError, match="steps_per_execution"):
            model.fit(data, batch_size=4, verbose=0)
    losses = {}
    for mode, arguments in {"not compiled": {"jit_compile": False}, **modes}.items():
        keras.utils.set_random_seed(1)
        model = make_model(label_dropout=0.0)
        model.compile(keras.optimizers.SGD(0.1), **arguments)
        losses[mode] = model.fit(data, batch_size=4, verbose=0, shuffle=False).history["loss"][0]
        assert int(model.iteration) == 4
    np.testing.assert_allclose(list(losses.values()), losses["not compiled"], rtol=1e-5)


def test_average_equals_its_definition(make_model, batch, quick):
    model = make_model(average=ema.WarmupDecay(halflife=40.0, rampup=0.5))
    expected = weights_of(model.backbone)
    for average, start in zip(weights_of(model.ema_backbone), expected, strict=True):
        np.testing.assert_array_equal(average, start)
    model.compile(keras.optimizers.SGD(0.5), **quick)
    for step in range(1, 4):
        # Fits of one step each: every one begins where the last ended.
        model.fit(batch[0][:8], batch[1][:8], batch_size=8, verbose=0)
        decay = 0.5 ** (8 / max(min(40.0, 0.5 * 8 * (step - 1)), 1e-8))
        expected = [
            decay * e + (1 - decay) * w
            for e, w in zip(expected, weights_of(model.backbone), strict=True)
        ]
    for average, value in zip(weights_of(model.ema_backbone), expected, strict=True):
        np.testing.assert_allclose(average, value, atol=1e-6)


def test_several_averages_are_kept_at_once(make_model, batch, quick, tmp_path):
    decays = [ema.PowerDecay(0.1), ema.FixedDecay(0.5)]
    model = make_model(average=decays)
    expected = [weights_of(model.backbone) for _ in decays]
    model.compile(keras.optimizers.SGD(0.5), **quick)
    for step in range(1, 4):
        model.fit(batch[0][:8], batch[1][:8], batch_size=8, verbose=0)
        power = (1 - 1 / step) ** (ema.power_exponent(0.1) + 1)
        expected = [
            [decay * e + (1 - decay) * w for e, w in zip(average, weights, strict=True)]
            for decay, average in zip((power, 0.5), expected, strict=True)
            for weights in [weights_of(model.backbone)]
        ]
    assert [decay for decay, _ in model.averages()] == decays
    assert model.averages()[0][1] is model.ema_backbone
    for (_, network), average in zip(model.averages(), expected, strict=True):
        for actual, value in zip(weights_of(network), average, strict=True):
            np.testing.assert_allclose(actual, value, atol=1e-6)
    assert len(model.trainable_weights) == len(model.backbone.trainable_weights)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert copy.get_config() == model.get_config()
    for (_, network), (_, other) in zip(model.averages(), copy.averages(), strict=True):
        for a, b in zip(weights_of(network), weights_of(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_random_streams_of_steps_do_not_meet(make_model):
    model = make_model()
    for iteration in (0, 3, 10_000_000):
        model.iteration.assign(iteration)
        model._seed_step()
        for generator, key in (
            (model.noise_generator, model._training_key),
            (model.backbone.seed_generator, model._dropout_key),
        ):
            state = ops.convert_to_numpy(generator.state).astype("uint32")
            np.testing.assert_array_equal(state, np.uint32([key, 256 * iteration]))


def test_without_an_average_only_the_weights_answer(make_model, batch, quick):
    model = make_model(average=None)
    model.compile("sgd", **quick)
    model.fit(*batch, batch_size=8, verbose=0)
    assert model.ema_backbone is None
    with pytest.raises(ValueError, match="use_ema=True"):
        model.denoise(batch[0], 0.5, use_ema=True)


def test_noise_is_a_function_of_seed_and_iteration(make_model, batch, quick):
    def trained(seed, steps, start=None):
        keras.utils.set_random_seed(5)
        model = make_model(seed=seed, label_dropout=0.5)
        model.compile(keras.optimizers.SGD(0.1), **quick)
        if start is not None:
            model.set_weights(start)
        data = tuple(array[:8] for array in batch)
        model.fit(*data, batch_size=8, epochs=steps, verbose=0, shuffle=False)
        return model.get_weights()

    whole, resumed = trained(3, 4), trained(3, 2, start=trained(3, 2))
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)

    def noise(seed):
        drawn = make_model(seed=seed)({"image": batch[0]}, training=True)
        return ops.convert_to_numpy(drawn["noise"])

    first = noise(3)
    np.testing.assert_array_equal(noise(3), first)
    assert np.all(np.any(noise(4) != first, axis=(1, 2, 3)))


@pytest.mark.parametrize(("kind", "interval"), [("edm", (0.4, 0.9)), ("ddpm", (20.0, 40.0))])
def test_training_stays_within_the_noise_interval(make_model, batch, quick, kind, interval):
    model = make_model(kind)
    model.compile(keras.optimizers.SGD(0.0), **quick)
    model.track_clusters([0.0, *interval, 1000.0])
    model.noise_interval.assign(np.float32(interval))
    images, labels = (np.concatenate([array] * 5) for array in batch)
    model.fit(images, labels, batch_size=16, verbose=0)
    counts = ops.convert_to_numpy(model.cluster_loss.count)
    np.testing.assert_array_equal(counts, [0, 80, 0])


def test_loss_per_cluster_is_the_mean_of_its_samples(make_model, batch):
    model = make_model("ddpm")
    model.track_clusters([0, 30, 60, 100])
    level = np.float32([5, 29, 30, 31, 80, 99, 99, 99])
    losses = np.arange(8, dtype="float32")
    losses[6] = np.nan
    model.cluster_loss.update_state(ops.convert_to_tensor(losses), ops.convert_to_tensor(level))
    result = ops.convert_to_numpy(model.cluster_loss.result())
    np.testing.assert_allclose(result, [0.5, 2.5, np.nan])
    model.reset_metrics()
    assert np.all(np.isnan(ops.convert_to_numpy(model.cluster_loss.result())))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_levels_losses_and_averages_float32(make_model, batch, quick, policy):
    keras.config.set_dtype_policy(policy)
    model = make_model("ddpm")
    assert model.backbone.compute_dtype == policy.removeprefix("mixed_")
    for weight in model.weights:
        assert weight.dtype in ("float32", "int32", "int64")
    drawn = model({"image": batch[0]})
    for name in ("level", "noise"):
        assert keras.backend.standardize_dtype(drawn[name].dtype) == "float32"
    model.compile("sgd", **quick)
    history = model.fit(*batch, batch_size=8, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    model.noise_interval.assign(np.float32([0.1, 999.0]))
    interval = ops.convert_to_numpy(model.noise_interval)
    np.testing.assert_array_equal(interval, np.float32([0.1, 999.0]))


# Denoising


def test_guidance_moves_from_unconditional_to_conditional(make_model, batch):
    model = make_model()
    x, label, level = batch[0], batch[1], 0.7
    conditional = ops.convert_to_numpy(model.denoise(x, level, label=label))
    null = ops.convert_to_numpy(model.denoise(x, level, label=np.full(16, 3)))
    unlabelled = ops.convert_to_numpy(model.denoise(x, level))
    np.testing.assert_allclose(null, unlabelled, atol=1e-6)
    assert np.abs(conditional - null).max() > 0.01
    for scale in (0.0, 1.0, 2.5):
        guided = model.denoise(x, level, label=label, guidance=ops.convert_to_tensor(scale))
        expected = null + scale * (conditional - null)
        np.testing.assert_allclose(ops.convert_to_numpy(guided), expected, atol=1e-4)
    some = model.denoise(x, level, label=label, guidance=2.5, guidance_channels=2)
    expected = null + 2.5 * (conditional - null)
    expected[..., 2:] = conditional[..., 2:]
    np.testing.assert_allclose(ops.convert_to_numpy(some), expected, atol=1e-4)
    with pytest.raises(ValueError, match="label=None"):
        model.denoise(x, level, guidance=2.0)


# Saving


def test_configuration_and_weights_survive_saving(make_model, batch, quick, tmp_path):
    model = make_model("ddpm", parameterization=Epsilon(learned_variance=True), seed=9)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), **quick)
    model.fit(*batch, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert copy.get_config() == model.get_config()
    for a, b in zip(weights_of(model), weights_of(copy), strict=True):
        np.testing.assert_array_equal(a, b)
    # Optimizer and noise go on where they were.
    after = []
    for each in (model, copy):
        each.fit(*batch, batch_size=8, verbose=0, shuffle=False)
        after.append(weights_of(each))
    for a, b in zip(*after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    model.save_weights(tmp_path / "model.weights.h5")
    other = make_model("ddpm", parameterization=Epsilon(learned_variance=True), seed=9)
    other.load_weights(tmp_path / "model.weights.h5")
    for a, b in zip(weights_of(model), weights_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fresh_process_loads_what_was_saved(make_model, batch, tmp_path, run_program):
    model = make_model(depth=1)  # a network that the other process knows
    model.compile(keras.optimizers.Adam(1e-2))
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(1)
    for network in (model.backbone, model.ema_backbone):  # whose outputs start at zero
        for weight in network.weights:
            weight.assign(ops.convert_to_numpy(weight) + 0.1 * rng.normal(size=weight.shape))
    model.iteration.assign(2)
    model.save(tmp_path / "model.keras")
    images, labels = batch
    np.savez(tmp_path / "batch.npz", images=images, labels=labels)
    program = """
import sys
import keras, keras_cdiff, numpy as np
folder = sys.argv[1]
batch = np.load(f"{folder}/batch.npz")
model = keras.saving.load_model(f"{folder}/model.keras")
estimates = [
    keras.ops.convert_to_numpy(model.denoise(batch["images"], 0.5, batch["labels"], use_ema=ema))
    for ema in (False, True)
]
np.savez(f"{folder}/out.npz", estimates=estimates, iteration=int(model.iteration))
"""
    (tmp_path / "program.py").write_text(program)
    process = run_program(tmp_path / "program.py", tmp_path)
    assert process.returncode == 0, process.stderr
    out = np.load(tmp_path / "out.npz")
    assert out["iteration"] == 2
    for average, estimate in zip((False, True), out["estimates"], strict=True):
        expected = model.denoise(images, 0.5, labels, use_ema=average)
        np.testing.assert_allclose(estimate, ops.convert_to_numpy(expected), atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (lambda x, y: (x[0], y), r"shape=\(8, 8, 3\)"),
        (lambda x, y: (x[..., :2], y), r"shape=\(16, 8, 8, 2\)"),
        (lambda x, y: (np.uint8(x * 100 + 127), y), "dtype=uint8"),
        (lambda x, y: (x * 127.5 + 127.5, y), "values from"),
        (lambda x, y: (np.where(x > 0.9, np.nan, x), y), "first at index"),
        (lambda x, y: (x[:0], y[:0]), r"shape=\(0, 8, 8, 3\)"),
        (lambda x, y: (x, y + 3), "labels from 3 to 5"),
        (lambda x, y: (x, y - 1), "labels from -1 to 1"),
        (lambda x, y: (x, y.astype("float32")), "dtype=float32"),
        (lambda x, y: ({"image": x, "lable": y}, None), r"keys=\['image', 'lable'\]"),
    ],
)
def test_bad_data_is_named(make_model, batch, quick, change, received):
    model = make_model()
    model.compile(**quick)
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        model.fit(*change(*batch), batch_size=8, verbose=0)
    assert int(model.iteration) == 0


def test_labels_need_a_conditional_network(make_model, batch, quick):
    model = make_model(num_classes=0)
    model.compile(**quick)
    with pytest.raises(ValueError, match="takes no labels"):
        model.fit(*batch, verbose=0)


def test_parts_that_do_not_fit_are_named(make_model):
    from keras_cdiff import objectives, parameterizations, schedules

    network = make_model().backbone
    edm, ddpm = schedules.EDM(), schedules.LinearBeta(100)
    log_normal, uniform = objectives.LogNormalSigma(), objectives.UniformTimesteps(100)
    epsilon, learned = Epsilon(), Epsilon(learned_variance=True)
    for parts, received in (
        ((network, edm, epsilon, uniform), "num_timesteps=100"),
        ((network, schedules.LinearBeta(50), epsilon, uniform), "num_timesteps=50"),
        ((network, edm, learned, log_normal), "schedule=EDM"),
        ((network, ddpm, learned, uniform), "out_channels=3"),
        ((network, ddpm, parameterizations.Epsilon, uniform), "parameterization="),
        ((network, "linear", epsilon, uniform), "schedule='linear'"),
    ):
        with pytest.raises(ValueError, match=f"Received: .*{received}"):
            DiffusionModel(*parts)
    with pytest.raises(ValueError, match="seed=-1"):
        make_model(seed=-1)
    for average in ("slow", [], [ema.FixedDecay(0.5), 0.9]):
        with pytest.raises(ValueError, match="Received: ema="):
            make_model(average=average)
    with pytest.raises(ValueError, match="loss='mse'"):
        make_model().compile(loss="mse")


# Presets


def test_presets_are_built_with_overrides():
    model = DiffusionModel.from_preset(
        "dit_emoji16", image_size=8, num_classes=2, width=16, depth=1, num_heads=2, seed=4
    )
    assert model.image_shape == (8, 8, 3)
    assert (model.num_classes, model.seed) == (2, 4)
    assert model.parameterization.sigma_data == 0.8
    model = DiffusionModel.from_preset("dit_s_8_imagenet256", depth=1, ema=None)
    assert model.image_shape == (32, 32, 4)
    assert model.parameterization.learned_variance
    with pytest.raises(ValueError, match="Received: name='dit_emoji'"):
        DiffusionModel.from_preset("dit_emoji")
    with pytest.raises(ValueError, match="Received: widht=3"):
        DiffusionModel.from_preset("dit_emoji16", widht=3)
    with pytest.raises(ValueError, match=r"No preset has trained weights yet.*load_weights=True"):
        DiffusionModel.from_preset("dit_emoji16", load_weights=True)


def test_tensorflow_compiles_a_transformer_by_xla(make_model):
    for model, preferred in ((make_model(depth=1), True), (make_model(), "auto")):
        model.compile()
        assert model.prefers_jit() == (preferred if BACKEND == "tensorflow" else "auto")
        if BACKEND == "tensorflow":
            assert model.jit_compile == (preferred is True)

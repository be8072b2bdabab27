import itertools
import json
import math
import statistics

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import DiffusionModel, objectives, parameterizations, schedules
from keras_cdiff.curriculum import quantile_clusters, uniform_clusters
from keras_cdiff.ema import FixedDecay
from keras_cdiff.evaluation.validation_loss import ValidationLoss, cumulative_mass, middle_levels
from keras_cdiff.objectives import LogNormalSigma, UniformTimesteps

MEAN, DEVIATION, SIGMA_DATA = 0.3, 0.4, 0.5  # of the pixels, and what EDM takes the latter for
EDGES = [0.0, 0.1, 0.4, 2.0, math.inf]


@keras.saving.register_keras_serializable("validation_loss_tests")
class GaussianNetwork(keras.Model):
    """The best denoiser of pixels from N(MEAN, DEVIATION^2), its estimate scaled by a gain a class.

    The gain is 1, at which the denoiser is exact, until somebody changes it.
    """

    image_size, channels, out_channels = 4, 2, 2

    def __init__(self, num_classes=2):
        super().__init__()
        self.num_classes = num_classes
        self.gain = self.add_weight(shape=(num_classes + 1,), initializer="ones", name="gain")
        self.built = True

    def call(self, x, level, label=None, context=None, augment=None, training=False):
        sigma = ops.exp(4.0 * level)[:, None, None, None]
        total = ops.square(sigma) + SIGMA_DATA**2
        noisy = x * ops.sqrt(total)
        clean = denoise(noisy, sigma) * ops.take(self.gain, label)[:, None, None, None]
        return (clean - SIGMA_DATA**2 / total * noisy) * ops.sqrt(total) / (sigma * SIGMA_DATA)

    def get_config(self):
        return {"num_classes": self.num_classes}


def denoise(noisy, sigma):
    """E[x_0 | x], of tensors or arrays."""
    return (MEAN * sigma**2 + DEVIATION**2 * noisy) / (DEVIATION**2 + sigma**2)


def weight(sigma):
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2


def expected_loss(sigma):
    """The weighted variance of x_0 given x, which no network can undercut."""
    return weight(sigma) * (DEVIATION * sigma) ** 2 / (DEVIATION**2 + sigma**2)


@pytest.fixture
def exact_model():
    parts = schedules.EDM(), parameterizations.EDMPreconditioning(SIGMA_DATA), LogNormalSigma()
    return DiffusionModel(GaussianNetwork(), *parts, ema=FixedDecay(0.9))


def pixels(count):
    rng = np.random.default_rng(0)
    images = rng.normal(MEAN, DEVIATION, (count, 4, 4, 2)).astype("float32")
    return images, rng.integers(0, 2, count)


def brute_force(images, gain, levels, seed):
    """The losses (C, L, N) in float64."""
    losses = np.empty((*levels.shape, len(images)))
    for c, j, i in np.ndindex(losses.shape):
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, j, c, i]))
        noise = generator.standard_normal((4, 4, 2), dtype="float32").astype("float64")
        sigma = levels[c, j]
        clean = gain[i] * denoise(images[i] + sigma * noise, sigma)
        losses[c, j, i] = weight(sigma) * np.mean((clean - images[i]) ** 2)
    return losses


def test_losses_are_those_of_the_documented_grid(exact_model):
    images, labels = pixels(5)
    gains = {"average": np.array([1.0, 0.7, 0.4]), "raw": np.array([0.9, 1.2, 0.5])}
    exact_model.ema_backbone.gain.assign(gains["average"])
    exact_model.backbone.gain.assign(gains["raw"])
    for given, use_ema in ((labels, True), (None, True), (labels, False)):
        validation_loss = ValidationLoss(images, given, EDGES, 3, seed=7, batch_size=16)
        record = validation_loss(exact_model, use_ema)
        gain = gains["average" if use_ema else "raw"][2 if given is None else given]
        losses = brute_force(images, np.broadcast_to(gain, 5), np.array(record["levels"]), seed=7)

        of_images = losses.mean(axis=1)
        error = of_images.std(axis=1, ddof=1) / math.sqrt(5)
        np.testing.assert_allclose(record["cluster_loss"], of_images.mean(axis=1), rtol=1e-4)
        np.testing.assert_allclose(record["cluster_standard_error"], error, rtol=1e-3)
        overall = np.array(record["cluster_mass"]) @ of_images
        assert record["loss"] == pytest.approx(overall.mean(), rel=1e-4)
        error = overall.std(ddof=1) / math.sqrt(5)
        assert record["standard_error"] == pytest.approx(error, rel=1e-3)
        described = {name: record[name] for name in ("use_ema", "num_images", "seed", "iteration")}
        assert described == {"use_ema": use_ema, "num_images": 5, "seed": 7, "iteration": 0}
        assert record["cluster_edges"] == EDGES


@pytest.mark.backend_free
def test_an_exact_denoiser_has_the_least_possible_loss(exact_model):
    images, labels = pixels(48)
    record = ValidationLoss(images, labels)(exact_model)
    assert len(record["cluster_loss"]) == 10  # the clusters that training reports
    expected = expected_loss(np.array(record["levels"])).mean(axis=1)
    deviation = np.abs(record["cluster_loss"] - expected)
    assert np.all(deviation < 4 * np.array(record["cluster_standard_error"]))
    # A tenth of the density each, so the whole is the training loss; here by a finer grid.
    np.testing.assert_allclose(record["cluster_mass"], 0.1, rtol=1e-12)
    sigmas = LogNormalSigma().host_quantile((np.arange(10_000) + 0.5) / 10_000)
    whole = expected_loss(sigmas).mean()
    assert record["loss"] == pytest.approx(whole, abs=4 * record["standard_error"], rel=0.003)


@pytest.mark.backend_free
def test_the_batch_size_changes_nothing_and_the_seed_does(exact_model):
    images, labels = pixels(6)
    exact_model.ema_backbone.gain.assign([0.8, 1.1, 1.0])
    records = [ValidationLoss(images, labels, EDGES, 2, batch_size=b)(exact_model) for b in (64, 7)]
    for name in ("loss", "standard_error", "cluster_loss", "cluster_standard_error"):
        np.testing.assert_allclose(records[0][name], records[1][name], rtol=1e-5)
    seeded = ValidationLoss(images, labels, EDGES, 2, seed=1, batch_size=7)(exact_model)
    assert not np.allclose(seeded["cluster_loss"], records[1]["cluster_loss"], rtol=1e-3)


@pytest.mark.backend_free
def test_losses_are_those_that_training_takes(make_model, batch):
    learned = parameterizations.Epsilon(learned_variance=True)
    model = make_model("ddpm", parameterization=learned, average=None)
    for number, weight in enumerate(model.backbone.trainable_weights):
        weight.assign(weight + 0.02 * np.cos(number + np.arange(weight.shape[-1])))
    images, labels = batch[0][:3], batch[1][:3]
    record = ValidationLoss(images, labels, [0, 5, 40, 100], 2)(model)
    assert not record["use_ema"]
    for c, row in enumerate(record["levels"]):
        losses = []
        for j, i in np.ndindex(2, 3):
            generator = np.random.Generator(np.random.Philox(key=0, counter=[0, j, c, i]))
            noise = generator.standard_normal((1, 8, 8, 3), dtype="float32")
            level = np.array([row[j]], "float32")
            inputs = {"image": images[[i]], "label": labels[[i]], "level": level, "noise": noise}
            losses.append(ops.convert_to_numpy(model.process.losses(**model(inputs)))[0])
        assert record["cluster_loss"][c] == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_model_stays_as_it_is(exact_model):
    def state():
        variables = [*exact_model.variables, *exact_model.cluster_loss.variables]
        return [ops.convert_to_numpy(variable) for variable in variables]

    exact_model.noise_interval.assign([0.5, 2.0])
    exact_model.cluster_loss.update_state(ops.ones(3), ops.convert_to_tensor([0.1, 0.2, 3.0]))
    before = state()
    ValidationLoss(*pixels(5), EDGES, 3, batch_size=16)(exact_model)
    for value, same in zip(before, state(), strict=True):
        np.testing.assert_array_equal(value, same)


# Levels and masses


OBJECTIVES = [
    LogNormalSigma(),
    LogNormalSigma(-0.4, 1.0),
    objectives.LogUniformSigma(),
    objectives.LogUniformVariance(),
    objectives.UniformTime(1e-5, 1.0),
    objectives.LogitNormalTime(0.5, 1.3),
]


def normal_cdf(z):
    return statistics.NormalDist().cdf(z)


@pytest.mark.backend_free
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_the_mass_inverts_the_quantiles(objective):
    probability = np.array([0.0, 1e-9, 0.01, 0.3, 0.5, 0.77, 0.999, 1.0])
    levels = objective.host_quantile(probability)
    mass = cumulative_mass(objective, levels)
    np.testing.assert_allclose(mass, probability, rtol=1e-13, atol=1e-16)


@pytest.mark.backend_free
def test_masses_of_a_normal_density_and_of_timesteps():
    sigmas = np.array([0.0, 0.002, 0.3, 5.0, 80.0, np.inf])
    expected = [0.0, *(normal_cdf((math.log(s) + 1.2) / 1.2) for s in sigmas[1:-1]), 1.0]
    np.testing.assert_allclose(cumulative_mass(LogNormalSigma(), sigmas), expected, rtol=1e-12)
    for num_timesteps in (1, 7, 1000):
        edges = np.arange(num_timesteps + 1)
        mass = cumulative_mass(UniformTimesteps(num_timesteps), edges)
        np.testing.assert_allclose(mass, edges / num_timesteps, rtol=1e-13)


@pytest.mark.backend_free
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_levels_are_the_middles_of_equally_probable_parts(objective):
    edges = objective.host_quantile(np.array([0.0, 0.05, 0.4, 0.98, 1.0]))
    levels = middle_levels(objective, edges, 5)
    cumulative = cumulative_mass(objective, edges)
    for (low, high), row in zip(itertools.pairwise(cumulative), levels, strict=True):
        expected = low + (np.arange(5) + 0.5) / 5 * (high - low)
        np.testing.assert_allclose(cumulative_mass(objective, row), expected, rtol=2e-4)


@pytest.mark.backend_free
def test_clusters_of_unequal_mass_add_up_to_the_whole_density():
    edges, objective = np.array(EDGES), LogNormalSigma()
    mass = np.diff(cumulative_mass(objective, edges))
    losses = expected_loss(middle_levels(objective, edges, 64)).mean(axis=1)
    sigmas = objective.host_quantile((np.arange(10_000) + 0.5) / 10_000)
    assert mass @ losses == pytest.approx(expected_loss(sigmas).mean(), rel=1e-3)
    assert np.mean(losses) != pytest.approx(expected_loss(sigmas).mean(), rel=0.02)


@pytest.mark.backend_free
def test_levels_of_timesteps_are_whole_and_inside():
    edges = np.array([0.0, 1.0, 3.0, 11.0, 100.0])
    levels = middle_levels(UniformTimesteps(100), edges, 4)
    assert levels.tolist() == [[0, 0, 0, 0], [1, 1, 2, 2], [4, 6, 8, 10], [22, 44, 66, 88]]


@pytest.mark.backend_free
def test_clusters_are_cut_off_at_what_is_drawn_and_may_cover_a_part(exact_model, make_model):
    images = np.zeros((2, 4, 4, 2))
    outside = ValidationLoss(images, clusters=[-1.0, 0.5, 80.0])
    assert outside.check(exact_model).tolist() == [0.0, 0.5, 80.0]
    part = ValidationLoss(images, clusters=uniform_clusters(schedules.EDM(), 3))
    assert part.check(exact_model).tolist() == pytest.approx([0.002, 26.668, 53.334, 80.0])
    assert sum(part(exact_model)["cluster_mass"]) < 1.0
    ddpm = make_model("ddpm")
    timesteps = ValidationLoss(np.zeros((2, 8, 8, 3)), clusters=uniform_clusters(ddpm.schedule, 7))
    assert timesteps.check(ddpm).tolist() == [0, 14, 29, 43, 57, 71, 86, 100]


@pytest.mark.backend_free
def test_a_record_of_a_model_that_diverged_is_made(exact_model):
    exact_model.ema_backbone.gain.assign([math.nan, math.inf, 1.0])
    images, _ = pixels(4)
    record = ValidationLoss(images, [0, 1, 2, 2], EDGES)(exact_model)
    assert math.isnan(record["loss"])
    assert json.loads(json.dumps(record))["num_images"] == 4


# Bad input


IMAGES = np.zeros((3, 4, 4, 2), "float32")


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES[0]}, r"\(N, H, W, C\).*shape \(4, 4, 2\)"),
        ({"images": IMAGES[:1]}, r"at least two images.*shape \(1, 4, 4, 2\)"),
        ({"images": IMAGES.astype("uint8")}, "float dtype.*uint8"),
        ({"images": IMAGES + np.nan}, "finite.*3 such images"),
        ({"images": np.full((2, 4, 4, 3), 255.0)}, "scaled to.*255"),
        ({"labels": [0, 1]}, r"3 classes.*shape \(2,\)"),
        ({"clusters": [0.0]}, "at least two edges"),
        ({"clusters": [1.0, 0.0]}, "ascend"),
        ({"levels_per_cluster": 0}, "levels_per_cluster=0"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 1.5}, r"batch_size=1\.5"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=rf"(?s){message}") as caught:
        ValidationLoss(**{"images": IMAGES, **arguments})
    assert "Received: " in str(caught.value)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 2))}, r"shape, \(4, 4, 2\).*shape \(2, 8, 8, 2\)"),
        ({"labels": [0, 1, 3]}, "0..1.*labels from 0 to 3"),
        ({"labels": [0.0, 1.0, 1.0]}, "integers.*float64"),
        ({"clusters": [-2.0, -1.0, 1.0]}, r"within \[0, inf\].*edges=\[-2"),
        ({"clusters": [1e30, 1e31]}, r"widen them.*1e\+31"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(exact_model, arguments, message):
    validation_loss = ValidationLoss(**{"images": IMAGES, **arguments})
    for evaluate in (validation_loss, validation_loss.check):
        with pytest.raises(ValueError, match=message) as caught:
            evaluate(exact_model)
        assert "Received: " in str(caught.value)


@pytest.mark.backend_free
@pytest.mark.parametrize("edges", [[0, 50, 101], [-1, 50, 100], [0, 49.5, 100]])
def test_timesteps_are_not_cut_off(make_model, edges):
    validation_loss = ValidationLoss(np.zeros((2, 8, 8, 3)), clusters=edges)
    with pytest.raises(ValueError, match=r"whole timesteps within \[0, 100\].*Received: edges="):
        validation_loss(make_model("ddpm"))


@pytest.mark.backend_free
def test_labels_need_a_model_with_classes(make_model):
    validation_loss = ValidationLoss(np.zeros((2, 8, 8, 3)), [0, 1])
    with pytest.raises(ValueError, match="takes no labels"):
        validation_loss(make_model(num_classes=0))
    clusters = quantile_clusters(LogNormalSigma(), 2)
    unlabelled = ValidationLoss(np.zeros((2, 8, 8, 3)), clusters=clusters, levels_per_cluster=1)
    assert math.isfinite(unlabelled(make_model(num_classes=0))["loss"])

import keras
import pytest

from keras_cdiff import presets, training
from keras_cdiff.curriculum import FixedPacing, PatiencePacing
from keras_cdiff.ema import FixedDecay
from keras_cdiff.model.guarded_optimizer import GuardedOptimizer
from keras_cdiff.training import building, configuration

pytestmark = pytest.mark.backend_free


def schedule_of(config):
    return building.build_optimizer(config).inner_optimizer._learning_rate


def test_the_model_is_that_of_the_configuration_not_of_the_preset(tiny):
    config = tiny({"num_classes": 0}, seed=5)
    config["model"]["ema"]["config"]["decay"] = 0.5
    model = building.build_model(config)
    assert model.image_shape == (8, 8, 3)
    assert model.num_classes == 0
    assert model.seed == 5
    assert isinstance(model.ema, FixedDecay)
    assert model.ema.decay == 0.5


def test_the_learning_rate_warms_up_and_falls_to_zero_at_the_last_step():
    config = training.resolve("dit_emoji16", steps=1000)
    rate = schedule_of(config)
    peak = config["training"]["learning_rate"]
    assert [float(rate(step)) for step in (0, 50, 100, 550, 1000)] == pytest.approx(
        [0.0, peak / 2, peak, peak / 2, 0.0], abs=1e-8
    )


def test_a_constant_learning_rate_stays_after_the_warm_up():
    config = training.resolve("dit_emoji16", steps=1000)
    config["training"]["learning_rate_schedule"] = "constant"
    rate = schedule_of(config)
    peak = config["training"]["learning_rate"]
    assert [float(rate(step)) for step in (50, 100, 1000, 5000)] == pytest.approx(
        [peak / 2, peak, peak, peak]
    )
    config["training"]["warmup_steps"] = 0
    assert float(building.build_optimizer(config).learning_rate) == pytest.approx(peak)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_loss_is_scaled_in_half_precision_alone(policy):
    optimizer = building.build_optimizer(training.resolve("dit_emoji16", dtype_policy=policy))
    assert isinstance(optimizer, GuardedOptimizer)
    scales = isinstance(optimizer.inner_optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales == (policy == "mixed_float16")


@pytest.mark.parametrize(
    ("kind", "order", "cumulative"),
    [
        ("paper", "easy_to_hard", True),
        ("hard_to_easy", "hard_to_easy", True),
        ("isolated", "easy_to_hard", False),
    ],
)
@pytest.mark.parametrize("clusters", configuration.CLUSTERS)
def test_the_curriculum_is_the_configured_one(kind, order, cumulative, clusters):
    config = training.resolve(
        "dit_emoji16", curriculum=kind, clusters=clusters, num_clusters=4, patience=9
    )
    callback = building.build_curriculum(config)
    assert (callback.order, callback.cumulative) == (order, cumulative)
    assert callback.clusters.num_clusters == 4
    assert callback.clusters.name == clusters
    assert isinstance(callback.pacing, PatiencePacing)
    assert callback.pacing.patience == 9
    low, high = callback.clusters.full_interval
    assert (low, high) == ((0.002, 80.0) if clusters == "uniform" else (0.0, float("inf")))


def test_stages_may_have_a_fixed_length():
    config = training.resolve("dit_emoji16", stage_steps=9, curriculum="hard_to_easy")
    pacing = building.build_curriculum(config).pacing
    assert isinstance(pacing, FixedPacing)
    assert pacing.steps == 9


def test_no_curriculum_is_none():
    config = training.resolve("dit_emoji16", curriculum="none")
    assert config["curriculum"] is None
    assert building.build_curriculum(config) is None


@pytest.mark.parametrize("is_latent", [False, True])
@pytest.mark.parametrize("name", building.SAMPLERS)
def test_samplers_clamp_pixels_but_not_latents(name, is_latent):
    sampler = building.build_sampler(name, 7, is_latent)
    assert isinstance(sampler, building.SAMPLERS[name])
    assert sampler.num_steps == 7
    # Solvers of the flow do not clamp by default.
    assert sampler.clip == (not is_latent and name in ("ddpm", "ddim"))


def test_a_sampler_has_its_own_number_of_steps_by_default():
    for name, sampler in building.SAMPLERS.items():
        assert building.build_sampler(name).num_steps == sampler().num_steps
    with pytest.raises(ValueError, match=r"ddpm, ddim, euler, heun, dpm_solver.*leapfrog"):
        building.build_sampler("leapfrog")


def test_a_sampler_takes_the_options_of_a_preset():
    sampling = presets.preset("edm_adm_imagenet64")["sampling"]
    sampler = building.build_sampler(sampling["sampler"], 256, **sampling["options"])
    assert (sampler.s_churn, sampler.s_min, sampler.s_max, sampler.s_noise) == (40, 0.05, 50, 1.003)


def test_updates_are_clipped_and_accumulated_as_configured():
    optimizer = building.build_optimizer(
        training.resolve("dit_emoji16", gradient_accumulation_steps=4, global_clipnorm=2.0)
    )
    assert optimizer.inner_optimizer.gradient_accumulation_steps == 4
    assert optimizer.inner_optimizer.global_clipnorm == 2.0
    plain = building.build_optimizer(training.resolve("dit_emoji16")).inner_optimizer
    assert (plain.gradient_accumulation_steps, plain.global_clipnorm) == (None, None)

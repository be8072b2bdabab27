import copy
import dataclasses
import inspect
import json
import re
from pathlib import Path

import keras
import pytest

from keras_cdiff import presets, training
from keras_cdiff.curriculum import Clusters
from keras_cdiff.training import building, configuration, settings

pytestmark = pytest.mark.backend_free

RESUMING = Path(__file__).parents[2] / "docs" / "resuming.md"
SMALL_UNET = {"num_blocks": 1, "channel_multipliers": [1], "attention_resolutions": []}


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_configuration_is_strict_json_that_survives_a_round_trip(preset):
    config = training.resolve(preset)
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    assert config["preset"] == preset
    assert config["backend"] == keras.backend.backend()


def test_what_is_given_replaces_the_preset_and_the_rest_stays():
    default = presets.preset("dit_emoji16")
    config = training.resolve(
        "dit_emoji16",
        image_size=8,
        steps=7,
        batch_size=4,
        learning_rate=1e-5,
        horizontal_flip=True,
        dtype_policy="mixed_bfloat16",
        jit_compile="false",
        num_clusters=4,
        seed=3,
    )
    assert config["seed"] == 3
    assert config["training"] == {
        **default["training"],
        "steps": 7,
        "batch_size": 4,
        "learning_rate": 1e-5,
        "horizontal_flip": True,
        "jit_compile": False,
        "log_every": 100,
        "sample_every": 7,
        "max_nonfinite": 10,
        "gradient_accumulation_steps": 1,
        "global_clipnorm": None,
    }
    assert config["checkpoints"] == {"every": 500, "keep_last": 3, "keep_every": None}
    expected = {**default["model"]["backbone"], "image_size": 8, "dtype": "mixed_bfloat16"}
    assert config["model"] == {**default["model"], "backbone": expected}
    assert config["curriculum"]["patience"] == default["curriculum"]["patience"]
    assert len(config["curriculum"]["edges"]) == 5
    # The preset itself is as it was.
    assert presets.preset("dit_emoji16") == default


@pytest.mark.parametrize(
    ("arguments", "num_classes"),
    [
        ({}, 8),
        ({"data": "emoji"}, 8),
        ({"data": "folder:flowers"}, None),
        ({"data": "folder:flowers", "num_classes": 5}, 5),
        ({"num_classes": 0}, 0),
    ],
)
def test_other_data_decides_the_number_of_classes_unless_it_is_given(arguments, num_classes):
    config = training.resolve("dit_emoji16", **arguments)
    assert config["model"]["backbone"]["num_classes"] == num_classes


@pytest.mark.parametrize(
    ("preset", "arguments", "message"),
    [
        ("dit_huge", {}, "dit_emoji16"),
        ("dit_emoji16", {"steps": 0}, "steps=0"),
        ("dit_emoji16", {"batch_size": 1.5}, "batch_size=1.5"),
        ("dit_emoji16", {"log_every": 0}, "log_every=0"),
        ("dit_emoji16", {"checkpoint_every": 0}, "Received: checkpoint_every=0"),
        ("dit_emoji16", {"keep_last": 0}, "Received: keep_last=0"),
        ("dit_emoji16", {"keep_every": 0}, "Received: keep_every=0"),
        ("dit_emoji16", {"max_nonfinite": -1}, "Received: max_nonfinite=-1"),
        ("dit_emoji16", {"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
        ("dit_emoji16", {"global_clipnorm": 0.0}, "Received: global_clipnorm=0.0"),
        ("edm_emoji16", {"rematerialize": True}, "for transformers.*edm_emoji16"),
        ("dit_emoji16", {"sample_every": 0}, "sample_every=0"),
        ("dit_emoji16", {"learning_rate": 0.0}, "learning_rate=0.0"),
        ("dit_emoji16", {"learning_rate": float("inf")}, "learning_rate=inf"),
        ("dit_emoji16", {"learning_rate": float("nan")}, "learning_rate=nan"),
        ("dit_emoji16", {"image_size": 0}, "image_size=0"),
        ("dit_emoji16", {"image_size": 15}, "multiple of 2.*image_size=15"),
        ("edm_emoji16", {"image_size": 18}, "multiple of 4.*image_size=18"),
        ("dit_emoji16", {"num_classes": -1}, "num_classes=-1"),
        ("dit_emoji16", {"augment": 0.1}, "conditioned on it.*augment=0.1, preset='dit_emoji16'"),
        ("edm_emoji16", {"augment": 1.5}, "in .0.0, 1.0.. Received: augment=1.5"),
        ("dit_emoji16", {"seed": -1}, "seed=-1"),
        ("dit_emoji16", {"seed": 2**32}, "seed=4294967296"),
        ("dit_emoji16", {"dtype_policy": "float8"}, "mixed_bfloat16.*float8"),
        ("dit_emoji16", {"jit_compile": "maybe"}, "auto, true, false.*maybe"),
        ("dit_emoji16", {"curriculum": "random"}, "hard_to_easy.*random"),
        ("dit_emoji16", {"clusters": "equal"}, "quantile.*equal"),
        ("dit_emoji16", {"clusters": Clusters([0, 1, 2]), "num_clusters": 3}, "are 2: leave.*=3"),
        ("dit_emoji16", {"patience": 0}, "patience=0"),
        ("dit_emoji16", {"stage_steps": 0}, "steps=0"),
        ("dit_emoji16", {"stage_steps": 2**24}, "stage_steps=16777216"),
        ("dit_emoji16", {"stage_steps": 5, "patience": 5}, "one of both.*=5, stage_steps=5"),
        ("dit_emoji16", {"weighting": "snr"}, "min_snr.*weighting='snr'"),
        ("dit_emoji16", {"num_clusters": 0}, "num_clusters=0"),
        ("dit_b_2_imagenet256", {"num_clusters": 1001}, "at most 1000.*num_clusters=1001"),
        (
            "dit_b_2_imagenet256",
            {"num_clusters": 1001, "clusters": "uniform"},
            "at most 1000.*num_clusters=1001",
        ),
    ],
)
def test_bad_settings_are_named_before_any_data_is_opened(preset, arguments, message):
    with pytest.raises(ValueError, match=message):
        training.resolve(preset, **arguments)


def test_a_preset_of_ones_own_is_taken_by_its_name():
    own = {**presets.preset("edm_emoji16"), "name": "mine"}
    own["model"]["backbone"] |= {"width": 16, **SMALL_UNET}
    before = copy.deepcopy(own)
    config = training.resolve(own, steps=3)
    assert own == before
    assert config == {
        **training.resolve("edm_emoji16", steps=3),
        "preset": "mine",
        "model": own["model"] | {"backbone": own["model"]["backbone"] | {"dtype": "float32"}},
    }
    assert building.build_model(config).backbone.width == 16


def test_a_preset_of_ones_own_must_be_whole():
    own = presets.preset("edm_emoji16")
    del own["sampling"]
    with pytest.raises(ValueError, match="Received: preset without name, sampling"):
        training.resolve(own)


def test_a_preset_of_ones_own_may_have_stages_of_fixed_length():
    own = {**presets.preset("edm_emoji16"), "name": "mine"}
    own["curriculum"] = {"clusters": "quantile", "num_clusters": 3, "stage_steps": 6}
    assert training.resolve(own)["curriculum"]["stage_steps"] == 6
    staged = training.resolve(own, patience=4)["curriculum"]
    assert staged["patience"] == 4
    assert "stage_steps" not in staged


@pytest.mark.parametrize("kind", configuration.WEIGHTINGS)
def test_the_weighting_takes_the_place_of_the_presets(kind):
    config = training.resolve("dit_emoji16", weighting=kind)
    model = building.build_model(config)
    plain = training.resolve("dit_emoji16")
    assert model.objective.weighting.get_config() == configuration.WEIGHTINGS[kind]["config"]
    del config["model"]["objective"]["config"]["weighting"]
    del plain["model"]["objective"]["config"]["weighting"]
    assert config == plain


def test_stages_of_fixed_length_have_no_patience():
    config = training.resolve("dit_emoji16", stage_steps=7)
    assert config["curriculum"]["stage_steps"] == 7
    assert "patience" not in config["curriculum"]
    assert "stage_steps" not in training.resolve("dit_emoji16")["curriculum"]


@pytest.mark.parametrize(("augment", "features"), [(None, 0), (0.3, 9), (0.0, 0)])
def test_augmentation_is_set_with_the_network_that_is_conditioned_on_it(augment, features):
    config = training.resolve("edm_emoji16", image_size=8, augment=augment)
    config["model"]["backbone"] |= {"width": 8, **SMALL_UNET}
    assert json.loads(json.dumps(config)) == config
    model = building.build_model(config)
    assert model.backbone.augment_features == features
    assert getattr(model.augmentation, "probability", None) == (augment or None)


def test_augmentation_of_a_preset_can_be_left_out():
    config = training.resolve("edm_ddpmpp_cifar10", augment=0.0)
    assert config["model"]["augmentation"] is None
    assert config["model"]["backbone"]["augment_features"] == 0


def test_evaluation_and_validation_are_off_unless_they_are_asked_for():
    config = training.resolve("dit_emoji16")
    assert config["evaluation"] is None
    assert config["validation"] is None
    config = training.resolve("dit_emoji16", evaluate_every=5, extractor="inception")
    assert config["evaluation"] == {"every": 5, "num_samples": 1000, "extractor": "inception"}
    config = training.resolve("dit_emoji16", validate_every=5, validation_data="npz:test.npz")
    edges = config["curriculum"]["edges"]
    expected = {"every": 5, "data": "npz:test.npz", "num_images": 256, "edges": edges}
    assert config["validation"] == expected
    # Plain training is measured by the same clusters, to be compared with the curriculum.
    plain = training.resolve(
        "dit_emoji16", curriculum="none", validate_every=5, validation_data="npz:test.npz"
    )
    assert plain["validation"] == expected
    assert plain["curriculum"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluate_every": 0}, "Received: evaluate_every=0"),
        ({"evaluate_every": 5, "evaluate_samples": 1}, "Received: evaluate_samples=1"),
        ({"validate_every": 5}, "both a number of steps and images.*validation_data=None"),
        ({"validation_data": "emoji"}, "both a number of steps and images.*validate_every=None"),
        (
            {"validate_every": 5, "validation_data": "emoji", "validation_images": 1},
            "Received: validation_images=1",
        ),
    ],
)
def test_evaluation_that_could_not_run_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        training.resolve("dit_emoji16", **arguments)


def test_the_choices_of_settings_are_those_of_the_package():
    choices = {
        field.name: settings.describe(field)[0].choices
        for group in (*settings.GROUPS, settings.Sampling)
        for field in dataclasses.fields(group)
    }
    assert choices["weighting"] == tuple(configuration.WEIGHTINGS)
    assert choices["sampler"] == tuple(building.SAMPLERS)


def test_every_setting_is_an_argument_with_its_help():
    parameters = inspect.signature(training.resolve).parameters
    assert list(parameters) == ["preset", *names_of(*settings.GROUPS)]
    assert parameters["keep_last"].default == 3
    for group in settings.GROUPS:
        for field in dataclasses.fields(group):
            assert settings.describe(field)[0].help in training.resolve.__doc__
    with pytest.raises(TypeError, match="keep_first"):
        training.resolve("dit_emoji16", keep_first=3)


def test_the_documents_name_what_may_change_when_a_run_goes_on():
    changing = [
        field.name
        for group in settings.GROUPS
        for field in dataclasses.fields(group)
        if settings.describe(field)[0].may_change
    ]
    row = next(line for line in RESUMING.read_text().splitlines() if "everything else" in line)
    assert re.findall(r"`--(\w+)`", row) == [*changing, "backend", "distribution"]


def test_settings_that_a_run_was_written_without_have_their_defaults():
    config = training.resolve("dit_emoji16", keep_every=7, evaluate_every=3)
    older = copy.deepcopy(config)
    del older["training"]["global_clipnorm"], older["checkpoints"]["keep_last"]
    assert configuration.read(older) == config
    assert configuration.read(config) == config


def test_settings_of_another_version_are_refused_by_name():
    config = training.resolve("dit_emoji16")
    config["training"]["momentum"] = 0.9
    config["keras_cdiff"] = "9.0"
    with pytest.raises(ValueError, match=r"by keras_cdiff 9.0.*Received: training.momentum"):
        configuration.read(config)


def names_of(*groups):
    return [field.name for group in groups for field in dataclasses.fields(group)]

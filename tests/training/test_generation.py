import numpy as np
import pytest
from PIL import Image

import keras_cdiff
from keras_cdiff import sample, training
from keras_cdiff.data import to_uint8
from keras_cdiff.samplers import Heun


@pytest.fixture
def config(tiny):
    return tiny()


def average_differs(model):
    """Lets the averaged DiT, which starts at an output of zero like the raw one, predict."""
    for number, weight in enumerate(model.ema_backbone.weights):
        weight.assign(
            weight + 0.02 * np.cos(number + np.arange(np.prod(weight.shape))).reshape(weight.shape)
        )
    return model


def test_samples_are_written_as_a_grid_and_as_8_bit_images(tmp_path, make_model, config):
    model = average_differs(make_model(depth=1))
    images = training.generate(model, config, tmp_path / "new", num_samples=5, seed=3, batch_size=2)
    with np.load(tmp_path / "new" / "samples.npz") as file:
        assert file.files == ["arr_0"]
        np.testing.assert_array_equal(file["arr_0"], images)
    assert (images.shape, images.dtype) == ((5, 8, 8, 3), np.uint8)
    with Image.open(tmp_path / "new" / "samples.png") as grid:
        assert grid.size == (3 * 66 + 2, 2 * 66 + 2)
    assert len(list((tmp_path / "new").iterdir())) == 2
    # Classes in turn, the preset's sampler and steps, the averaged weights.
    expected = sample(model, 5, Heun(2), seed=3, label=[0, 1, 2, 0, 1], progress=False)
    np.testing.assert_allclose(images, to_uint8(expected), atol=1)


@pytest.mark.backend_free
def test_every_option_reaches_the_sampler(tmp_path, make_model, config):
    model = average_differs(make_model(depth=1))
    plain = training.generate(model, config, tmp_path, num_samples=2, label=1)
    for changes in (
        {"seed": 7},
        {"label": 2},
        {"guidance": 4.0},
        {"guidance": 4.0, "guidance_interval": (1.0, 100.0)},
        {"use_ema": False},
        {"num_steps": 3},
        {"sampler": "ddim"},
        {"sampler": "dpm_solver"},
    ):
        options = {"num_samples": 2, "label": 1, **changes}
        assert np.any(training.generate(model, config, tmp_path, **options) != plain), changes
    guided = {"num_samples": 2, "label": 1, "guidance": 4.0}
    limited = training.generate(model, config, tmp_path, guidance_interval=(1.0, 100.0), **guided)
    assert np.any(limited != training.generate(model, config, tmp_path, **guided))
    same = training.generate(model, config, tmp_path, num_samples=2, label=1, sampler="heun")
    np.testing.assert_array_equal(same, plain)


@pytest.mark.backend_free
def test_without_classes_or_average_the_preset_guidance_is_left_out(tmp_path, make_model, config):
    config["sampling"]["guidance"] = 3.0
    model = make_model(num_classes=0, channels=1, average=None)
    images = training.generate(model, config, tmp_path, num_samples=2)
    assert images.shape == (2, 8, 8, 1)
    with Image.open(tmp_path / "samples.png") as grid:
        assert grid.mode == "L"


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 4}, "label=4"),
        ({"label": -1}, "label=-1"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"sampler": "leapfrog"}, "dpm_solver.*leapfrog"),
        ({"guidance": 2.0, "guidance_interval": (1.0, 0.5)}, "interval=.1.0, 0.5"),
        ({"guidance": 1.0, "guidance_interval": (0.5, 1.0)}, "guidance_interval=.0.5, 1.0"),
        ({"guidance": -1.0}, "-1"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_options_out_of_range_leave_nothing(tmp_path, make_model, config, options, message):
    with pytest.raises(ValueError, match=message):
        training.generate(make_model(), config, tmp_path / "output", **options)
    assert not (tmp_path / "output").exists()


@pytest.mark.backend_free
def test_a_label_needs_classes(tmp_path, make_model, config):
    with pytest.raises(ValueError, match=r"no classes.*label=1"):
        training.generate(make_model(num_classes=0), config, tmp_path / "output", label=1)


@pytest.mark.backend_free
def test_latents_are_not_written_as_images(tmp_path, make_model, config):
    with pytest.raises(ValueError, match=r"are latents.*4 channels"):
        training.generate(make_model(channels=4), config, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.backend_free
def test_a_file_is_no_output(tmp_path, make_model, config):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="must be a folder"):
        training.generate(make_model(), config, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.backend_free
def test_one_weights_file_serves_as_weights_and_average(tmp_path, tiny):
    from keras_cdiff.training import building

    path = tmp_path / "any.weights.h5"
    changes = {"image_size": 8, "num_classes": 3}
    trained = building.build_model(training.resolve("dit_emoji16", seed=1, **changes))
    trained.backbone.save_weights(path)
    model, config = training.load_weights(path, "dit_emoji16", **changes)
    assert config["preset"] == "dit_emoji16"
    for network in (model.backbone, model.ema_backbone):
        got, want = network.get_weights(), trained.backbone.get_weights()
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    with pytest.raises(ValueError, match=r"this preset's network.*any\.weights\.h5"):
        training.load_weights(path, "dit_emoji16", num_classes=4, image_size=8)


@pytest.mark.backend_free
def test_a_folder_without_a_run_cannot_be_sampled(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        training.load_run(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ValueError, match=r"exported sampler.*tf\.saved_model\.load"):
        keras_cdiff.load(tmp_path)

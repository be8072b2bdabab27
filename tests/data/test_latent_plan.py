import pytest

from keras_cdiff.data.latent_writer import check_source_name, plan_encoding
from keras_cdiff.training import resolve

pytestmark = pytest.mark.backend_free


@pytest.fixture(autouse=True)
def tfds_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def plan(source, autoencoder="stable_diffusion", image_size=256, mirrored=True, **options):
    return plan_encoding(source, autoencoder, image_size, mirrored, "/data/latents", **options)


def test_imagenet_at_256():
    found = plan("tfds:imagenet2012")
    assert found["latent_shape"] == [32, 32, 4]
    assert found["bytes_an_image"] == 2 * 32 * 32 * 8 * 2  # two views, float16
    assert not found["found"]
    assert found["preset"] == "dit_b_2_imagenet256"
    assert (found["data"], found["output"]) == ("tfds:imagenet2012", "/data/latents")


@pytest.mark.parametrize(
    ("source", "image_size", "text_encoder", "preset"),
    [
        ("tfds:coco_captions/2014:train", 256, "clip", "dit_b_2_coco256"),
        ("folder:/data/a", 256, "clip:/my clip", "dit_b_2_coco256"),
        ("folder:/data/a", 256, "minilm:m.npz", "dit_b_2_coco256"),
        ("folder:/data/a", 128, "clip", "dit_latent_emoji64"),
        ("folder:/data/my faces", 256, None, "dit_b_2_ffhq256"),
        ("folder:imagenet2012", 256, None, "dit_b_2_ffhq256"),
    ],
)
def test_presets_by_data(source, image_size, text_encoder, preset):
    found = plan(source, image_size=image_size, text_encoder=text_encoder)
    assert (found["preset"], found["text_encoder"]) == (preset, text_encoder)
    # Training takes it: the network is of these latents, and of the encoder's width or of any.
    config = resolve(preset, data="latents:/data/latents", text_encoder=text_encoder)
    backbone = config["model"]["backbone"]
    assert [backbone["image_size"], backbone["channels"]] == found["latent_shape"][1:]
    assert config["text_encoder"] == (None if text_encoder is None else {"name": text_encoder})


def test_a_small_autoencoder_without_mirrored_images(tmp_path):
    (tmp_path / "images.npz").touch()
    found = plan(f"npz:{tmp_path / 'images.npz'}", "train", image_size=64, mirrored=False)
    assert found["found"]
    assert found["latent_shape"] == [16, 16, 4]
    assert found["bytes_an_image"] == 16 * 16 * 8 * 2
    assert found["preset"] == "dit_latent_emoji64"
    fitted = plan("emoji", "kl:/data/autoencoder", image_size=64, geometry=(2, 6))
    assert fitted["latent_shape"] == [32, 32, 6]


@pytest.mark.parametrize(("image_size", "geometry"), [(128, (2, 4)), (64, (2, 6))])
def test_latents_without_a_preset(image_size, geometry):
    found = plan("emoji", "kl:/data/autoencoder", image_size=image_size, geometry=geometry)
    assert found["preset"] is None


def test_a_data_set_of_ones_own_is_known_once_it_is_prepared(tfds_folder):
    with pytest.raises(ValueError, match=r"TFDS must know .*'tfds:ffhq'"):
        plan("tfds:ffhq")
    (tfds_folder / "ffhq").mkdir()
    assert plan("tfds:ffhq")["found"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tfds:imagenet202",), r"It knows imagenet2012.*Received: source='tfds:imagenet202'"),
        (("npz:",), r"images to encode is emoji.*Received: source='npz:'"),
        (("latents:/data",), r"images to encode.*Received: source='latents:/data'"),
        (("emoji", "vae"), r"stable_diffusion:FOLDER.*Received: autoencoder='vae'"),
        (("emoji", "kl"), r"kl:FOLDER.*Received: autoencoder='kl'"),
        (("emoji", "train:foo"), r"or train\. Received: autoencoder='train:foo'"),
        (("emoji", "stable_diffusion:"), r"Received: autoencoder='stable_diffusion:'"),
        (("emoji", "stable_diffusion", 36), r"multiple of 8.*Received: image_size=36"),
        (("emoji", "train", 2), r"multiple of 4.*Received: image_size=2"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(*arguments)


@pytest.mark.parametrize("name", ["", "bert", "minilm", "minilm:", "clip:", "Clip"])
def test_text_encoders_that_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match=rf"clip:random\. Received: text_encoder='{name}'"):
        plan("emoji", text_encoder=name)


def test_names_of_sources():
    assert check_source_name("emoji") == ("emoji", "")
    assert check_source_name("folder:/a:b") == ("folder", "/a:b")
    assert check_source_name("tfds:cifar10:train[:80%]") == ("tfds", "cifar10")

import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import numpy as np
import pytest

from keras_cdiff.data import ArraySource, open_source, prepare_image
from keras_cdiff.data.latent_writer import (
    check_begun,
    check_store,
    count_encoded,
    encode_source,
)
from keras_cdiff.data.latents import LatentSource, draw_latent

pytestmark = pytest.mark.backend_free


class Averages:
    """An autoencoder of the interface alone: means of 2 x 2 pixels, their last row and column
    weighted more, so that it does not commute with mirroring. A batch is always of one size.
    """

    factor, channels, scale = 2, 4, 0.5

    def __init__(self, name="stable_diffusion:random", fails_at=None, waits_at=None):
        self.name, self.fails_at, self.waits_at = name, fails_at, waits_at
        self.kind = name.partition(":")[0]
        self.sizes = []

    def moments(self, images):
        self.sizes.append(len(images))
        if len(self.sizes) == self.fails_at:
            raise KeyboardInterrupt
        if len(self.sizes) == self.waits_at:
            time.sleep(600)
        count, height, width, _ = images.shape
        boxes = images.reshape(count, height // 2, 2, width // 2, 2, 3)
        mean = np.einsum("nhawbc,ab->nhwc", boxes, np.array([[0.1, 0.2], [0.3, 0.4]]))
        mean = np.concatenate([mean, mean[..., :1]], axis=-1)
        return self.scale * np.concatenate([mean, 0.01 * np.exp(mean)], axis=-1, dtype=np.float32)

    def fingerprint(self):
        return hashlib.sha256(f"averages {self.scale}".encode()).hexdigest()

    def describe(self):
        names = ("name", "factor", "channels", "scale")
        return {**{n: getattr(self, n) for n in names}, "fingerprint": self.fingerprint()}

    def save(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "autoencoder.json").write_text(json.dumps(self.describe()))


def pictures(count=11, captions=False):
    images = np.random.default_rng(0).integers(0, 256, (count, 10, 8, 3), np.uint8)
    words = np.array([f"picture {n}" for n in range(count)]) if captions else None
    return ArraySource("pictures", images, np.arange(count) % 3, words, ["a", "b", "c"])


def encode(folder, autoencoder=None, source=None, image_size=8, **options):
    options = {"batch_size": 3, "shard_size": 4, "progress": False, **options}
    autoencoder = autoencoder or Averages()
    return encode_source(source or pictures(), autoencoder, image_size, folder, **options)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


@pytest.fixture
def store(tmp_path):
    encode(tmp_path / "store")
    return tmp_path / "store"


# What is written


@pytest.mark.parametrize("mirrored", [True, False])
def test_moments_are_those_of_the_prepared_images_and_of_their_mirror_images(tmp_path, mirrored):
    source = pictures()
    latents = encode(tmp_path, mirrored=mirrored)
    assert len(latents) == 11
    assert (latents.latent_size, latents.channels, latents.mirrored) == (4, 4, mirrored)
    for n in range(11):
        example = latents[n]
        assert set(example) == {"moments", "label"}
        assert example["moments"].shape == (1 + mirrored, 4, 4, 8)
        assert example["moments"].dtype == np.float16
        assert example["label"] == n % 3
        image = prepare_image(source[n]["image"], 8)
        for view, seen in zip(example["moments"], (image, image[:, ::-1]), strict=False):
            expected = Averages().moments(seen[None])[0]
            assert np.allclose(view, expected, rtol=1e-3, atol=1e-7)
    if mirrored:  # the fake does not commute with mirroring, as no encoder does
        view, mirror = latents[0]["moments"]
        assert np.abs(view[:, ::-1].astype(float) - mirror).max() > 0.01


def test_the_source_says_what_the_images_were(store):
    latents = open_source(f"latents:{store}")
    assert isinstance(latents, LatentSource)
    assert latents.name == f"latents:{store}"
    assert latents.source_name == "pictures"
    assert latents.image_size == 8
    assert latents.autoencoder == Averages().describe()
    assert latents.autoencoder_name() == "stable_diffusion:random"
    assert latents.labels().tolist() == [n % 3 for n in range(11)]
    assert latents.labels().dtype == np.int32
    assert (latents.num_classes, latents.class_names) == (3, ("a", "b", "c"))
    assert not latents.has_captions
    assert latents.captions() is None
    index = json.loads((store / "index.json").read_text())
    assert index["source_digest"] == pictures().digest()
    assert [shard["count"] for shard in index["shards"]] == [4, 4, 3]


def test_captions_are_kept(tmp_path):
    latents = encode(tmp_path, source=pictures(captions=True))
    assert latents.has_captions
    assert latents.captions() == [(f"picture {n}",) for n in range(11)]
    assert latents[7]["caption"] == "picture 7"


def test_images_without_labels(tmp_path):
    latents = encode(tmp_path, source=ArraySource("plain", np.zeros((2, 8, 8, 1), np.uint8)))
    assert latents.labels() is None
    assert set(latents[1]) == {"moments"}


def test_every_batch_has_one_size(tmp_path):
    """Another would be compiled anew, and its numbers may differ in the last digit."""
    autoencoder = Averages()
    encode(tmp_path, autoencoder)
    assert autoencoder.sizes == [3] * 10  # 4 + 4 + 3 images by threes, twice


def test_latents_are_drawn_from_the_moments(store):
    moments = LatentSource(store)[5]["moments"]
    for mirror in (False, True):
        rng = np.random.default_rng(0)
        draws = np.stack([draw_latent(moments, rng, mirror) for _ in range(4000)])
        assert draws.dtype == np.float32
        mean, std = np.split(moments[int(mirror)].astype(np.float64), 2, axis=-1)
        error = std / np.sqrt(4000)
        assert (np.abs(draws.mean(axis=0) - mean) < 5 * error).all()
        assert np.allclose(draws.std(axis=0), std, rtol=5 / np.sqrt(2 * 4000))
    with pytest.raises(ValueError, match="mirrored=True"):
        draw_latent(moments[:1], rng, mirror=True)


def test_threads_read_what_one_reads(store):
    latents = LatentSource(store)
    with ThreadPoolExecutor(4) as pool:
        examples = list(pool.map(latents.__getitem__, [*range(11)] * 20))
    for place, example in enumerate(examples):
        assert np.array_equal(example["moments"], latents[place % 11]["moments"])


# Interruption


@pytest.mark.parametrize("fails_at", [1, 5, 6, 10])
def test_an_interrupted_encoding_goes_on_and_ends_with_the_same_bytes(store, tmp_path, fails_at):
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        encode(folder, Averages(fails_at=fails_at))
    with pytest.raises(ValueError, match=r"not all there yet: repeat apps/encode\.py"):
        LatentSource(folder)
    autoencoder = Averages()
    encode(folder, autoencoder)
    whole = (fails_at - 1) // 4  # shards, of two batches and two views each
    assert len(autoencoder.sizes) == 10 - 4 * whole
    assert contents(folder) == contents(store)


def encode_and_wait(folder):
    """For the process that is killed, after two of three shards."""
    encode(folder, Averages(waits_at=9))


def test_a_killed_encoding_goes_on_and_ends_with_the_same_bytes(store, tmp_path):
    folder = tmp_path / "killed"
    program, output = tmp_path / "program.py", tmp_path / "output.txt"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        f"import test_latents; test_latents.encode_and_wait({str(folder)!r})"
    )
    process = forked.Program([program], output)
    while not (folder / "moments-00001.npy").exists():
        assert process.poll() is None, output.read_text()
        time.sleep(0.005)
    with pytest.raises(ValueError, match="another process"):
        encode(folder)
    process.kill()
    process.wait()
    assert not (folder / "index.json").exists()
    (folder / "writing-1-moments-00002.npy").write_bytes(b"what a killed process leaves")
    encode(folder)
    assert contents(folder) == contents(store)


def test_a_finished_store_is_opened_without_the_network(store):
    before = contents(store)
    autoencoder = Averages(fails_at=1)
    assert len(encode(store, autoencoder)) == 11
    assert contents(store) == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_belongs_to_one_request(tmp_path, finished):
    if finished:
        encode(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            encode(tmp_path, Averages(fails_at=6))
    other = Averages()
    other.scale = 0.25
    for name, options in {
        "autoencoder": {"autoencoder": other},
        "source_digest": {"source": pictures(12)},
        "image_size": {"image_size": 10},
        "mirrored": {"mirrored": False},
        "shard_size": {"shard_size": 5},
    }.items():
        with pytest.raises(ValueError, match=rf"(another request|other images).* {name}="):
            encode(tmp_path, **options)
    encode(tmp_path, batch_size=4)  # is of no consequence


def test_finished_latents_of_files_that_were_moved_can_still_be_used(store):
    message = rf"finished latents of other images.*as latents:{store}; if not.* source_digest="
    with pytest.raises(ValueError, match=message):
        encode(store, source=pictures(12))
    with pytest.raises(ValueError, match="another request"):  # is not these images' alone
        encode(store, source=pictures(12), mirrored=False)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_others_is_refused_before_an_autoencoder_is_fitted(tmp_path, finished):
    check_begun(pictures(), 8, tmp_path / "kl")  # there is nothing
    for name in ("kl", "stable_diffusion"):
        if finished:
            encode(tmp_path / name, Averages(name))
        else:
            with pytest.raises(KeyboardInterrupt):
                encode(tmp_path / name, Averages(name, fails_at=6))
    check_begun(pictures(), 8, tmp_path / "kl", shard_size=4)
    good = {"source": pictures(), "image_size": 8, "mirrored": True, "shard_size": 4}
    for name, value in {
        "source": pictures(12),
        "image_size": 10,
        "mirrored": False,
        "shard_size": 5,
    }.items():
        with pytest.raises(ValueError, match=rf"choose another folder.* {name}\w*="):
            check_begun(**{**good, name: value}, folder=tmp_path / "kl")
    with pytest.raises(ValueError, match=r"another request.* autoencoder='one of the kind kl'"):
        check_begun(**good, folder=tmp_path / "stable_diffusion")
    shutil.rmtree(tmp_path / "kl" / "autoencoder")
    with pytest.raises(ValueError, match=r"damaged.*autoencoder is missing"):
        check_begun(**good, folder=tmp_path / "kl")


# Damage


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("moments-00001.npy", lambda data: data[:-1]),
        ("moments-00001.npy", lambda data: data + b"0"),
        ("moments-00001.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("moments-00001.npy", None),
        ("labels.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("index.json", lambda data: data[:-20]),
        ("index.json", lambda data: data.replace(b'"format": 1', b'"format": 2')),
        ("index.json", lambda data: data.replace(b'"count": 11', b'"count": 12')),
        ("index.json", lambda data: data.replace(b'"channels"', b'"canals"')),
    ],
)
def test_a_damaged_store_is_not_opened(store, file, damage):
    data = (store / file).read_bytes()
    (store / file).unlink()
    if damage is not None:
        assert damage(data) != data
        (store / file).write_bytes(damage(data))
    with pytest.raises(ValueError, match=r"latents are damaged.*Received: 'latents:"):
        open_source(f"latents:{store}")


def test_a_large_store_is_verified_when_asked(store, monkeypatch):
    monkeypatch.setattr("keras_cdiff.data.latents._CHECKED_AT_OPENING", 1)
    path = store / "moments-00002.npy"
    LatentSource(store, read_all=True)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    latents = LatentSource(store)
    with pytest.raises(ValueError, match=r"damaged.*moments-00002\.npy"):
        LatentSource(store, read_all=True)
    path.write_bytes(data[:-1])
    assert latents[9]["moments"].shape == (2, 4, 4, 8)
    with pytest.raises(ValueError, match=r"cut off.*moments-00002\.npy"):
        latents[10]


@pytest.mark.parametrize("file", ["labels.npy", "captions.json"])
def test_labels_and_captions_are_checked_however_large_a_store_is(tmp_path, monkeypatch, file):
    monkeypatch.setattr("keras_cdiff.data.latents._CHECKED_AT_OPENING", 1)
    encode(tmp_path, source=pictures(captions=True))
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(data.replace(data[-9:], data[-9:].swapcase()))
    if file == "labels.npy":
        (tmp_path / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"damaged.*{file}"):
        LatentSource(tmp_path)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: data.replace(b'"shards"', b'"shreds"'),
        lambda data: data.replace(b'"count": 4', b'"count": "4"'),
        lambda data: data.replace(b'"fingerprint"', b'"thumbprint"'),
    ],
)
def test_what_a_store_was_begun_for_must_be_readable(tmp_path, finished, damage):
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path, Averages(fails_at=6))
    assert count_encoded(tmp_path) == 4
    path = tmp_path / "progress.json"
    if finished:
        encode(tmp_path)
        assert count_encoded(tmp_path) == 11
        path = tmp_path / "index.json"
    assert damage(path.read_bytes()) != path.read_bytes()
    path.write_bytes(damage(path.read_bytes()))
    for read in (count_encoded, encode):
        with pytest.raises(
            ValueError, match=rf"latents are damaged.*Received: folder=.*{path.name}"
        ):
            read(tmp_path)


@pytest.mark.parametrize("file", ["index.json", "labels.npy", "moments-00001.npy"])
def test_what_the_system_refuses_is_no_damage(store, monkeypatch, file):
    real = open

    def refuse(path, *args, **kwargs):
        if str(path).endswith(file):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    for module in ("builtins", "io"):
        monkeypatch.setattr(f"{module}.open", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        LatentSource(store)


def test_all_that_a_store_holds_is_checked_once(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(
        "keras_cdiff.common.store.file_digest",
        lambda path: names.append(path.name) or hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr("keras_cdiff.data.latents._CHECKED_AT_OPENING", 1)
    encode(tmp_path, source=pictures(captions=True))
    names.clear()
    assert check_store(tmp_path) == {"images": 11, "embeddings": 0, "autoencoders": 0}
    shards = [f"moments-0000{n}.npy" for n in range(3)]
    assert sorted(names) == ["captions.json", "labels.npy", *shards]
    (tmp_path / "text" / "text-0123456789abcdef").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Embeddings of captions are damaged"):
        check_store(tmp_path)
    data = (tmp_path / shards[2]).read_bytes()
    (tmp_path / shards[2]).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"damaged.*moments-00002\.npy"):
        check_store(tmp_path)


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"make them with apps/encode\.py.*'latents:.*none'"):
        open_source(f"latents:{tmp_path / 'none'}")


# The digest, and the autoencoder that goes along


def test_the_digest_is_that_of_the_content_wherever_it_lies(store, tmp_path):
    digest = LatentSource(store).digest()
    moved = shutil.move(store, tmp_path / "moved")
    assert LatentSource(moved).digest() == digest
    other = encode(tmp_path / "other", source=pictures(12))
    assert other.digest() != digest


@pytest.mark.parametrize("name", ["kl", "kl:/somewhere"])
def test_a_small_autoencoder_moves_with_its_latents(tmp_path, name):
    encode(tmp_path / "store", Averages(name))
    moved = shutil.move(tmp_path / "store", tmp_path / "moved")
    latents = LatentSource(moved)
    assert latents.autoencoder_name() == f"kl:{moved / 'autoencoder'}"
    assert latents.autoencoder == {**Averages().describe(), "name": latents.autoencoder_name()}
    copy = json.loads((moved / "autoencoder" / "autoencoder.json").read_text())
    assert copy["fingerprint"] == Averages().fingerprint()


def test_another_autoencoder_in_the_folder_is_not_taken_for_the_latents_own(store):
    Averages("kl").save(store / "autoencoder")
    latents = LatentSource(store)
    assert not latents.keeps_autoencoder
    assert latents.autoencoder_name() == latents.autoencoder["name"] == "stable_diffusion:random"


def test_an_autoencoder_that_is_there_is_kept_if_it_is_the_same(tmp_path):
    Averages("kl").save(tmp_path / "autoencoder")
    other = Averages("kl")
    other.scale = 0.25
    with pytest.raises(ValueError, match=r"holds another autoencoder"):
        encode(tmp_path, other)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    Averages("kl").save(tmp_path / "autoencoder")
    assert encode(tmp_path, Averages(f"kl:{tmp_path / 'autoencoder'}")).autoencoder_name() == (
        f"kl:{tmp_path / 'autoencoder'}"
    )


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 9}, r"multiple of 2.*Received: image_size=9"),
        ({"image_size": 0}, "Received: image_size=0"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"shard_size": 2.0}, r"integer.*Received: shard_size=2\.0"),
    ],
)
def test_bad_arguments_leave_no_folder(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        encode(tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_latents_are_not_encoded(store, tmp_path):
    with pytest.raises(ValueError, match=r"made of images; give the source 'pictures'"):
        encode(tmp_path / "again", source=LatentSource(store))


@pytest.mark.parametrize("value", [1e5, np.nan])
def test_moments_that_float16_cannot_hold_name_the_image(tmp_path, monkeypatch, value):
    plain = Averages.moments

    def moments(self, images):
        found = plain(self, images)
        if len(self.sizes) == 5:  # images 4, 5 and 6
            found[2, 0, 0, 0] = value
        return found

    monkeypatch.setattr(Averages, "moments", moments)
    with pytest.raises(ValueError, match=r"finite and below 65,504.*Received: image 6"):
        encode(tmp_path)
    monkeypatch.undo()
    encode(tmp_path)


def test_tiny_stds_become_zero(tmp_path, monkeypatch):
    plain = Averages.moments

    def moments(self, images):
        found = plain(self, images)
        found[..., 4:] = 1e-8
        return found

    monkeypatch.setattr(Averages, "moments", moments)
    latents = encode(tmp_path)
    assert (latents[0]["moments"][..., 4:] == 0).all()


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    class Broken(ArraySource):
        def __getitem__(self, index):
            if index == 6:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    images = np.zeros((11, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"restore it.*example 6 of 'broken' \(OSError: the disk"):
        encode(tmp_path, source=Broken("broken", images))
    assert (tmp_path / "moments-00000.npy").exists()

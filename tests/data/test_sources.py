import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from keras_cdiff.data import ArraySource, Source, open_source

pytestmark = pytest.mark.backend_free


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_image(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def test_importing_the_package_imports_no_reader():
    readers = ["tensorflow_datasets", "array_record", "grain", "PIL", "matplotlib", "tensorboard"]
    program = (
        "import sys, keras; before = set(sys.modules); import keras_cdiff.data; "
        f"print(sorted(set({readers}) & (set(sys.modules) - before)))"
    )
    # Keras imports the fewest modules of its own on JAX.
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


# digests


def test_the_digest_of_single_images_tells_their_pixels_and_shapes():
    images = list(random_images(3, 4, 6, 3))
    turned = [images[0].reshape(6, 4, 3), *images[1:]]
    other = [*images[:2], images[2] ^ 1]
    regrouped = [np.concatenate(images[:2]), images[2]]
    digests = [Source("a", each).digest() for each in (images, turned, other, regrouped)]
    assert len(set(digests)) == 4
    assert Source("b", [image.copy(order="F") for image in images]).digest() == digests[0]


def test_the_digest_of_files_tells_that_one_has_changed(tmp_path):
    for name, image in zip("ab", random_images(2, 4, 6, 3), strict=True):
        write_image(tmp_path / f"{name}.bmp", image)
    digest = open_source(f"folder:{tmp_path}").digest()
    assert open_source(f"folder:{tmp_path}").digest() == digest
    os.utime(tmp_path / "a.bmp", ns=(1, 1))
    changed = open_source(f"folder:{tmp_path}").digest()
    write_image(tmp_path / "c.bmp", random_images(4, 6, 3))
    assert len({digest, changed, open_source(f"folder:{tmp_path}").digest()}) == 3


# emoji


def test_emoji_is_the_default_and_has_everything():
    source = open_source()
    assert (source.name, len(source), source.num_classes) == ("emoji", 1636, 8)
    assert source.class_names[0] == "Activities"
    assert source.has_captions
    examples = list(source)
    assert len(examples) == 1636
    assert all(e["image"].shape == (32, 32, 3) and e["image"].dtype == np.uint8 for e in examples)
    assert {int(e["label"]) for e in examples} == set(range(8))
    (otter,) = [e for e in examples if e["caption"] == "otter"]
    assert otter["label"].dtype == np.int32
    assert source.class_names[otter["label"]] == "Animals & Nature"


@pytest.mark.parametrize("index", [-1, 1636])
def test_an_index_outside_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"1636 examples.*index={index}"):
        open_source()[index]


@pytest.mark.parametrize(
    "spec", ["", "emojis", "emoji:32", "npz:", "folder:", "tfds:", "images/", "zip:a.zip", None]
)
def test_an_unknown_source_is_named(spec):
    with pytest.raises(ValueError, match=r"npz:PATH.*Received: source=") as caught:
        open_source(spec)
    assert str(caught.value).endswith(repr(spec))


# npz


@pytest.mark.parametrize("key", ["images", "arr_0"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_npz_images_alone(tmp_path, key, channels):
    images = random_images(5, 4, 6, channels)
    np.savez_compressed(tmp_path / "a.npz", **{key: images})
    source = open_source(f"npz:{tmp_path}/a.npz")
    assert (len(source), source.num_classes, source.class_names) == (5, 0, ())
    assert not source.has_captions
    assert source.name == f"npz:{tmp_path}/a.npz"
    for example, image in zip(source, images, strict=True):
        assert set(example) == {"image"}
        assert np.array_equal(example["image"], image)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_npz_with_everything(tmp_path, dtype):
    arrays = {
        "images": random_images(3, 4, 4, 3),
        "labels": np.array([2, 0, 2], dtype),
        "captions": np.array(["a cat", "", "two dogs"]),
        "class_names": np.array(["x", "y", "z", "unseen"]),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    source = open_source(f"npz:{tmp_path}/a.npz")
    assert (source.num_classes, source.class_names) == (4, ("x", "y", "z", "unseen"))
    assert [e["label"] for e in source] == [2, 0, 2]
    assert source[0]["label"].dtype == np.int32
    assert [e["caption"] for e in source] == ["a cat", "", "two dogs"]
    assert type(source[2]["caption"]) is str
    assert source.captions() == [("a cat",), ("",), ("two dogs",)]


def test_npz_with_several_captions_an_image(tmp_path):
    captions = np.array([["a cat", "asleep"], ["", "a dog"], ["", ""]])
    np.savez(tmp_path / "a.npz", images=random_images(3, 4, 4, 3), captions=captions)
    source = open_source(f"npz:{tmp_path}/a.npz")
    assert source.has_captions
    assert source.captions() == [("a cat", "asleep"), ("a dog",), ("",)]
    assert [e["caption"] for e in source] == ["a cat", "a dog", ""]


def test_captions_must_be_of_each_image():
    with pytest.raises(ValueError, match=r"each of the 2 images.*Received: captions of 3"):
        Source("a", IMAGES, captions=[("a",), ("b", "c"), ("d",)])


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["red apple", "cat"], [("red apple",), ("cat",)]),
        (("red apple", ""), [("red apple",), ("",)]),
        (np.array(["red apple", "cat"], object), [("red apple",), ("cat",)]),
        ([["a", "", "b"], []], [("a", "b"), ("",)]),
        ([("a",), np.array(["b", "c"]).tolist()], [("a",), ("b", "c")]),
    ],
)
def test_captions_are_strings_or_lists_of_them(captions, expected):
    source = ArraySource("a", IMAGES, None, captions)
    assert source.captions() == expected
    assert source[0]["caption"] == expected[0][0]


@pytest.mark.parametrize(
    ("captions", "received"),
    [
        ([1, 2], "captions with 1"),
        ([("a", 3), ("b",)], r"captions with \('a', 3\)"),
        (["a", ("b",)], "captions with 'a'"),
        ([("a",), None], "captions with None"),
        ("ab", "captions with 'ab'"),
        (7, "captions with 7"),
        (np.array([1, "a"], object), "captions with 1"),
    ],
)
def test_other_captions_are_refused(captions, received):
    message = rf"'a' must be a string an image, or a list of strings.*Received: {received}"
    with pytest.raises(ValueError, match=message):
        ArraySource("a", IMAGES, None, captions)


def test_the_digest_tells_captions():
    captions = [None, [("a b",), ("c",)], [("a", "b"), ("c",)], [("a",), ("b", "c")]]
    digests = [Source("a", IMAGES, captions=each).digest() for each in captions]
    assert len(set(digests)) == 4
    assert Source("a", IMAGES, captions=np.array(["a b", "c"])).digest() == digests[1]


def test_npz_of_a_batch_of_samples(tmp_path):
    images = random_images(4, 4, 4, 3)
    np.savez(tmp_path / "a.npz", images, np.array([3, 0, 1, 0]))
    source = open_source(f"npz:{tmp_path}/a.npz")
    assert source.num_classes == 4
    assert [e["label"] for e in source] == [3, 0, 1, 0]
    np.savez(tmp_path / "b.npz", images, np.array([3, 0, 1, 0]), labels=np.array([0, 0, 1, 1]))
    assert [e["label"] for e in open_source(f"npz:{tmp_path}/b.npz")] == [0, 0, 1, 1]


@pytest.mark.parametrize("key", ["images", "arr_0"])
def test_npz_images_stay_on_disk_where_they_are_not_compressed(tmp_path, key):
    images = random_images(1000, 32, 32, 3)
    np.savez(tmp_path / "a.npz", **{key: images})
    tracemalloc.start()
    try:
        source = open_source(f"npz:{tmp_path}/a.npz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < images.nbytes / 3
    assert np.array_equal(source[999]["image"], images[999])
    assert type(source[999]["image"]) is np.ndarray


def test_labels_without_names_count_from_zero_to_the_largest():
    source = ArraySource("a", random_images(3, 4, 4, 3), np.array([0, 6, 2]))
    assert (source.num_classes, source.class_names) == (7, ())


FLOATS = np.linspace(-1, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
IMAGES = random_images(2, 4, 4, 3)
NAMES = np.array(["x", "y"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": IMAGES}, r"`images` \(or `arr_0`\).*holds \['x_train'\]"),
        ({"images": IMAGES[0]}, r"\(N, H, W, C\).*shape \(4, 4, 3\), dtype uint8"),
        ({"images": IMAGES[..., 0]}, r"images\[\.\.\., None\].*shape \(2, 4, 4\)"),
        ({"images": random_images(2, 3, 8, 8)}, r"transpose.*shape \(2, 3, 8, 8\)"),
        ({"images": IMAGES[:0]}, r"at least one image.*shape \(0, 4, 4, 3\)"),
        ({"images": FLOATS}, r"uint8.*\(images \+ 1\) \* 127.5.*float32, values in \[-1, 1\]"),
        ({"images": FLOATS * 300}, r"values in \[-300, 300\]"),
        ({"images": np.where(FLOATS > 0, np.nan, FLOATS)}, "48 values not finite"),
        ({"images": IMAGES.astype(np.int32)}, "uint8.*dtype int32"),
        ({"images": IMAGES.astype(object)}, "pickle.*Received: path="),
        ({"images": IMAGES, "labels": np.array([0.0, 1.0])}, "2 integers.*dtype float64"),
        ({"images": IMAGES, "labels": np.array([True, False])}, "2 integers.*dtype bool"),
        ({"images": IMAGES, "labels": np.array([0, 1, 2])}, r"2 integers.*shape \(3,\)"),
        ({"images": IMAGES, "labels": np.array([[0], [1]])}, r"shape \(2,\).*shape \(2, 1\)"),
        ({"images": IMAGES, "labels": np.array([-1, 1])}, r"\[0, .*labels in \[-1, 1\]"),
        ({"images": IMAGES, "labels": np.array([0, 2**40])}, "renumber.*labels in"),
        (
            {"images": IMAGES, "labels": np.array([0, 2]), "class_names": NAMES},
            r"\[0, 2\).*Received: labels in \[0, 2\]",
        ),
        ({"images": IMAGES, "class_names": NAMES}, "no labels.*Received: class_names="),
        ({"images": IMAGES, "class_names": np.arange(2)}, "class names.*strings.*dtype int64"),
        ({"images": IMAGES, "captions": np.array(["one"])}, r"2 strings.*shape \(1,\)"),
        ({"images": IMAGES, "captions": np.array([["a", "b"]])}, r"2 strings.*shape \(1, 2\)"),
        ({"images": IMAGES, "captions": np.full((2, 1, 1), "a")}, r"2 strings.*shape \(2, 1, 1\)"),
        ({"images": IMAGES, "captions": np.arange(2)}, "2 strings.*dtype int64"),
        ({"images": IMAGES, "captions": np.array(["a", "b"], object)}, "saved as objects"),
    ],
)
def test_npz_rejects(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(f"npz:{tmp_path}/a.npz")
    assert "Received: " in str(caught.value)


def test_a_missing_npz_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no such file.*Received: path='.*b\.npz'"):
        open_source(f"npz:{tmp_path}/b.npz")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_truncated_npz_is_rejected(tmp_path, share):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=random_images(50, 8, 8, 3))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"cut off.*Received: path="):
        open_source(f"npz:{path}")


def test_a_damaged_npz_is_rejected(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=random_images(50, 8, 8, 3))
    content = bytearray(path.read_bytes())
    content[5000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged.*Received: path="):
        open_source(f"npz:{path}")


def test_an_npy_file_is_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(ValueError, match=r"np\.savez.*Received: path="):
        open_source(f"npz:{tmp_path}/a.npy")


# folder


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path):
    images = random_images(4, 5, 7, 3)
    for name, image in zip(["b/2.png", "b/1.PNG", "a/deep/x.png", "c/y.bmp"], images, strict=True):
        write_image(tmp_path / name, image)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    write_image(tmp_path / ".cache" / "z.png", images[0])
    source = open_source(f"folder:{tmp_path}")
    assert (source.num_classes, source.class_names) == (3, ("a", "b", "c"))
    assert [int(e["label"]) for e in source] == [0, 1, 1, 2]
    for example, image in zip(source, images[[2, 1, 0, 3]], strict=True):
        assert example["label"].dtype == np.int32
        assert np.array_equal(example["image"], image)


def test_a_flat_folder_has_no_labels_and_keeps_each_images_channels(tmp_path):
    grey, rgb, rgba = (random_images(4, 6, *tail) for tail in [(), (3,), (4,)])
    for name, image in [("grey", grey), ("rgb", rgb), ("rgba", rgba)]:
        write_image(tmp_path / f"{name}.png", image)
    palette = Image.fromarray(rgb).quantize(8)
    palette.save(tmp_path / "palette.gif")
    source = open_source(f"folder:{tmp_path}")
    assert (source.num_classes, source.class_names, source.has_captions) == (0, (), False)
    expected = [grey[..., None], np.asarray(palette.convert("RGB")), rgb, rgba]
    for example, image in zip(source, expected, strict=True):
        assert set(example) == {"image"}
        assert example["image"].dtype == np.uint8
        assert np.array_equal(example["image"], image)


def test_a_photograph_is_turned_upright(tmp_path):
    image = random_images(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    write_image(tmp_path / "a.png", image, exif=exif)
    assert np.array_equal(open_source(f"folder:{tmp_path}")[0]["image"], np.rot90(image, -1))


def test_metadata_gives_captions_in_its_own_order(tmp_path):
    images = random_images(2, 4, 4, 3)
    write_image(tmp_path / "a.png", images[0])
    write_image(tmp_path / "sub" / "b.png", images[1])
    text = 'license,file,caption\nx,sub/b.png,"a cat, asleep"\nx,a.png,Ümläut\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8-sig")
    source = open_source(f"folder:{tmp_path}")
    assert (len(source), source.num_classes, source.has_captions) == (2, 0, True)
    assert [e["caption"] for e in source] == ["a cat, asleep", "Ümläut"]
    assert np.array_equal(source[0]["image"], images[1])
    assert source.captions() == [("a cat, asleep",), ("Ümläut",)]


def test_rows_of_metadata_that_name_one_file_are_captions_of_one_image(tmp_path):
    images = random_images(2, 4, 4, 3)
    write_image(tmp_path / "a.png", images[0])
    write_image(tmp_path / "b.png", images[1])
    rows = ["b.png,a cat", "a.png,a dog", "./b.png,asleep", "b.png,in a box"]
    (tmp_path / "metadata.csv").write_text("\n".join(["file,caption", *rows]))
    source = open_source(f"folder:{tmp_path}")
    assert source.captions() == [("a cat", "asleep", "in a box"), ("a dog",)]
    assert [e["caption"] for e in source] == ["a cat", "a dog"]
    assert np.array_equal(source[0]["image"], images[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"columns file and caption.*Received: columns=\[\], rows=0"),
        ("file,caption\n", "a row per caption.*rows=0"),
        ("file_name,text\na.png,hi\n", r"file and caption.*\['file_name', 'text'\]"),
        ("file,caption\na.png,hi\nb.png,hi\n", "Row 3.*Received: file='b.png'"),
        ("file,caption\na.png\n", "Row 2.*Received: file='a.png', caption=None"),
        ("file,caption\na.png,\n", "Row 2.*Received: file='a.png', caption=''"),
        (b"file,caption\na.png,\xff\n", "UTF-8.*Received: file="),
    ],
)
def test_metadata_rejects(tmp_path, text, message):
    write_image(tmp_path / "a.png", IMAGES[0])
    (tmp_path / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"must hold images \(\.png"),
        (["notes.txt", "sub/notes.txt"], "must hold images"),
        (["a/1.png", "2.png"], "either all in class subfolders.*'2.png' beside them"),
        (["a/1.png", "b/notes.txt"], r"each holding some.*no image in \['b'\]"),
    ],
)
def test_a_folder_laid_out_otherwise_is_rejected(tmp_path, files, message):
    for name in files:
        if name.endswith(".txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("")
        else:
            write_image(tmp_path / name, IMAGES[0])
    with pytest.raises(ValueError, match=message) as caught:
        open_source(f"folder:{tmp_path}")
    assert str(caught.value).endswith(f"Received: folder={str(tmp_path)!r}")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no such folder.*Received: folder='.*b'"):
        open_source(f"folder:{tmp_path}/b")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_a_truncated_image_is_found_up_front(tmp_path, suffix, share):
    image = random_images(40, 40, 3)
    write_image(tmp_path / f"good.{suffix}", image)
    assert len(open_source(f"folder:{tmp_path}")) == 1
    content = (tmp_path / f"good.{suffix}").read_bytes()
    (tmp_path / f"bad.{suffix}").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"cannot read.*Received: file='.*bad\.{suffix}'"):
        open_source(f"folder:{tmp_path}")


def test_a_damaged_png_and_a_file_of_text_are_found_up_front(tmp_path):
    write_image(tmp_path / "bad.png", random_images(40, 40, 3))
    content = bytearray((tmp_path / "bad.png").read_bytes())
    content[1000] ^= 255
    for damaged in (content, b"not an image"):
        (tmp_path / "bad.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read.*Received: file='.*bad\.png'"):
            open_source(f"folder:{tmp_path}")


def test_a_jpeg_with_bytes_after_its_end_is_whole(tmp_path):
    write_image(tmp_path / "a.jpg", random_images(40, 40, 3))
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"\0\0\0")
    assert open_source(f"folder:{tmp_path}")[0]["image"].shape == (40, 40, 3)


def test_more_than_eight_bits_are_rejected(tmp_path):
    write_image(tmp_path / "a.png", np.full((4, 4), 40000, np.uint16))
    with pytest.raises(
        ValueError, match=r"8 bits.*Received: file='.*a\.png' of Pillow mode 'I;16'"
    ):
        open_source(f"folder:{tmp_path}")


# tfds


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """Prepared TFDS data sets: `tiny_shapes`, `tiny_text`, as tfrecord `tiny_records`, and two with
    captions, `tiny_captions` and `tiny_titles`.
    """
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    def prepare(class_name, features, examples, file_format="array_record"):
        class Builder(tfds.core.GeneratorBasedBuilder):
            name = class_name
            code_path = None  # where TFDS would look for checksums of downloads
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features_dict = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=features_dict)

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in examples}

            def _generate_examples(self, split):
                yield from enumerate(examples[split])

        Builder(data_dir=folder, file_format=file_format).download_and_prepare()

    labelled = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["disc", "square"]),
    }
    images = random_images(6, 5, 4, 3)
    known = [{"image": image, "label": n % 2} for n, image in enumerate(images)]
    withheld = [{"image": image, "label": -1} for image in images]
    prepare("tiny_shapes", labelled, {"train": known, "hidden": withheld})
    prepare("tiny_records", labelled, {"train": known}, file_format="tfrecord")
    several = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
    told = [
        {"image": image, "captions": [{"id": k, "text": f"{n}: ä {k}"} for k in range(n)]}
        for n, image in enumerate(images)
    ]
    prepare("tiny_captions", {"image": labelled["image"], "captions": several}, {"train": told})
    titled = [{"image": image, "label": 0, "caption": "a title"} for image in images]
    prepare("tiny_titles", {**labelled, "caption": tfds.features.Text()}, {"train": titled})
    prepare("tiny_text", {"text": tfds.features.Text()}, {"train": [{"text": "a"}]})
    return folder, {image.tobytes(): n % 2 for n, image in enumerate(images)}


@pytest.mark.parametrize(("split", "length"), [("", 6), (":train", 6), (":train[:50%]", 3)])
@pytest.mark.parametrize("by_environment", [True, False])
def test_tfds_reads_a_prepared_build(tfds_folder, monkeypatch, split, length, by_environment):
    folder, label_of = tfds_folder
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder) if by_environment else "elsewhere")
    data_dir = None if by_environment else folder
    source = open_source(f"tfds:tiny_shapes{split}", data_dir=data_dir)
    assert (len(source), source.num_classes) == (length, 2)
    assert source.class_names == ("disc", "square")
    assert source.name == f"tfds:tiny_shapes{split}"
    assert not source.has_captions
    examples = list(source)
    assert len({e["image"].tobytes() for e in examples}) == length
    for example in examples:
        assert set(example) == {"image", "label"}
        assert example["image"].shape == (5, 4, 3)
        assert example["image"].dtype == np.uint8
        assert example["label"].dtype == np.int32
        assert example["label"] == label_of[example["image"].tobytes()]
    assert source.captions() is None
    labels = source.labels()
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [example["label"] for example in examples])


def test_tfds_gives_captions(tfds_folder):
    source = open_source("tfds:tiny_captions", data_dir=tfds_folder[0])
    assert source.has_captions
    digest = source.digest()
    captions = source.captions()
    numbers = [len(texts) if texts[0] else 0 for texts in captions]
    assert sorted(numbers) == list(range(6))
    assert captions == [tuple(f"{n}: ä {k}" for k in range(n)) or ("",) for n in numbers]
    for example, texts in zip(source, captions, strict=True):
        assert set(example) == {"image", "caption"}
        assert example["caption"] == texts[0]
    assert source.digest() == digest
    source = open_source("tfds:tiny_titles:train[:2]", data_dir=tfds_folder[0])
    assert source.captions() == [("a title",)] * 2
    assert set(source[0]) == {"image", "label", "caption"}
    assert (source[0]["caption"], source[0]["label"]) == ("a title", 0)


def test_the_digest_of_tfds_tells_that_the_build_has_changed(tfds_folder, tmp_path):
    folder = shutil.copytree(tfds_folder[0], tmp_path / "copy")

    def digest(name="tiny_shapes", data_dir=folder):
        return open_source(f"tfds:{name}", data_dir=data_dir).digest()

    first = digest()
    assert digest() == first
    assert digest("tiny_shapes:train[:50%]") != first
    assert digest(data_dir=tfds_folder[0]) != first
    (shard,) = folder.glob("tiny_shapes/1.0.0/*train*")
    os.utime(shard, ns=(1, 1))
    assert digest() != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar10",
            r"Prepare it.*tfds\.builder\('cifar10', data_dir='.*file_format='array_record'",
        ),
        ("tiny_shapes/large", "Prepare it.*tiny_shapes/large"),
        ("tiny_shapes:test", r"takes .* a split.*one of .*'hidden'"),
        ("tiny_shapes:train[:half]", "a split of the data set.*Received: source="),
        ("tiny shapes", "takes Python names.*Received: source="),
        ("tiny_shapes:train[:0%]", "not empty.*Received: source="),
        ("tiny_shapes:hidden", r"\[0, 2\).*Received: label=-1 at index 0"),
        ("tiny_records", "array_record format.*without another format"),
        ("tiny_text", "feature `image`.*'text'"),
    ],
)
def test_tfds_rejects(tfds_folder, name, message):
    with pytest.raises(ValueError, match=rf"(?s){message}") as caught:
        open_source(f"tfds:{name}", data_dir=tfds_folder[0])
    assert "Received: " in str(caught.value)

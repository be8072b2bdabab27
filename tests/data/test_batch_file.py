import tracemalloc
import zipfile

import numpy as np
import pytest

from keras_cdiff.data import open_batch_file, open_source, write_batch_file

pytestmark = pytest.mark.backend_free


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


IMAGES = random_images(7, 4, 6, 3)
LABELS = np.array([2, 0, 999, 1, 0, 0, 5])


def blocks(images, *sizes):
    return iter(np.split(images, np.cumsum(sizes)))


# Writing


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("labels", [None, LABELS, LABELS.astype(np.uint16), LABELS.tolist()])
def test_numpy_reads_what_was_written(tmp_path, channels, labels):
    images = random_images(7, 4, 6, channels)
    write_batch_file(tmp_path / "new" / "a.npz", images, labels)
    with np.load(tmp_path / "new" / "a.npz", allow_pickle=False) as file:
        assert file.files == (["arr_0"] if labels is None else ["arr_0", "arr_1"])
        assert file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], images)
        if labels is not None:
            assert file["arr_1"].dtype == np.int64
            assert np.array_equal(file["arr_1"], LABELS)


def test_blocks_and_one_array_give_the_same_file(tmp_path):
    write_batch_file(tmp_path / "a.npz", IMAGES, LABELS)
    write_batch_file(tmp_path / "b.npz", blocks(IMAGES, 2, 0, 4), LABELS, num_images=7)
    transposed = np.asfortranarray(IMAGES)
    write_batch_file(tmp_path / "c.npz", [transposed[:3], transposed[3:]], LABELS, num_images=7)
    # The zip members' dates may differ, nothing else.
    members = []
    for name in ("a.npz", "b.npz", "c.npz"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            members.append({info.filename: archive.read(info) for info in archive.infolist()})
    assert members[0] == members[1] == members[2]


def test_blocks_are_written_as_they_come(tmp_path):
    block = random_images(64, 32, 32, 3)
    tracemalloc.start()
    try:
        write_batch_file(tmp_path / "a.npz", (block for _ in range(16)), num_images=1024)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * block.nbytes
    images, _ = open_batch_file(tmp_path / "a.npz")
    assert np.array_equal(images, np.tile(block, (16, 1, 1, 1)))


def test_a_mapped_batch_can_be_written_again(tmp_path):
    write_batch_file(tmp_path / "a.npz", IMAGES, LABELS)
    write_batch_file(tmp_path / "a.npz", *open_batch_file(tmp_path / "a.npz"))
    images, labels = open_batch_file(tmp_path / "a.npz")
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (IMAGES / 255, {}, r"to_uint8.*dtype float64"),
        (IMAGES.astype(np.int64), {}, r"uint8.*dtype int64"),
        (IMAGES[0], {}, r"\(N, H, W, C\).*shape \(4, 6, 3\)"),
        (IMAGES.transpose(0, 3, 1, 2), {}, r"channels last.*shape \(7, 3, 4, 6\)"),
        (IMAGES[..., :2], {}, r"C being 1, 3 or 4.*shape \(7, 4, 6, 2\)"),
        (IMAGES[:0], {}, r"N at least 1.*shape \(0, 4, 6, 3\)"),
        (IMAGES, {"num_images": 8}, "num_images=8, with 7 images"),
        (IMAGES, {"labels": LABELS[:6]}, r"7 integers.*shape \(6,\)"),
        (IMAGES, {"labels": LABELS / 2}, r"7 integers.*dtype float64"),
        (IMAGES, {"labels": LABELS[:, None]}, r"7 integers.*shape \(7, 1\)"),
        ([IMAGES], {}, "how many.*num_images=None"),
        ([IMAGES], {"num_images": 0}, "at least one image.*num_images=0"),
        ([IMAGES], {"num_images": 7.0}, r"num_images=7\.0"),
        ([IMAGES, IMAGES], {"num_images": 13}, "num_images=13, with 14 or more images"),
        ([IMAGES, IMAGES], {"num_images": 15}, "num_images=15, with 14 images"),
        ([], {"num_images": 1}, "num_images=1, with 0 images"),
        ([IMAGES, IMAGES[:, :3]], {"num_images": 14}, r"\(N, 4, 6, 3\).*shape \(7, 3, 6, 3\)"),
        ([IMAGES, IMAGES / 255], {"num_images": 14}, "dtype float64"),
        (list(IMAGES), {"num_images": 7}, r"\(N, H, W, C\).*shape \(4, 6, 3\)"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path, images, options, message):
    with pytest.raises(ValueError, match=rf"{message}.*$") as caught:
        write_batch_file(tmp_path / "a.npz", images, **options)
    assert "Received: " in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_batch_leaves_the_file_before_it(tmp_path):
    def interrupted():
        yield IMAGES
        raise KeyboardInterrupt

    write_batch_file(tmp_path / "a.npz", IMAGES)
    with pytest.raises(KeyboardInterrupt):
        write_batch_file(tmp_path / "a.npz", interrupted(), num_images=14)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert np.array_equal(open_batch_file(tmp_path / "a.npz")[0], IMAGES)


# Opening


def save_ours(path, images, labels):
    write_batch_file(path, images, labels)


def save_with_more(path, images, labels):
    # As reference batches are, which bring their statistics along.
    np.savez(path, images, labels, mu=np.zeros(2048), sigma=np.eye(3))


def save_column_major(path, images, labels):
    np.savez(path, np.asfortranarray(images), labels)


@pytest.mark.parametrize("save", [save_ours, np.savez, save_with_more, save_column_major])
def test_stored_images_are_mapped(tmp_path, save):
    save(tmp_path / "a.npz", IMAGES, LABELS)
    images, labels = open_batch_file(tmp_path / "a.npz")
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    assert images.dtype == np.uint8
    assert np.array_equal(images, IMAGES)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, LABELS)


def test_an_archive_behind_other_bytes_is_mapped_at_its_place(tmp_path):
    write_batch_file(tmp_path / "a.npz", IMAGES, LABELS)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(b"PK\3\4 something before" + content)
    images, _ = open_batch_file(tmp_path / "b.npz")
    assert np.array_equal(images, IMAGES)


def test_compressed_images_are_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", IMAGES)
    images, labels = open_batch_file(str(tmp_path / "a.npz"))
    assert not isinstance(images, np.memmap)
    assert np.array_equal(images, IMAGES)
    assert labels is None


def test_a_source_reads_a_batch_file(tmp_path):
    write_batch_file(tmp_path / "a.npz", IMAGES, LABELS)
    source = open_source(f"npz:{tmp_path}/a.npz")
    assert (len(source), source.num_classes) == (7, 1000)
    for example, image, label in zip(source, IMAGES, LABELS, strict=True):
        assert np.array_equal(example["image"], image)
        assert example["label"] == label


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, r"`arr_0`.*holds \['images'\]"),
        ({"arr_0": IMAGES / 255}, "no batch of images.*to_uint8.*dtype float64"),
        ({"arr_0": IMAGES[0]}, r"no batch of images.*shape \(4, 6, 3\)"),
        ({"arr_0": IMAGES[:0]}, r"at least 1.*shape \(0, 4, 6, 3\)"),
        ({"arr_0": np.uint8(3)}, r"no batch of images.*shape \(\)"),
        ({"arr_0": IMAGES.astype(object)}, "pickle"),
        ({"arr_0": IMAGES, "arr_1": LABELS[:6]}, r"7 integers.*shape \(6,\)"),
        ({"arr_0": IMAGES, "arr_1": np.eye(7)}, r"7 integers.*dtype float64"),
    ],
)
def test_other_arrays_are_no_batch(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"{message}.*path='.*a\.npz'$"):
        open_batch_file(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [write_batch_file, np.savez_compressed])
def test_a_damaged_or_shortened_file_is_found_when_it_is_opened(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, random_images(50, 8, 8, 3))
    content = path.read_bytes()
    spoiled = bytearray(content)
    spoiled[5000] ^= 255
    for damaged in (spoiled, content[: len(content) // 2], content[:-1], b"", b"not an archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cut off or damaged.*Received: path='.*a\.npz'$"):
            open_batch_file(path)


def test_a_member_shorter_than_it_says_or_no_array_is_found(tmp_path):
    write_batch_file(tmp_path / "a.npz", IMAGES)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        member = archive.read("arr_0.npy")
    for name, content in (("arr_0.npy", member[:-1]), ("arr_0.npy", member[:5]), ("arr_0", b"x")):
        with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(ValueError, match=r"path='.*b\.npz'$"):
            open_batch_file(tmp_path / "b.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no such file.*Received: path='.*a\.npz'$"):
        open_batch_file(tmp_path / "a.npz")

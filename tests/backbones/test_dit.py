"""DiT against the official code's numbers, its paper's properties, and its own promises."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.backbones import DiT
from keras_cdiff.convert import dit_from_official
from keras_cdiff.presets import DIT_SIZES


def small(**overrides):
    arguments = {"image_size": 8, "channels": 3, "width": 32, "depth": 2, "num_heads": 2}
    return DiT(**{**arguments, **overrides})


def randomise(network, seed=0):
    """Gives every trainable weight random values, so that no output is trivially zero."""
    generator = np.random.default_rng(seed)
    for weight in network.trainable_weights:
        weight.assign(0.2 * generator.normal(size=weight.shape))
    return network


def batch(size=3, image_size=8, channels=3, seed=1):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(size, image_size, image_size, channels)).astype("float32")
    return x, np.linspace(0.0, 999.0, size, dtype="float32")


def close(actual, expected, **tolerance):
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(actual, "float32")), expected, **tolerance
    )


@pytest.fixture
def official(golden):
    data = golden("dit_base")
    return dit_from_official(data.folder("weights"), **data.config["constructor"]), data


@pytest.mark.parametrize(("level", "output"), [("t", "forward"), ("t_frac", "forward_frac_t")])
def test_output_is_that_of_the_official_network(official, level, output):
    network, data = official
    x = data["in/x"].transpose(0, 2, 3, 1)
    predicted = network(x, data[f"in/{level}"], data["in/y"])
    close(predicted, data[f"out/{output}"].transpose(0, 2, 3, 1), atol=1e-4)


def test_intermediate_results_are_those_of_the_official_network(official):
    network, data = official
    level, label = data["in/t"], data["in/y"]
    close(network.level_embedding(level), data["out/sub_t_emb"], atol=1e-4)
    close(network.label_embedding(label), data["out/sub_y_emb"], atol=1e-6)
    tokens = network.embed_patches(data["in/x"].transpose(0, 2, 3, 1))
    close(tokens, data["out/sub_patch_embed"], atol=1e-5)
    condition = network.condition(level, label)
    close(network.blocks[0](tokens, condition), data["out/sub_block0"], atol=1e-4)


def test_starts_at_zero_with_blocks_that_are_identities():
    network = small(num_classes=5)
    x, level = batch()
    label = np.array([0, 2, 5])
    close(network(x, level, label), np.zeros_like(x), atol=0.0)
    tokens, condition = network.embed_patches(x), network.condition(level, label)
    assert np.ptp(ops.convert_to_numpy(condition)) > 0
    for block in network.blocks:
        close(block(tokens, condition), ops.convert_to_numpy(tokens), atol=0.0)


def test_initial_weights_follow_the_paper():
    network = small(width=128, depth=1, num_heads=4, num_classes=300)
    block = network.blocks[0]
    # Xavier-uniform: the standard deviation is sqrt(2 / (fan in + fan out)).
    for dense in (network.patch_embedding, block.attention.qkv, block.hidden, block.projection):
        expected = np.sqrt(2.0 / sum(dense.kernel.shape))
        assert np.std(ops.convert_to_numpy(dense.kernel)) == pytest.approx(expected, rel=0.05)
        close(dense.bias, np.zeros(dense.bias.shape), atol=0.0)
    embedding = network.level_embedding
    tables = [embedding.hidden.kernel, embedding.projection.kernel]
    tables = [
        ops.convert_to_numpy(table) for table in (*tables, network.label_embedding.embeddings)
    ]
    for table in tables:
        assert np.std(table) == pytest.approx(0.02, rel=0.05)
    # Initializers must not share a seed.
    assert not np.allclose(tables[0][:128], tables[1])


def closed_form_count(width, depth, patch, channels, out_channels, tokens, classes):
    """Weights of a DiT, positions included, term by term."""
    patch_embedding = patch**2 * channels * width + width
    level = (256 * width + width) + (width * width + width)
    label = (classes + 1) * width
    attention = (3 * width * width + 3 * width) + (width * width + width)
    perceptron = (4 * width * width + 4 * width) + (4 * width * width + width)
    block = attention + perceptron + (6 * width * width + 6 * width)
    final = (2 * width * width + 2 * width) + patch**2 * out_channels * (width + 1)
    return patch_embedding + level + label + depth * block + final + tokens * width


@pytest.mark.backend_free
@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_published_sizes_have_their_number_of_weights(size, patch):
    # No memory is allocated: variables that a stateless scope does not initialise have only shapes.
    with keras.StatelessScope(initialize_variables=False):
        network = DiT.from_name(
            f"DiT-{size}/{patch}", image_size=32, channels=4, out_channels=8, num_classes=1000
        )
    count = sum(int(np.prod(weight.shape)) for weight in network.weights)
    keras.utils.clear_session()
    width, depth = (DIT_SIZES[size.lower()][key] for key in ("width", "depth"))
    assert count == closed_form_count(width, depth, patch, 4, 8, (32 // patch) ** 2, 1000)
    # The number of the official code's parameters, counted there.
    assert (count == 675_129_632) == (size == "XL" and patch == 2)


@pytest.mark.parametrize("name", ["DiT-M/2", "DiT-XL/3", "DiT-XL", "dit-xl/2"])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=f"Received: name='{name}'"):
        DiT.from_name(name, image_size=32)


def test_configuration_round_trip():
    network = small(
        patch_size=4, mlp_ratio=2.0, num_classes=4, out_channels=6, dtype="mixed_bfloat16"
    )
    clone = DiT.from_config(network.get_config())
    assert clone.get_config() == network.get_config()
    assert clone.compute_dtype == "bfloat16"
    assert [w.path for w in clone.weights] == [w.path for w in network.weights]


@pytest.mark.parametrize("whole", [True, False])
def test_saving_round_trip(tmp_path, whole):
    network = randomise(small(num_classes=4))
    x, level = batch()
    expected = ops.convert_to_numpy(network(x, level))
    if whole:
        network.save(tmp_path / "network.keras")
        restored = keras.saving.load_model(tmp_path / "network.keras")
    else:
        network.save_weights(tmp_path / "network.weights.h5")
        restored = small(num_classes=4)
        restored.load_weights(tmp_path / "network.weights.h5")
    close(restored(x, level), expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_the_noise_level(policy):
    exact = randomise(small(num_classes=3))
    half = small(num_classes=3, dtype=policy)
    half.set_weights(exact.get_weights())
    # bfloat16 rounds 999 to 1000.
    level = np.array([999.0, 1000.0], dtype="float32")
    x = np.repeat(batch(1)[0], 2, axis=0)
    embedding = ops.convert_to_numpy(exact.level_embedding(level))
    close(half.level_embedding(level), embedding, atol=1e-5)
    assert np.abs(embedding[0] - embedding[1]).max() > 0.1
    output = half(x, level)
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    output, expected = ops.convert_to_numpy(output), ops.convert_to_numpy(exact(x, level))
    np.testing.assert_allclose(output, expected, atol=0.05 * np.abs(expected).max())
    assert np.abs(output[0] - output[1]).max() > 0.01
    tokens = half.embed_patches(x)
    tokens = half.blocks[0](tokens, half.condition(level))
    assert keras.backend.standardize_dtype(tokens.dtype) == half.compute_dtype


def test_level_may_be_integer():
    network = randomise(small())
    x, _ = batch()
    whole = network(x, np.array([0, 7, 999], dtype="int32"))
    close(whole, ops.convert_to_numpy(network(x, np.array([0.0, 7.0, 999.0]))), atol=1e-6)


def test_absent_label_is_the_null_label():
    network = randomise(small(num_classes=4))
    x, level = batch()
    null = ops.convert_to_numpy(network(x, level, np.full(3, 4)))
    close(network(x, level), null, atol=0.0)
    close(network(x, level, training=True), null, atol=0.0)
    assert np.abs(ops.convert_to_numpy(network(x, level, np.full(3, 1))) - null).max() > 1e-3


def test_labels_are_dropped_only_in_training():
    network = randomise(small(width=8, depth=1, num_heads=1, num_classes=2, label_dropout=0.25))
    x, level = np.zeros((2000, 8, 8, 3), "float32"), np.zeros(2000, "float32")
    label = np.zeros(2000, dtype="int32")
    # Batches of one size, so that JAX compiles each operation but once.
    kept, null = (ops.convert_to_numpy(network(x, level, label + i))[:1] for i in (0, 2))

    def dropped(training):
        output = ops.convert_to_numpy(network(x, level, label, training=training))
        is_null = np.abs(output - null).max(axis=(1, 2, 3)) < 1e-5
        is_kept = np.abs(output - kept).max(axis=(1, 2, 3)) < 1e-5
        assert np.all(is_null ^ is_kept)
        return is_null

    assert not dropped(training=False).any()
    first, second = dropped(training=True), dropped(training=True)
    # Five standard deviations of a binomial proportion.
    assert abs(first.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)
    assert (first != second).any()


def test_without_label_dropout_there_is_no_null_label():
    network = randomise(small(num_classes=4, label_dropout=0.0))
    assert tuple(network.label_embedding.embeddings.shape) == (4, 32)
    x, level = batch()
    label = np.array([0, 1, 3])
    expected = ops.convert_to_numpy(network(x, level, label))
    close(network(x, level, label, training=True), expected, atol=0.0)
    with pytest.raises(ValueError, match="Received: label=None"):
        network(x, level)


def test_images_of_a_batch_do_not_mix():
    network = randomise(small())
    x, level = batch()
    together = ops.convert_to_numpy(network(x, level))
    for i in range(3):
        close(network(x[i : i + 1], level[i : i + 1]), together[i : i + 1], atol=1e-5)


@pytest.mark.one_backend
def test_trains_as_part_of_a_model():
    network = small(num_classes=4)
    inputs = {
        "x": keras.Input((8, 8, 3), name="x"),
        "level": keras.Input((), name="level"),
        "label": keras.Input((), dtype="int32", name="label"),
    }
    model = keras.Model(inputs, network(inputs["x"], inputs["level"], inputs["label"]))
    model.compile(keras.optimizers.Adam(1e-2), loss="mse")
    x, level = batch(8)
    data = {"x": x, "level": level, "label": np.arange(8) % 4}
    history = model.fit(data, x, batch_size=8, epochs=5, verbose=0).history["loss"]
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"patch_size": 3}, "image_size=8, patch_size=3"),
        ({"num_heads": 3}, "width=32, num_heads=3"),
        ({"width": 6}, "width=6, num_heads=2"),
        ({"label_dropout": 1.0}, "label_dropout=1.0"),
        ({"label_dropout": -0.1}, "label_dropout=-0.1"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_sizes_that_do_not_fit(arguments, received):
    with pytest.raises(ValueError, match=received):
        small(**arguments)


@pytest.mark.parametrize(
    ("inputs", "received"),
    [
        ({"x": np.zeros((3, 3, 8, 8), "float32")}, r"x.shape=\(3, 3, 8, 8\)"),
        ({"x": np.zeros((3, 16, 16, 3), "float32")}, r"x.shape=\(3, 16, 16, 3\)"),
        ({"x": np.zeros((8, 8, 3), "float32")}, r"x.shape=\(8, 8, 3\)"),
        ({"x": np.zeros((3, 8, 8, 3), "uint8")}, "x.dtype=uint8"),
        ({"level": np.zeros((3, 1), "float32")}, r"level.shape=\(3, 1\)"),
        ({"label": np.zeros(3, "int32")}, r"label.shape=\(3,\)"),
        ({"context": np.zeros((3, 4, 5), "float32")}, "Received: context.shape=\\(3, 4, 5\\)"),
        ({"augment": np.zeros((3, 9), "float32")}, "Received: augment.shape=\\(3, 9\\)"),
    ],
)
def test_inputs_that_do_not_fit(inputs, received):
    x, level = batch()
    with pytest.raises(ValueError, match=received):
        small()(**{"x": x, "level": level, **inputs})

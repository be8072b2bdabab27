"""A DiT that rematerializes trains as one that does not, and keeps less between the passes."""

import gc

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import DiffusionModel
from keras_cdiff.backbones import DiT, dit

SIZES = {"image_size": 8, "width": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


def randomise(network, seed=0):
    """Gives every trainable weight random values: at the start, gradients stop at the gates."""
    generator = np.random.default_rng(seed)
    for weight in network.trainable_weights:
        weight.assign(0.2 * generator.normal(size=weight.shape))
    return network


def numpy_weights(network):
    return {w.path.partition("/")[2]: ops.convert_to_numpy(w) for w in network.weights}


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_float16", marks=pytest.mark.one_backend)]
)
def test_takes_the_same_steps(make_model, batch, policy, quick):
    images, labels = batch

    def train(rematerialize):
        network = {"depth": 2 if policy == "float32" else 1, "label_dropout": 0.5, "dtype": policy}
        network |= {"context_width": 6, "context_dropout": 0.5}
        model = make_model("ddpm", average=None, rematerialize=rematerialize, **network)
        randomise(model.backbone)
        before = numpy_weights(model.backbone)
        # Plain descent, whose steps are as exact as their gradients.
        optimizer = keras.optimizers.SGD(0.1)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**8)
        model.compile(optimizer, **quick)
        context = np.random.default_rng(1).normal(size=(len(images), 2, 6)).astype("float32")
        inputs = {"image": images, "context": context}
        losses = [
            model.train_on_batch(inputs, labels, return_dict=True)["batch_loss"] for _ in range(2)
        ]
        if keras.backend.backend() == "jax":
            model.jax_state_sync()
        after = numpy_weights(model.backbone)
        return losses, {name: after[name] - weight for name, weight in before.items()}

    losses, moves = train(False)
    losses_again, moves_again = train(True)
    np.testing.assert_allclose(losses_again, losses, rtol=1e-6 if policy == "float32" else 2e-3)
    for name, move in moves.items():
        largest = np.abs(move).max()
        assert (largest > 0) == (name != "positions"), name
        # XLA fuses, and so rounds, half precision in other ways.
        tolerance = 1e-6 if policy == "float32" else 2e-3 * largest
        np.testing.assert_allclose(moves_again[name], move, rtol=0, atol=tolerance, err_msg=name)


def bytes_kept(network, x, level):
    """What a gradient needs between the two passes; on JAX, beyond all inputs and outputs."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        kept = {}

        def keep(tensor):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = ops.mean(network(x, level, training=True))
        weights = {w.value.data_ptr() for w in network.weights}
        loss.backward()
        return sum(size for pointer, size in kept.items() if pointer not in weights)
    if backend == "tensorflow":
        import tensorflow as tf

        eager = type(tf.constant(0))

        def alive():
            gc.collect()
            # By type: isinstance() would ask lazy objects of other packages for their class.
            tensors = {id(o): o for o in gc.get_objects() if type(o) is eager}.values()
            return sum(o.shape.num_elements() * o.dtype.size for o in tensors)

        before = alive()
        with tf.GradientTape() as tape:
            loss = ops.mean(network(x, level, training=True))
        kept = alive() - before
        assert tape.gradient(loss, network.trainable_weights[0].value) is not None
        return kept
    import jax

    def loss(trainable):
        fixed = [w.value for w in network.non_trainable_variables]
        return ops.mean(network.stateless_call(trainable, fixed, x, level, training=True)[0])

    gradient = jax.jit(jax.grad(loss)).lower([w.value for w in network.trainable_variables])
    return gradient.compile().memory_analysis().temp_size_in_bytes


def test_keeps_less_between_the_passes():
    x, level = np.ones((4, 16, 16, 3), "float32"), np.ones(4, "float32")
    sizes = {**SIZES, "image_size": 16, "depth": 4, "num_classes": 0}
    plain, again = (
        bytes_kept(randomise(DiT(**sizes, rematerialize=rematerialize)), x, level)
        for rematerialize in (False, True)
    )
    # All blocks' activations without, one block's with; and each block's input.
    assert 0 < again < plain / 2


if keras.backend.backend() == "tensorflow":
    # On JAX the memory tells, and PyTorch runs what it is told.
    def test_xla_does_not_merge_the_two_computations():
        import tensorflow as tf

        def products(rematerialize):
            network = DiT(**{**SIZES, "depth": 1}, rematerialize=rematerialize)

            @tf.function(jit_compile=True)
            def gradient(x, level):
                with tf.GradientTape() as tape:
                    loss = ops.mean(network(x, level, training=True))
                return tape.gradient(loss, [w.value for w in network.trainable_weights])

            program = gradient.experimental_get_compiler_ir(tf.ones((2, 8, 8, 3)), tf.ones(2))
            return program(stage="optimized_hlo").count(" dot(")

        # The modulation, the two of the attention and its two layers, the perceptron's first.
        assert products(True) >= products(False) + 6


def test_only_training_rematerializes(monkeypatch):
    network = DiT(**SIZES, rematerialize=True)
    inputs = keras.Input((8, 8, 3)), keras.Input(())
    calls = []

    def counted(block, *inputs):
        calls.append(block.name)
        return block(*inputs)

    monkeypatch.setattr(dit, "rematerialized", counted)
    network(*inputs)
    network(*inputs, training=False)
    assert not calls
    network(*inputs, training=True)
    assert set(calls) == {"block_0", "block_1"}


def test_is_part_of_the_configuration_and_of_nothing_else(tmp_path):
    networks = [randomise(DiT(**SIZES, rematerialize=r), seed=r) for r in (False, True)]
    assert [network.get_config()["rematerialize"] for network in networks] == [False, True]
    assert DiT.from_config(networks[1].get_config()).rematerialize
    old = networks[0].get_config()
    del old["rematerialize"]
    assert DiT.from_config(old).rematerialize is False
    plain, again = map(numpy_weights, networks)
    assert list(plain) == list(again)
    for source, target in (networks, networks[::-1]):
        randomise(source, seed=7)
        source.save_weights(tmp_path / "network.weights.h5")
        randomise(target, seed=8)
        target.load_weights(tmp_path / "network.weights.h5")
        for name, value in numpy_weights(source).items():
            np.testing.assert_array_equal(numpy_weights(target)[name], value)


def test_a_preset_may_rematerialize():
    model = DiffusionModel.from_preset("dit_emoji16", rematerialize=True, depth=1)
    assert model.backbone.rematerialize


def test_a_frozen_block_inside_another_model(quick):
    network = randomise(DiT(**{**SIZES, "depth": 1}, rematerialize=True))
    network.blocks[0].trainable = False
    before = numpy_weights(network)
    inputs = [keras.Input((8, 8, 3)), keras.Input(())]
    model = keras.Model(inputs, network(*inputs))
    model.compile(keras.optimizers.SGD(0.1), loss="mse", **quick)
    x, level = np.ones((2, 8, 8, 3), "float32"), np.ones(2, "float32")
    model.train_on_batch([x, level], x)
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    after = numpy_weights(network)
    for name, weight in before.items():
        moved = np.abs(after[name] - weight).max() > 0
        assert moved != (name == "positions" or name.startswith("block_0")), name

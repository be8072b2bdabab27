"""A small extractor, sets of small images, and networks of PyTorch to compare with."""

import math

import keras
import numpy as np
import pytest


@pytest.fixture(scope="session")
def extractor():
    """The means of four quadrants of an 8 x 8 image, 12 features, and five logits. All sums are
    exact in float32, so that no order of the terms, such as that of another batch size, matters.
    """
    from keras_cdiff.evaluation.features import from_model

    images = keras.Input((8, 8, 3))
    features = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(images))
    dense = keras.layers.Dense(5, dtype="float32")
    model = keras.Model(images, [features, dense(features)])
    kernel = np.rint(np.random.default_rng(1).normal(scale=1.3, size=(12, 5))) / 64
    dense.set_weights([kernel, np.zeros(5)])
    return from_model(model, name="quadrants")


class Counted:
    """An extractor that counts the images it sees, and breaks off when it is told to."""

    def __init__(self, extractor, stop_after=None):
        self.extractor, self.seen, self.stop_after = extractor, 0, stop_after
        self.before = lambda seen: None
        self.change = lambda seen, outputs: outputs

    def __getattr__(self, name):
        return getattr(self.extractor, name)

    def __call__(self, images):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.before(self.seen)
        self.seen += len(images)
        return self.change(self.seen, self.extractor(images))


@pytest.fixture
def make_counted(extractor):
    """A function: images after which the user interrupts -> the small extractor, counting."""
    return lambda stop_after=None: Counted(extractor, stop_after)


@pytest.fixture(scope="session")
def photos():
    """A function: number of images, seed and brightness -> uint8 (N, 8, 8, 3), correlated."""

    def make(count=40, seed=0, brightness=128):
        rng = np.random.default_rng(seed)
        colours = rng.normal(brightness, 30, (count, 2, 2, 3))
        images = colours.repeat(4, axis=1).repeat(4, axis=2) + rng.normal(0, 10, (count, 8, 8, 3))
        return np.clip(np.rint(images), 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, also where its compiled operations are for another build of PyTorch (CUDA)."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        # It only wants to know of these two operations; the networks need no compiled ones.
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.missing_operations = library  # they are known while it lives
    return torchvision


@pytest.fixture(scope="session")
def random_weights():
    """A function: a network of PyTorch -> a state dict of random arrays that fits it.

    Activations keep their size from layer to layer, and nothing is at its default.
    """

    def draw(network, seed=0):
        rng = np.random.default_rng(seed)
        state_dict = {}
        for name, tensor in network.state_dict().items():
            shape = tuple(tensor.shape)
            if name.endswith("num_batches_tracked"):
                state_dict[name] = np.array(7)
                continue
            if name.endswith("running_var"):
                values = rng.uniform(0.5, 2, shape)
            elif name.endswith("weight") and len(shape) == 1:  # of a batch normalisation
                values = rng.uniform(0.7, 1.4, shape)
            elif name.endswith("weight"):
                values = rng.normal(size=shape) * math.sqrt(2 / math.prod(shape[1:]))
            else:
                values = rng.normal(size=shape) * 0.3
            state_dict[name] = values.astype("float32")
        return state_dict

    return draw


@pytest.fixture(scope="session")
def run_torch():
    """A function: a network of PyTorch, images (B, H, W, 3) -> its output, as an array."""
    import torch

    def run(network, images):
        with torch.no_grad():
            return network(torch.tensor(images.transpose(0, 3, 1, 2).copy())).numpy()

    return run


@pytest.fixture(scope="session")
def fid_inception(torchvision, random_weights):
    """pytorch-fid's network with random weights, giving pooled features; and its state dict."""
    import torch
    from pytorch_fid import inception

    class Pooled(torch.nn.Module):
        """The features of the blocks that `InceptionV3` runs, without its resize."""

        def __init__(self):
            super().__init__()
            self.blocks = inception.InceptionV3(resize_input=False, normalize_input=False).eval()

        def forward(self, images):
            return self.blocks(images)[0][:, :, 0, 0]

    # What it would download has the names and shapes of the network that it is for.
    with torch.device("meta"):
        plain = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    state_dict = random_weights(plain)
    with pytest.MonkeyPatch.context() as patch:
        tensors = {name: torch.tensor(array) for name, array in state_dict.items()}
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: tensors)
        return Pooled(), state_dict

"""The model card tells of the run, and of the newest evaluation of the very weights exported."""

import keras
import numpy as np
import pytest

from keras_cdiff import evaluation, export, samplers, training
from keras_cdiff.export.model_card import model_card

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.filterwarnings("ignore:the Frechet distance of"),
]

METADATA = {
    "sampler": {"class_name": "DDIM", "config": {"num_steps": [2, 3]}},
    "guidance": {"config": {"scale": 2.0}},
    "image_shape": [8, 8, 3],
    "num_classes": 3,
    "null_label": 3,
    "context_width": 0,
    "can_be_guided": True,
    "autoencoder": None,
    "iterations": 1200,
    "num_steps": 5,
    "ema": None,
    "weights": "average",
    "parameters": 10508,
    "exported_from": "torch",
    "format": "saved_model",
}


@pytest.fixture
def config():
    return training.resolve("dit_emoji16", image_size=8, num_classes=3, steps=1200)


def test_the_newest_evaluation_of_the_weights_is_told(models, config, extractor_file, tmp_path):
    model = models["dit"]
    evaluator = evaluation.Evaluator(
        keras.saving.load_model(extractor_file), ["frechet_distance"], progress=False
    )
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    reference, results = evaluation.SourceImages(f"npz:{tmp_path / 'images.npz'}", 8), []
    for use_ema, guidance in ((True, 1.0), (True, 2.0), (False, 1.0)):
        images = evaluation.GeneratedImages(
            model, 8, samplers.DDIM(2), label=np.arange(8) % 3, guidance=guidance, use_ema=use_ema
        )
        results.append(evaluator.evaluate(images, reference))
        results[-1].write(tmp_path / "evaluation")
    described = export.describe_run(model, config, tmp_path)
    assert described["evaluation"]["metrics"] == results[1].metrics
    card = model_card({**METADATA, "description": described}).splitlines()
    for line in (
        "- Preset: dit_emoji16",
        "- Data: emoji",
        "- Licence of the data: Apache-2.0 (Noto Emoji, Copyright Google)",
        "- Curriculum: paper, 5 quantile clusters, patience 25",
        "- Training steps: 1,200",
        "- Weights: average, 10,508 numbers",
        "- Sampler: DDIM, 5 steps",
        "- Classes: 3, 0 to 2; 3 is the null label",
        f"- frechet_distance: {results[1].metrics['frechet_distance']:.6g}",
    ):
        assert line in card, card
    (evaluated,) = (line for line in card if line.startswith("Of 8 samples (DDIM("))
    assert "guidance 2) against" in evaluated
    assert evaluated.endswith("features of quadrants, after 12 training steps:")


def test_a_run_that_was_not_evaluated_says_so(models, config, tmp_path):
    described = export.describe_run(models["dit"], config, tmp_path, licence="CC0")
    assert described["evaluation"] is None
    card = model_card({**METADATA, "description": described}).splitlines()
    assert "Not evaluated." in card
    assert "- Licence of the data: CC0" in card

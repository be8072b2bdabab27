import os
import subprocess
import sys

import keras

import keras_cdiff

HEAVY = ["PIL", "grain", "keras_cv", "matplotlib", "tensorboard", "tensorflow_datasets"]

# Keras itself imports some of these, so they are barred once Keras is there.
PROGRAM = """
import sys
import keras
before = set(sys.modules)
sys.modules.update({name: None for name in sys.argv[1:]})
import keras_cdiff
new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.argv[1:])
print(*sorted(new - set(sys.stdlib_module_names)))
"""


def run(program, *arguments):
    environment = {
        **os.environ,
        "KERAS_BACKEND": keras.backend.backend(),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)


def test_import_adds_nothing_to_the_import_of_keras_but_itself():
    done = run(PROGRAM, *HEAVY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["keras_cdiff"]


def test_public_names_are_where_the_documents_say():
    names = {
        "": "DiffusionModel CurriculumCallback load sample export_sampler",
        "schedules": "LinearBeta Cosine EDM RectifiedFlow VP VE",
        "parameterizations": "EDMPreconditioning Epsilon Sample Velocity VPPreconditioning "
        "VEPreconditioning IDDPMPreconditioning",
        "objectives": "UniformTimesteps LogNormalSigma LogitNormalTime UniformTime LogUniformSigma "
        "LogUniformVariance Constant MinSNR P2 EDMWeight",
        "ema": "FixedDecay WarmupDecay PowerDecay reconstruct",
        "augmentation": "Augmentation",
        "autoencoders": "Autoencoder open_autoencoder fit_autoencoder kl_networks",
        "backbones": "DiT SongUNet DhariwalUNet",
        "curriculum": "Clusters uniform_clusters snr_clusters quantile_clusters PatiencePacing "
        "FixedPacing CurriculumCallback",
        "samplers": "DDPM DDIM Euler Heun DPMSolver Guidance sample",
        "data": "open_source make_dataset prepare_image to_uint8 image_grid save_image_grid "
        "encode_source LatentSource open_text_encoder embed_captions",
        "convert": "dit_from_official edm_from_official",
        "distribution": "distribute connected find_cluster layout_map shared_by share Processes",
        "export": "describe_run describe_weights export_sampler",
        "presets": "preset PRESETS",
        "training": "resolve train load_run load_weights generate EMASnapshots reconstruct_average",
    }
    for module, members in names.items():
        home = getattr(keras_cdiff, module) if module else keras_cdiff
        missing = [name for name in members.split() if not hasattr(home, name)]
        assert not missing, f"keras_cdiff.{module}: {missing}"
    model = keras_cdiff.DiffusionModel
    for method in ("from_preset", "denoise", "estimate", "fit"):
        assert callable(getattr(model, method))


def test_everything_announced_exists():
    assert [name for name in keras_cdiff.__all__ if not hasattr(keras_cdiff, name)] == []

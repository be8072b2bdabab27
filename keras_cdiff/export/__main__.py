"""Exports a bundle with TensorFlow, for `export_sampler` where Keras is on another backend."""

import sys
from pathlib import Path

from keras_cdiff.export.exporter import read_bundle
from keras_cdiff.export.saved_model import write_saved_model

if __name__ == "__main__":
    write_saved_model(*read_bundle(Path(sys.argv[1])), Path(sys.argv[2]))

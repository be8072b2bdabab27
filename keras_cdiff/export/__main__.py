"""Exports a bundle with TensorFlow, for `export_sampler` where Keras is on another backend."""

import sys
from pathlib import Path

from keras_cdiff.export.bundle import read_bundle
from keras_cdiff.export.writer import write_export

if __name__ == "__main__":
    write_export(*read_bundle(Path(sys.argv[1])), Path(sys.argv[2]))

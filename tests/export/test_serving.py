"""The requests of TensorFlow Serving as the README has them.

The real model server cannot be installed from a package here. TensorFlow's own command line runs
the signature, a server speaks the REST interface, and another the gRPC interface, with
TensorFlow's own messages.
"""

import concurrent.futures
import importlib.util
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import forked
import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def request_():
    """The README's request of the REST interface."""
    found = re.search(r"-d '(\{\"signature_name\".*?\})'", (ROOT / "README.md").read_text())
    return json.loads(found[1].replace('"label": [5, 5]', '"label": [2, 2]'))


@pytest.fixture(scope="module")
def images(served, request_):
    """What the signature answers in this process."""
    task = tf.saved_model.load(str(served)).signatures[request_["signature_name"]]
    dtypes = {"seeds": tf.int64, "label": tf.int32, "guidance": tf.float32}
    inputs = {k: tf.constant(v, dtypes[k]) for k, v in request_["inputs"].items()}
    return task(**inputs)["images"].numpy()


def test_tensorflows_command_line_runs_it(served, request_, images, tmp_path, run_program):
    dtypes, files = {"seeds": "int64", "label": "int32", "guidance": "float32"}, {}
    for name, dtype in dtypes.items():
        files[name] = tmp_path / f"{name}.npy"
        np.save(files[name], np.array(request_["inputs"][name], dtype))
    inputs = ";".join(f"{name}={path}" for name, path in files.items())
    process = run_program(
        importlib.util.find_spec("tensorflow.python.tools.saved_model_cli").origin,
        *("run", "--dir", served, "--tag_set", "serve", "--outdir", tmp_path),
        *("--signature_def", request_["signature_name"], "--inputs", inputs),
    )
    assert process.returncode == 0, process.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), images)


@pytest.fixture(scope="module")
def port(served, tmp_path_factory):
    """The port of the example's server."""
    output = tmp_path_factory.mktemp("server") / "output.txt"
    program = ROOT / "examples" / "serve_export.py"
    process = forked.Program([program, served, "--port=0"], output, output.with_name("errors.txt"))
    while not (output.exists() and output.read_text().endswith("\n")):
        assert process.poll() is None, output.with_name("errors.txt").read_text()
        time.sleep(0.02)
    yield int(output.read_text().split()[-1])
    process.kill()
    process.wait()


def post(port, request):
    address = f"http://localhost:{port}/v1/models/emoji:predict"
    with urllib.request.urlopen(address, json.dumps(request).encode(), timeout=600) as answer:
        return json.load(answer)


def test_the_rest_request_is_answered(port, request_, images):
    np.testing.assert_array_equal(post(port, request_)["outputs"], images)


def test_a_bad_rest_request_is_refused_with_the_reason(port, request_):
    request_ = {**request_, "inputs": {**request_["inputs"], "guidance": -1.0}}
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(port, request_)
    assert caught.value.code == 400
    assert "guidance must be finite and at least 0" in json.load(caught.value)["error"]


class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers predict requests as the model server does: by name, with dtypes as they come."""

    def __init__(self, path):
        self.signatures = tf.saved_model.load(str(path)).signatures

    def Predict(self, request, context):  # noqa: N802 (as the interface calls it)
        task = self.signatures[request.model_spec.signature_name]
        inputs = {name: tf.constant(tf.make_ndarray(v)) for name, v in request.inputs.items()}
        answer = predict_pb2.PredictResponse()
        for name, value in task(**inputs).items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return answer


def test_the_grpc_request_is_answered(served, images):
    program = re.search(
        r"```python\n(import grpc\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )[1]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(served), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        names = {}
        exec(program.replace("8500", str(port)).replace("[5, 5]", "[2, 2]"), names)
        np.testing.assert_array_equal(names["images"], images)
        names["channel"].close()
    finally:
        server.stop(None).wait()

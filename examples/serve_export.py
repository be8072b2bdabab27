"""Serves an exported model over HTTP, for predict requests as TensorFlow Serving takes them.

python examples/serve_export.py served/emoji/1 --port=8501
"""

import argparse
import http.server
import json

import tensorflow as tf


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            task = self.server.signatures[request["signature_name"]]
            specs = task.structured_input_signature[1]
            inputs = {k: tf.constant(v, specs[k].dtype) for k, v in dict(request["inputs"]).items()}
            (output,) = task(**inputs).values()
            status, answer = 200, {"outputs": output.numpy().tolist()}
        except (KeyError, TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            status, answer = 400, {"error": f"{type(error).__name__}: {error}"}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="what apps/export.py wrote")
    parser.add_argument("--port", type=int, default=8501)
    options = parser.parse_args()
    server = http.server.ThreadingHTTPServer(("localhost", options.port), Handler)
    server.signatures = tf.saved_model.load(options.model).signatures
    print(f"serving on port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Preference scores over HTTP from an ONNX file: of this package only the feature extractor is used.

    mcm export --model runs/mine --output_dir runs/mine-onnx
    python examples/6_serve_onnx.py runs/mine-onnx 8000
    curl localhost:8000 -d '{"events": [{"time": "2017-09-02 17:30", "token_type": "purchase", "item": "i7"}]}'

A request is a customer as JSON, `events` and if wanted `profile`; the answer holds the best labels of every task.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime

from modeling_mcm import MCMFeatureExtractor

SHOWN = 5


def scorer(folder):
    """A function from a customer to the best labels of every task with their probabilities."""
    extractor = MCMFeatureExtractor.from_pretrained(folder)
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    names, read = [f"logits.{task}" for task in extractor.tasks], [entry.name for entry in session.get_inputs()]

    def score(customer):
        inputs = extractor(customer, return_tensors="np")
        best, inputs["now"] = {}, inputs["event_times"].max(1)  # the moment of the question: the last event
        for task, (logits,) in zip(extractor.tasks, session.run(names, {k: inputs[k] for k in read}), strict=True):
            chances = np.exp(logits - logits.max())
            order = np.argsort(-chances)[: min(SHOWN, len(chances) - 2)]  # two ids are no labels, and come last
            shares = (chances[order] / chances.sum()).tolist()
            best[task] = dict(zip(extractor.decode_labels(task, order), shares, strict=True))
        return best

    return score


class Handler(BaseHTTPRequestHandler):
    """Answers a POST; a customer that can't be read gets status 400 and the reason."""

    def do_POST(self):
        try:
            customer = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = 200, self.server.score(customer)
        except ValueError as error:
            status, answer = 400, {"error": str(error)}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


if __name__ == "__main__":
    server = ThreadingHTTPServer(("localhost", int(sys.argv[2])), Handler)
    server.score = scorer(sys.argv[1])
    server.serve_forever()

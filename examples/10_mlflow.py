# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM as a model of MLflow, with events in and recommendations out (`pip install mlflow-skinny`, or mlflow).

    python examples/10_mlflow.py tests/fixtures/mcm-dummy           logs and registers it, loads it and asks it
    mlflow models serve -m models:/customers/1 --env-manager local

`MLFLOW_TRACKING_URI` says where. Nothing is pickled: MLflow keeps this file and the checkpoint. Training is tracked
by `mcm pretrain --report_to mlflow`.
"""

import sys
from types import SimpleNamespace

import mlflow
import pandas as pd
from mlflow.models import infer_signature, set_model

from modeling_mcm import CustomerModel, MCMFeatureExtractor, MCMForMultiTaskRecommendation

EVENTS = pd.DataFrame(
    {
        "household_id": ["7"] * 3,
        "time": ["2017-09-02 17:30", "2017-09-02 17:30", "2017-09-09 18:05"],
        "basket_id": ["1", "1", "2"],
        "token_type": ["purchase"] * 3,
        "department": ["GROCERY"] * 3,
        "product_category": ["FLUID MILK PRODUCTS", "CAT FOOD", "CAT FOOD"],
        "amount": [2.49, 5.99, 5.99],
    }
)
PARAMS = {"k": 3, "as_of": ""}  # by default the time of the latest event


class Recommendations(mlflow.pyfunc.PythonModel):
    """Answers a table of events with the best labels of each customer in it."""

    def load_context(self, context):
        """Reads the checkpoint once."""
        folder = context.artifacts["checkpoint"]
        self.model = MCMForMultiTaskRecommendation.from_pretrained(folder).eval()
        self.extractor = MCMFeatureExtractor.from_pretrained(folder)

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        """A row for each customer, task and label."""
        asked = PARAMS | (params or {})
        customers = CustomerModel(self.model, self.extractor, model_input)
        return customers.recommend(k=asked["k"], as_of=asked["as_of"] or None)


set_model(Recommendations())


def main(checkpoint):
    """Logs the checkpoint with an example of its input and its answer, and asks what was registered."""
    model = Recommendations()
    model.load_context(SimpleNamespace(artifacts={"checkpoint": checkpoint}))
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=__file__,
            artifacts={"checkpoint": checkpoint},
            signature=infer_signature(EVENTS, model.predict(None, EVENTS), PARAMS),
            input_example=(EVENTS, PARAMS),
            pip_requirements=["modeling-mcm"],
            registered_model_name="customers",
        )
    registered = mlflow.pyfunc.load_model(f"models:/customers/{logged.registered_model_version}")
    print(registered.predict(EVENTS, {"k": 2, "as_of": "2017-09-20"}).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])

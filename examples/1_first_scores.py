# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What does a customer want next? Reads a toy checkpoint of this repository, so nothing has to be trained before."""

from transformers import pipeline

import modeling_mcm  # noqa: F401  registers the Auto classes and the pipelines

checkpoint = "tests/fixtures/mcm-dummy"  # after `make quickstart`: "runs/quickstart"
events = {
    "time": ["2017-09-02 17:30", "2017-09-02 17:30", "2017-09-09 18:05"],
    "basket_id": [1, 1, 2],
    "token_type": ["purchase"] * 3,
    "product_category": ["FLUID MILK PRODUCTS", "CAT FOOD", "CAT FOOD"],
    "amount": [2.49, 5.99, 5.99],
}
customer = {"events": events, "profile": {"age": "25-34"}}

scores = pipeline("preference-scores", model=checkpoint)(customer, tasks=["product_category"], top_k=3)
print([f"{each['label']} {each['score']:.1%}" for each in scores["product_category"]])
print(pipeline("customer-embedding", model=checkpoint)(customer).shape)

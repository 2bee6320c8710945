# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a published checkpoint as someone without this package does; run in a process of its own.

    python remote_reader.py SOURCE CUSTOMERS.json FOLDER

SOURCE is a folder or a name on the Hub. The numbers go to FOLDER/numbers.json, what is saved after loading to folders
beside it. The package is installed in the environment of the tests (as an editable install, which no option of Python
leaves out without leaving out transformers too), so a finder that comes before all others refuses its name. The remote
code is imported under another name, `transformers_modules...`, which passes.
"""

import json
import sys


class Refused:
    """Stands for an environment in which the package is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "modeling_mcm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refused)

import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    pipeline,
)

TRUST = {"trust_remote_code": True}


def outputs(source, customers, head):
    """The numbers of the base model and of a head."""
    extractor = AutoFeatureExtractor.from_pretrained(source, **TRUST)
    inputs = extractor(customers)
    found = {}
    with torch.no_grad():
        base = AutoModel.from_pretrained(source, **TRUST).eval()
        without_times = {name: value for name, value in inputs.items() if name != "event_times"}
        found["embedding"] = base(**without_times).pooler_output.tolist()
        if head:
            logits = head.from_pretrained(source, **TRUST).eval()(**inputs).logits
            found["logits"] = {task: values.tolist() for task, values in logits.items()}
    return found


def assert_close(found, expected, what):
    """Weights of another file may lie elsewhere in memory, which a matrix product's last bits can tell."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), what
        found, expected = (sum(each.values(), []) for each in (found, expected))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-6, rtol=1e-6, msg=what)


def main(source, customers_file, folder):
    given = json.loads(open(customers_file, encoding="utf-8").read())
    customers, actions = given["customers"], given["actions"]
    config = AutoConfig.from_pretrained(source, **TRUST)
    assert type(config).__module__.startswith("transformers_modules."), type(config)
    numbers = outputs(source, customers, None if actions else AutoModelForPreTraining)
    embedding = pipeline("customer-embedding", model=source, **TRUST)
    numbers["pipeline embedding"] = [row.tolist() for row in embedding(customers)]
    numbers["preferences"] = pipeline("preference-scores", model=source, **TRUST)(customers)
    if actions:
        numbers["actions"] = pipeline("action-scores", model=source, **TRUST)(customers, actions=actions)

    heads = [AutoModel, AutoModelForPreTraining] + [AutoModelForSequenceClassification] * bool(actions)
    for head in heads:
        saved = f"{folder}/{head.__name__}"
        head.from_pretrained(source, **TRUST).save_pretrained(saved)
        AutoFeatureExtractor.from_pretrained(source, **TRUST).save_pretrained(saved)
        again = outputs(saved, customers, head if head is AutoModelForPreTraining and not actions else None)
        for name, value in again.items():
            assert_close(value, numbers[name], head.__name__)
    embedding.save_pretrained(f"{folder}/pipeline")
    reloaded = pipeline("customer-embedding", model=f"{folder}/pipeline", **TRUST)
    assert_close([row.tolist() for row in reloaded(customers)], numbers["pipeline embedding"], "pipeline")
    with open(f"{folder}/numbers.json", "w", encoding="utf-8") as file:
        json.dump(numbers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

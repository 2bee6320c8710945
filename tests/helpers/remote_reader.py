# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a published checkpoint as someone without this package does; run in a process of its own.

    python remote_reader.py SOURCE CUSTOMERS.json FOLDER

SOURCE is a folder or a name on the Hub. The answers of its pipelines go to FOLDER/answers.json, beside what they say
after they were loaded, saved to FOLDER and read from there. The package is installed in the environment of the
tests (as an editable install, which no option of Python leaves out without leaving out transformers too), so its name
is refused. The remote code is imported under another name, `transformers_modules...`, which passes.
"""

import json
import sys

import torch
import transformers

sys.modules["modeling_mcm"] = None


def main(source, customers_file, folder):
    with open(customers_file, encoding="utf-8") as file:
        customers, actions = json.load(file)
    trust = {"trust_remote_code": True}
    config = transformers.AutoConfig.from_pretrained(source, **trust)
    assert type(config).__module__.startswith("transformers_modules."), type(config)
    answers = {}
    for kind, entry in config.custom_pipelines.items():
        auto, saved = getattr(transformers, entry["pt"][0]), f"{folder}/{entry['pt'][0]}"
        model = auto.from_pretrained(source, **trust)
        model.save_pretrained(saved)
        torch.testing.assert_close(auto.from_pretrained(saved, **trust).state_dict(), model.state_dict())
        options = {"actions": actions} if kind == "action-scores" else {}
        ask = transformers.pipeline(kind, model=source, **trust)
        ask.save_pretrained(f"{folder}/{kind}")
        again = transformers.pipeline(kind, model=f"{folder}/{kind}", **trust)
        answers[kind] = [pipe(customers, **options) for pipe in (ask, again)]
    with open(f"{folder}/answers.json", "w", encoding="utf-8") as file:
        json.dump(answers, file, default=lambda array: array.tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])

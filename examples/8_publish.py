# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishes a checkpoint from Python, with its code and a card, and reads it back as a stranger would.

    hf auth login
    python examples/8_publish.py runs/quickstart org/mcm-base

`mcm publish` does more: a dry run, and placeholders for values of few customers. Look at
vocabularies.json before you publish: it lists every value of your log that the model knows.
"""

import sys
import tempfile
from pathlib import Path

from transformers import AutoFeatureExtractor, AutoModel

from modeling_mcm.hub import model_card, publish, write_upload_folder


def main(checkpoint, repo_id):
    """Sends the checkpoint, then downloads it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "upload")
        write_upload_folder(checkpoint, folder)
        model_card(folder, repo_id, checkpoint).save(folder / "README.md")
        done = publish(folder, repo_id)
    print(f"{done.url}: {'a new commit' if done.changed else 'nothing had changed'}")

    model = AutoModel.from_pretrained(repo_id, trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained(repo_id, trust_remote_code=True)
    embedding = model(**extractor({"events": []})).pooler_output
    print(f"Read back: an embedding of {embedding.shape[1]} numbers for a customer without events.")


if __name__ == "__main__":
    main(*sys.argv[1:])

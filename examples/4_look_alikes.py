# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Look-alike customers: embeddings in a vector index (pip install faiss-cpu).

    python examples/4_look_alikes.py runs/mine log.parquet customers.faiss c07 c21

Writes an index of the customers of the log, and prints the five customers nearest to each one that is named. Nearness
is the cosine of two embeddings; the index is exact, faiss has faster ones for millions of customers.
"""

import sys

import faiss
import numpy as np
import pandas as pd
from transformers import pipeline

import modeling_mcm  # noqa: F401  registers the pipelines

NEAREST = 5


def embed(checkpoint, log):
    """The customers' ids, and their embeddings of length 1, of shape `(customers, hidden_size)`."""
    embedding = pipeline("customer-embedding", model=checkpoint, batch_size=64)
    column = embedding.feature_extractor.customer
    groups = [(name, events) for name, events in log.groupby(column)]
    vectors = np.stack(embedding([{"events": events} for _, events in groups]))
    faiss.normalize_L2(vectors)
    return [str(name) for name, _ in groups], vectors


def main(checkpoint, events, index_file, *wanted):
    """Builds and writes the index, and prints the look-alikes of the wanted customers."""
    names, vectors = embed(checkpoint, pd.read_parquet(events))
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, index_file)
    for name in wanted:
        cosines, places = index.search(vectors[[names.index(name)]], NEAREST + 1)
        found = [(names[place], cosine) for cosine, place in zip(cosines[0], places[0], strict=True)]
        alike = ", ".join(f"{other} {cosine:.3f}" for other, cosine in found if other != name)
        print(f"{name} is like {alike}")


if __name__ == "__main__":
    main(*sys.argv[1:])

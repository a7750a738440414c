"""Answers from the logits of question_answering.py, in a module of its own beside it."""

import collections
import json
import os

import numpy as np


def best_spans(examples, features, predictions, n_best, output_dir, prefix):
    """The best span of every example over all its features; the n best are written to a file."""
    all_starts, all_ends = predictions
    if len(all_starts) != len(features):
        raise ValueError(f"Got {len(all_starts)} predictions and {len(features)} features.")
    of_example = collections.defaultdict(list)
    for number, feature in enumerate(features):
        of_example[feature["example_id"]].append(number)
    best, written = {}, {}
    for example in examples:
        spans = []
        for number in of_example[example["id"]]:
            offsets = features[number]["offset_mapping"]
            starts, ends = all_starts[number], all_ends[number]
            for start in np.argsort(starts)[: -n_best - 1 : -1]:
                for end in np.argsort(ends)[: -n_best - 1 : -1]:
                    if start <= end < len(offsets) and offsets[start] and offsets[end]:
                        text = example["context"][offsets[start][0] : offsets[end][1]]
                        spans.append((float(starts[start] + ends[end]), text))
        spans = sorted(spans, reverse=True)[:n_best] or [(0.0, "empty")]
        best[example["id"]] = spans[0][1]
        written[example["id"]] = spans
    for name, content in (("predictions", best), ("nbest_predictions", written)):
        with open(os.path.join(output_dir, f"{prefix}_{name}.json"), "w") as writer:
            json.dump(content, writer)
    return best

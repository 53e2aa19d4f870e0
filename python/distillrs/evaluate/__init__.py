"""Fair measurement, shared by proofs, demos and users.

One way to train trains every set; choices are made on :class:`Validation` only; :func:`compare` puts a distilled set
beside random real examples of the same count, labels, views and tuning budget, and beside the full data::

    bundle = evaluate.data.load("digits")
    data = condense.load("out/demo")
    network = evaluate.networks.build("mlp", bundle.shape, len(bundle.classes))
    model = evaluate.train(network, data)
    evaluate.accuracy(model, data.transform.forward(bundle.x_test), bundle.y_test)
"""

from __future__ import annotations

from distillrs.evaluate import (
    accounting,
    beds,
    data,
    generation,
    graph_networks,
    graph_sets,
    networks,
    scores,
    statistics,
)
from distillrs.evaluate.comparison import Comparison, compare
from distillrs.evaluate.data.bundle import DataBundle
from distillrs.evaluate.measure import accuracy, area_under_curve, predictions
from distillrs.evaluate.retrieval import recall
from distillrs.evaluate.small_sets import RealSet, SmallSet, random_real, train
from distillrs.evaluate.statistics import Paired, Summary
from distillrs.evaluate.validation import Choice, Validation, choose_best

__all__ = [
    "Choice",
    "Comparison",
    "DataBundle",
    "Paired",
    "RealSet",
    "SmallSet",
    "Summary",
    "Validation",
    "accounting",
    "accuracy",
    "area_under_curve",
    "beds",
    "choose_best",
    "compare",
    "data",
    "generation",
    "graph_networks",
    "graph_sets",
    "networks",
    "predictions",
    "random_real",
    "recall",
    "scores",
    "statistics",
    "train",
]

"""A wrong argument of a recipe that condenses or selects is refused by the name that it has there."""

import math

import numpy as np
import pytest
import torch

from distillrs import condense, recipes
from distillrs.augment import Augmentation
from distillrs.errors import ArgumentError, UnknownNameError, argument_error, renamed
from small_networks import heads, network, plain

X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
WORDS = np.array(["cosine", "linear"])


def of(call, **good):
    """The call with one of its arguments exchanged."""
    return lambda name, value: call(**{**good, name: value})


class NoStore:
    def __init__(self):
        self.metadata = {}

    def lengths(self):
        return {}

    def read(self, key, step, *, column):
        raise KeyError(key)


TEACHERS = condense.Committee([network(), network(1)])
SET = condense.Synthetic.from_real(X, Y, 2)
PAIRS = condense.Pairs(torch.rand(6, 4), torch.rand(6, 4))
PAIRED = condense.PairedSynthetic(*PAIRS, targets=condense.PairTargets(6, 2))
PROBABILITIES = torch.rand(6, 3).softmax(1)
SCORER = recipes.FrameScorer(4, 8, 1, 2, 8)
IMAGES = {"x": X, "y": Y, "per_class": 2, "teachers": TEACHERS}
MATCHED = {"x": X, "y": Y, "networks": plain, "synthetic": SET}
CUT = {"features": [torch.rand(9, 4)], "scores": [torch.rand(9)], "step": 0}
TRAJECTORIES = {"store": NoStore(), "network": plain(), "synthetic": SET}

WRONG = [
    *[(of(recipes.cda, teachers=TEACHERS, synthetic=SET), name, None) for name in ("teachers", "synthetic", "seed")],
    *[
        (of(recipes.cda, teachers=TEACHERS, synthetic=SET), name, value)
        for name in ("first_area", "last_area", "share")
        for value in (None, "a", 0, 1.5, math.nan, True)
    ],
    (of(recipes.cda, teachers=TEACHERS, synthetic=SET), "curriculum", WORDS),
    (of(recipes.cda, teachers=TEACHERS, synthetic=SET), "strength", math.inf),
    *[(of(recipes.cda_initial, x=X, y=Y, per_class=2), "per_class", value) for value in (0, "a", 1.5, 10**30)],
    *[(of(recipes.cda_initial, x=X, y=Y, per_class=2), name, None) for name in ("x", "y")],
    *[(of(recipes.cv_dd, teachers=TEACHERS, synthetic=SET), "area", value) for value in (None, 0, 2)],
    *[(of(recipes.cv_dd, teachers=TEACHERS, synthetic=SET), "weight_temperature", value) for value in (0, "a")],
    *[(of(recipes.cv_dd_initial, **IMAGES), name, None) for name in ("x", "teachers", "patch_area", "factor", "crops")],
    *[
        (of(recipes.cv_dd_prior, teachers=TEACHERS, condense=len, score=len), name, None)
        for name in ("teachers", "condense", "score")
    ],
    *[(of(recipes.cv_dd_voice, teachers=TEACHERS), name, "a") for name in ("teachers", "temperature")],
    *[(of(recipes.infer_ufc_initial, **IMAGES), name, None) for name in ("x", "y", "teachers", "noise", "per_class")],
    *[
        (of(recipes.infer_ufc, teachers=TEACHERS, synthetic=SET), name, value)
        for name, value in (("teachers", None), ("synthetic", None), ("synthetic", SET))
    ],
    (of(recipes.infer_ufc_views), "augmentation", "mirror"),
    *[(of(recipes.dm, **MATCHED), name, 0) for name in ("x", "networks", "synthetic", "real_per_class")],
    *[(of(recipes.dm, **MATCHED), "augment", value) for value in (True, "mirror")],
    *[(of(recipes.dc, **MATCHED), name, 0) for name in ("every", "inner_epochs", "real_per_class")],
    *[(of(recipes.dc, **MATCHED), "network_rate", value) for value in (None, "a", -1.0)],
    (of(recipes.dc, **MATCHED), "distance", WORDS),
    *[(of(recipes.rded, **IMAGES), name, None) for name in ("x", "per_class", "teachers", "candidates", "area")],
    *[(of(recipes.random_real_soft_labels, **IMAGES), name, None) for name in ("x", "y", "per_class", "teachers")],
    *[
        (of(call, **TRAJECTORIES), "inner_steps", value)
        for call in (recipes.tesla, recipes.mtt, recipes.ftd, recipes.smooth_expert)
        for value in (None, 0, 1.5)
    ],
    *[(of(call, **TRAJECTORIES), "augment", "mirror") for call in (recipes.tesla, recipes.mtt, recipes.ftd)],
    (of(recipes.repblend, store=NoStore(), network=heads(), synthetic=PAIRED), "inner_steps", 0),
    (of(recipes.repblend_initial, count=4), "pairs", None),
    *[
        (of(recipes.mdm, store=NoStore(), network=heads(), real=PAIRS, synthetic=PAIRED), "clip", value)
        for value in (0, "a")
    ],
    *[(of(recipes.pcoreset, student=plain(), teacher=plain()), name, None) for name in ("weight", "labels")],
    *[
        (of(recipes.pcoreset_probabilities, ce=PROBABILITIES, kd=PROBABILITIES), name, None)
        for name in ("ce", "kd", "share", "beta")
    ],
    *[
        (of(recipes.pcoreset_queries, probabilities=PROBABILITIES, labelled=Y[:0], k=2), name, value)
        for name, value in (
            ("probabilities", None),
            ("probabilities", X),
            ("probabilities", 2 * PROBABILITIES),
            ("labelled", None),
            ("labelled", [0]),
            ("labelled", torch.ones(2, dtype=torch.complex64)),
            ("k", 7),
        )
    ],
    *[(of(recipes.FrameScorer), name, 10**30) for name in ("features", "width", "layers", "heads", "hidden")],
    (of(SCORER, frames=torch.rand(2, 5, 4)), "frames", None),
    (of(SCORER, frames=torch.rand(2, 5, 4)), "mask", True),
    *[(of(recipes.peek, student=SCORER), name, 3) for name in ("scores", "mask")],
    *[(of(recipes.peek_batch, **CUT), name, "a") for name in ("features", "scores", "crop", "drop", "most", "least")],
    (of(recipes.peek_batch, **CUT), "first_unit", -1),
    *[(of(recipes.ded_teacher, answers={"a": [1]}, train=len, score=len), name, None) for name in ("answers", "train")],
    (of(recipes.ded_teacher, answers={"a": [1]}, train=len, score=len), "answers", {"a": "text"}),
    *[(of(recipes.ded(), traces=[["a"]], pass_rates=[0.1]), name, None) for name in ("traces", "pass_rates")],
    (of(recipes.mirage), "depth", "a"),
    (of(recipes.mirage), "edge_labels", "no"),
    *[
        (of(Augmentation, strategy="flip"), name, None)
        for name in ("strategy", "combine", "siamese", "brightness", "crop", "scale")
    ],
    *[
        (of(Augmentation("flip").plan, units=2, step=0, shape=(1, 8, 8)), "shape", value)
        for value in (None, (8, 8), (1, 8, "a"))
    ],
    *[(of(Augmentation("flip").plan, units=2, step=0, shape=(1, 8, 8)), "units", value) for value in (None, "ab")],
    (of(Augmentation("flip").plan, units=2, step=0, shape=(1, 8, 8)), "device", "nowhere"),
    *[
        (of(Augmentation("").apply, images=X, plan=Augmentation("").plan(12, step=0, shape=(1, 8, 8))), name, None)
        for name in ("images", "plan")
    ],
]


@pytest.mark.parametrize(("call", "name", "value"), WRONG)
def test_a_wrong_argument_is_refused_by_the_name_that_it_has_here(call, name, value):
    with pytest.raises(ArgumentError, match=rf"^{name}: got"):
        call(name, value)


def test_a_refusal_keeps_its_kind_and_what_it_says_under_another_name():
    with pytest.raises(ArgumentError, match=r"^outer: got 3, allowed is 4$"), renamed(inner="outer"):
        raise argument_error("inner", 3, "4")
    with pytest.raises(UnknownNameError, match=r"^augment: got 'mirror'"), renamed(strategy="augment"):
        Augmentation("mirror")
    with pytest.raises(ArgumentError, match=r"^other: got 3"), renamed(inner="outer"):
        raise argument_error("other", 3, "4")
    with pytest.raises(ValueError, match=r"^inner: plain"), renamed(inner="outer"):
        raise ValueError("inner: plain")

"""Attention to Mamba: mixers that first learn to give what attention gave, then train as Mamba's."""

from __future__ import annotations

from torch import nn

from distillrs.checks import check_instance, check_text, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge import AnyTap, Cosine, Labels, Objective, Shifted, Stage, Term
from distillrs.knowledge.forms import MambaMixer, mixer_paths
from distillrs.knowledge.rows import Rows
from distillrs.knowledge.taps import as_taps
from distillrs.recipes._networks import LOGITS, frozen
from distillrs.registry import recipe


@recipe(
    id="attention-to-mamba",
    source="Attention to Mamba: A Recipe for Cross-Architecture Distillation, 2026",
    equation="stage 1: mean over layers of 1 - cos(mixer_S, attention_T), maps alone; stage 2: CE(s, y), everything",
    deviations=[
        "Both stages train one network: its mixers are Mamba's from the start, with convolution, step, rate, skip and "
        "gate at values that make them linear attention, and stage 1 leaves these alone.",
        "The layers of stage 1 see what the student's own layers below give, not the teacher's hidden states.",
        "The feature map is Hedgehog's with a softmax over each half and a floor of 1e-6; the convolution runs over "
        "queries, keys and values without an activation; the rate is one number for each memory, cut at 0.",
    ],
    optimisers={"student": {"lr": 1e-3}},
    engine="knowledge",
)
def attention_to_mamba(
    student: nn.Module,
    teacher: nn.Module,
    align_steps: int,
    prefix: str = "",
    rows: Rows = None,
    labels: str = "labels",
    logits: AnyTap = LOGITS,
) -> Objective:
    """Two stages over a student whose attention was replaced by ``forms.convert_mixers(student, kind="mamba")``.

    Args:
        student: A copy of the teacher with Mamba mixers.
        teacher: The network with attention; it is frozen.
        align_steps: Length of stage 1, which trains the feature maps alone: in ``DistributedDataParallel`` that takes
            ``find_unused_parameters=True``.
        prefix: What goes before the paths of the student's mixers to find them in the teacher ("base." for
            "base.model.layers.0.self_attn").
        rows: Which tokens stage 1 counts, ``Mask()`` for padding; ``None`` for all.
        labels: The batch entry of the token ids to predict, unshifted.
        logits: Where the student's logits are.

    Returns:
        The objective; its group is "student". Stage 2 lasts as long as the run.

    Raises:
        ArgumentError: A student without Mamba mixers, or a value that is not allowed.
    """
    check_instance("student", student, nn.Module, "a network with Mamba mixers")
    check_whole("align_steps", align_steps, "a positive number of steps", least=1)
    if not isinstance(prefix, str):
        raise argument_error("prefix", prefix, "a string")
    check_text("labels", labels, "the name of an entry of the batch")
    as_taps("logits", logits)
    paths = mixer_paths(student, MambaMixer)
    if not paths:
        got = f"{type(student).__name__} without a Mamba mixer"
        raise argument_error("student", got, "a network after knowledge.forms.convert_mixers(student, kind='mamba')")
    align = [
        Term(path, prefix + path, divergence=Cosine(), rows=rows, scale=1 / len(paths), name=f"mixer {number}")
        for number, path in enumerate(paths)
    ]
    maps = [f"{path}.{side}_map" for path in paths for side in ("query", "key")]
    task = Term(logits, target=Labels(), rows=Shifted(labels), name="task")
    return Objective(
        student,
        frozen(teacher),
        stages=[
            Stage(align, align_steps, trainable=maps, name="align"),
            Stage([task], name="train"),
        ],
        labels=labels,
    )

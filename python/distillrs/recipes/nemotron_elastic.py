"""Nemotron Elastic: nested submodels of one parent, trained together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distillrs import ops
from distillrs.checks import check_instance, check_number
from distillrs.errors import argument_error
from distillrs.knowledge import L1, AnyTap, Objective, Run, Term
from distillrs.knowledge.forms import router_of
from distillrs.knowledge.rows import Rows
from distillrs.knowledge.taps import as_taps
from distillrs.recipes._networks import LOGITS, frozen
from distillrs.registry import recipe


@recipe(
    id="nemotron-elastic",
    source="NVIDIA: Nemotron Elastic: Towards Efficient Many-in-One Reasoning LLMs, 2025",
    equation="KL(p_parent || p_submodel) + w |cost(masks) - budget|, budget and sizes drawn at each step",
    deviations=[
        "The router is a table of scores for each budget: what a linear map of a one-hot is; the paper's is a network.",
        "The budget 1 is the whole network, without a router.",
        "In the forward pass the masks are those of one drawn size, and the gradient is that of the soft mixture.",
        "Neurons are ranked by what enters the output projection, behind the activation and the gate.",
        "Exported sizes are those of the highest scores, moved to meet the budget within the form's tolerance.",
        "The cost is multiplications and additions of a token; the paper's also counts memory.",
        "Attention and feed-forward parts alone; the paper's parents have Mamba layers, too.",
    ],
    optimisers={"student": {"lr": 1e-4}},
    engine="knowledge",
)
def nemotron_elastic(
    student: nn.Module,
    teacher: nn.Module,
    cost_weight: float = 1.0,
    temperature: float = 1.0,
    rows: Rows = None,
    logits: AnyTap = LOGITS,
) -> Objective:
    """One network that is trained at several budgets towards its frozen parent.

    Before: ``network = forms.nested(parent, forms.activation_importance(parent, batches))``, then
    ``forms.Elastic(budgets, order=forms.layer_order(network, batches)).apply(network)``. The paper's two stages, short
    texts with equal budgets and long texts with more weight on the largest, are other batches and the form's
    ``weights``, which may be ramps.

    Args:
        student: The nested network with the elastic form.
        teacher: Its parent, a network of its own; it is frozen.
        cost_weight: w.
        temperature: Of both sides of the KL, which is multiplied by its square.
        rows: Which tokens count, ``Mask()`` for padding or ``Shifted()``; ``None`` for all.
        logits: Where the logits are, on both sides.

    Returns:
        The objective; its group is "student", the router's scores included.

    Raises:
        ArgumentError: A student without the form, a teacher that is the student, or a value that is not allowed.
    """
    check_instance("student", student, nn.Module, "a network after Elastic(...).apply(network)")
    router_of(student)
    if not callable(cost_weight):
        check_number("cost_weight", cost_weight, "a finite number")
    as_taps("logits", logits)
    parent = frozen(teacher)
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in parent.module.parameters()):
        raise argument_error("teacher", "a network that shares parameters with the student", "a copy of the parent")

    def excess(run: Run) -> Tensor:
        router = router_of(student)
        assert router.spent is not None
        assert router.asked is not None
        return router.spent - router.asked

    def nothing(run: Run) -> Tensor:
        return torch.zeros(1, 1, device=next(router_of(student).parameters()).device)

    soft = Term(
        logits,
        divergence=ops.ForwardKL(),
        rows=rows,
        temperature=temperature,
        temperature_rule="squared",
        name="distillation",
    )
    return Objective(student, parent, [soft, Term(excess, nothing, divergence=L1(), scale=cost_weight, name="cost")])

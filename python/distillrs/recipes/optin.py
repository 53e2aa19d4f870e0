"""One-shot structured pruning of transformers by what each part changes downstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from distillrs.checks import check_number, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge.forms import Importance, Masks, Pruned, Structure, masks_within, output_changes
from distillrs.knowledge.inputs import read_batch
from distillrs.registry import recipe


@dataclass(frozen=True, slots=True, eq=False)
class Pruning:
    """What :func:`optin` found.

    Attributes:
        network: The smaller network, plain.
        masks: What it has of the given one.
        form: The same as a form, to train the given network under the masks.
        importance: Of every part.
        macs: Multiplications of a token in the smaller network's layers.
        macs_before: In the given one's.
    """

    network: nn.Module
    masks: Masks
    form: Pruned
    importance: Importance
    macs: int
    macs_before: int

    @property
    def report(self) -> dict[str, Any]:
        """Shares and counts of what is kept, by layer, as plain numbers."""
        return {
            "share of multiplications": self.macs / self.macs_before,
            "heads": [int(mask.sum()) for mask in self.masks.heads],
            "neurons": [int(mask.sum()) for mask in self.masks.neurons],
        }


@recipe(
    id="optin",
    source="Khaki, Plataniotis: The Need for Speed: Pruning Transformers with One Recipe, ICLR 2024",
    equation="I(unit) = sum_later |M_l - M'_l|_F^2 + lambda T^2 KL(z || z'); kept: argmax sum I in the budget",
    deviations=[
        "The output of the unit's own layer counts among the later ones: it comes after the unit.",
        "lambda makes the KL's total a set share of the features' total, over heads and neurons together.",
        "Logits are divided by T, and every mask is restored after each unit; the public code does neither.",
        "Query heads that share keys and values are one unit, and every layer keeps its best units.",
        "Language models and encoders; patches of images are not left out.",
    ],
    engine="knowledge",
)
def optin(
    network: nn.Module,
    batch: Any,
    share: float = 0.5,
    length: int | None = None,
    tokens: int = 768,
    group: int = 1,
    temperature: float = 4.0,
    logit_share: float = 0.1,
    seed: int = 0,
) -> Pruning:
    """Leaves out heads and neurons that change features and logits least, until a share of the multiplications is left.

    Nothing is trained; one forward pass of the batch for each part.

    Args:
        network: The trained transformer, of a kind that :class:`~distillrs.knowledge.forms.Structure` knows; it is left
            as it is.
        batch: Some examples: a mapping as the network takes it, or a tensor.
        share: Of the multiplications in the layers that are left, above 0 and at most 1.
        length: Tokens of a text, for the cost; ``None`` takes the batch's.
        tokens: K, tokens whose features are compared.
        group: Neurons that are left out together.
        temperature: T.
        logit_share: The KL's total as a share of the features', at least 0.
        seed: Of the draw of tokens.

    Returns:
        The smaller network, masks and report.

    Raises:
        ArgumentError: A value that is not allowed, or a network of another kind.
    """
    check_number("logit_share", logit_share, "a number from 0", least=0)
    if length is not None:
        check_whole("length", length, "None or a positive number of tokens", least=1, most=2**31)
    structure = Structure.of(network)
    inputs = read_batch(batch, "labels", "ids", ())
    if length is None:
        ids: Any = inputs.kwargs.get("input_ids", inputs.args[0] if inputs.args else None)
        if not isinstance(ids, Tensor) or ids.ndim < 2:
            raise argument_error("length", length, "a number of tokens, for a batch without [batch, tokens] inputs")
        length = int(ids.shape[1])
    features, logits = output_changes(
        network, inputs, structure, tokens=tokens, group=group, temperature=temperature, seed=seed
    )
    scale = logit_share * features.total() / max(logits.total(), 1e-300)
    importance = features.add(logits, scale)
    masks = masks_within(structure, importance, share, length)
    small = structure.slice(network, masks)
    macs, before = structure.macs(length, masks), structure.macs(length)
    return Pruning(small, masks, Pruned(structure, masks), importance, macs, before)

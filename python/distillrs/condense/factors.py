"""Synthetic examples that are computed from fewer stored numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillrs.checks import check_floating, check_whole
from distillrs.errors import argument_error, unknown_name_error


class Factors(nn.Module):
    """A differentiable map from the stored images to the examples that a network sees.

    A subclass sets :attr:`kind`, writes ``forward(images [N, ...]) -> examples [M, ...]``, and describes itself so that
    a file can hold it: ``type(self).restore(self.describe(), self.tensors())`` must give an equal map. Its parameters
    are trained with the images.
    """

    kind: ClassVar[str]

    def forward(self, images: Tensor) -> Tensor:
        """Examples [M, ...] from the stored images [N, ...]."""
        raise TypeError(f"{type(self).__name__} does not say how examples are made: it has no forward()")

    def describe(self) -> dict[str, Any]:
        """Plain settings, as JSON holds them."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file must hold, by name: all parameters."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Factors:
        """The map that :meth:`describe` and :meth:`tensors` gave. Both may come from a stranger's file.

        Raises:
            ArgumentError: They do not describe one.
        """
        raise argument_error("factors", cls.__name__, "a kind that has restore()")


class Enlarged(Factors):
    """Images are stored at a smaller size and enlarged bilinearly.

    So four times as many examples fit into the same bytes (the storage of Kim et al., "Dataset Condensation via
    Efficient Synthetic-Data Parameterization", ICML 2022, without its tiling).

    Args:
        size: (height, width) of the examples.
    """

    kind: ClassVar[str] = "enlarged"

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        allowed = "(height, width), whole numbers from 1 to 65536"
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise argument_error("size", size, allowed)
        for side in size:
            check_whole("size", side, allowed, least=1, most=65536)
        self.size = (size[0], size[1])

    def forward(self, images: Tensor) -> Tensor:
        """Examples [N, C, height, width] from images [N, C, h, w]."""
        if images.ndim != 4:
            raise argument_error("images", tuple(images.shape), "[N, channels, height, width]")
        return functional.interpolate(images, size=self.size, mode="bilinear", align_corners=False)

    def describe(self) -> dict[str, Any]:
        """``{"size": [height, width]}``."""
        return {"size": list(self.size)}

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Enlarged:
        """See :meth:`Factors.restore`."""
        size = description.get("size")
        if not isinstance(size, list) or len(size) != 2:
            raise argument_error("factors: size", size, "[height, width]")
        return cls((size[0], size[1]))


class Additive(Factors):
    """Every image is combined with every one of a few shared offsets: example i * K + j is ``image_i + offset_j``.

    Args:
        offsets: [K, ...] Start values of the offsets, shaped like the images; learned with them.
    """

    kind: ClassVar[str] = "additive"

    def __init__(self, offsets: Tensor) -> None:
        super().__init__()
        check_floating("offsets", offsets, "floating [K, ...], K >= 1", least_axes=2, rows=1)
        self.offsets = nn.Parameter(offsets.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Examples [N * K, ...] from images [N, ...]."""
        if images.shape[1:] != self.offsets.shape[1:]:
            raise argument_error("images", tuple(images.shape), f"examples of shape {tuple(self.offsets.shape[1:])}")
        return (images[:, None] + self.offsets[None]).flatten(0, 1)

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Additive:
        """See :meth:`Factors.restore`."""
        if set(tensors) != {"offsets"}:
            raise argument_error("factors: tensors", sorted(tensors), "'offsets' alone")
        return cls(tensors["offsets"])


class BlockAdditive(Factors):
    """Images in blocks, each of which has offsets of its own, shared by all images of the block.

    Of K blocks with c images and M offsets each, example ``(k c + i) M + j`` is ``image_{k, i} + offset_{k, j}``.

    Args:
        offsets: [K, M, ...] Start values of the offsets, shaped like the images; learned.
    """

    kind: ClassVar[str] = "block-additive"

    def __init__(self, offsets: Tensor) -> None:
        super().__init__()
        allowed = "floating [K, M, ...], K and M >= 1"
        check_floating("offsets", offsets, allowed, least_axes=3, rows=1)
        if not offsets.shape[1]:
            raise argument_error("offsets", tuple(offsets.shape), allowed)
        self.offsets = nn.Parameter(offsets.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Examples [N * M, ...] from images [N, ...], N a multiple of K, block after block."""
        blocks = len(self.offsets)
        if images.shape[1:] != self.offsets.shape[2:] or len(images) % blocks:
            allowed = f"a multiple of {blocks} examples of shape {tuple(self.offsets.shape[2:])}"
            raise argument_error("images", tuple(images.shape), allowed)
        apart = images.reshape(blocks, -1, 1, *images.shape[1:])
        return (apart + self.offsets[:, None]).flatten(0, 2)

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BlockAdditive:
        """See :meth:`Factors.restore`."""
        if set(tensors) != {"offsets"}:
            raise argument_error("factors: tensors", sorted(tensors), "'offsets' alone")
        return cls(tensors["offsets"])


KINDS: dict[str, type[Factors]] = {kind.kind: kind for kind in (Enlarged, Additive, BlockAdditive)}


def restore_factors(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], kinds: Mapping[str, type[Factors]] | None = None
) -> Factors:
    """The factors of a file.

    Args:
        description: ``{"kind": ..., **settings}``.
        tensors: By name.
        kinds: The caller's own kinds beside the built-in ones.

    Raises:
        UnknownNameError: A kind that is not known.
        ArgumentError: A description that does not fit it.
    """
    known: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Factors]]
    known = {name: kind.restore for name, kind in {**KINDS, **(kinds or {})}.items()}
    kind = description.get("kind")
    if not isinstance(kind, str) or kind not in known:
        raise unknown_name_error("factors", str(kind), list(known))
    if any(not bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise argument_error("factors: tensors", "a value that is not finite", "finite values")
    return known[kind](description, tensors)

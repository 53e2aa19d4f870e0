"""Pairs of two modalities: what they are, the network that brings them together, and a synthetic set of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from distillrs.checks import check_flag, check_floating, check_instance, check_number, check_whole, described, numbers
from distillrs.condense.initial import nearest_to_centres
from distillrs.errors import DataError, argument_error
from distillrs.frozen import Frozen

if TYPE_CHECKING:
    from distillrs.condense.pair_targets import PairTargets


class Pairs(NamedTuple):
    """Things that belong together row by row.

    Attributes:
        images: [n, ...] Of the first modality.
        texts: [n, ...] Of the second: embeddings of texts, or whatever else has a gradient.
    """

    images: Tensor
    texts: Tensor

    @property
    def rows(self) -> int:
        """Number of pairs, n."""
        return len(self.images)

    def at(self, rows: Tensor) -> Pairs:
        """Some of the pairs, by int64 row numbers [m].

        Raises:
            ArgumentError: For anything but rows that are there.
        """
        allowed = f"int64 [m] from 0 to {self.rows - 1}"
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.ndim != 1 or rows.is_meta:
            raise argument_error("rows", described(rows), allowed)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise argument_error("rows", f"{int(rows.min())} to {int(rows.max())}", allowed)
        return Pairs(self.images[rows.to(self.images.device)], self.texts[rows.to(self.texts.device)])

    def checked(self, name: str) -> Pairs:
        """The pairs themselves.

        Raises:
            ArgumentError: They are no pairs, or not floating; it names ``name``.
        """
        for each in self:
            if not isinstance(each, Tensor) or not each.is_floating_point() or each.ndim < 2:
                got = f"{each.dtype} {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
                raise argument_error(name, got, "two floating tensors [n, ...]")
        if not self.rows or len(self.texts) != self.rows:
            raise argument_error(name, f"{self.rows} images and {len(self.texts)} texts", "as many of each, at least 1")
        return self


def check_pairs(name: str, pairs: object) -> Pairs:
    """The pairs, if they are some.

    Args:
        name: The argument, as the caller wrote it.
        pairs: What was passed.

    Raises:
        ArgumentError: They are no :class:`Pairs`, or not floating.
    """
    if not isinstance(pairs, Pairs):
        raise argument_error(name, described(pairs), "Pairs")
    return pairs.checked(name)


class PairNetwork(nn.Module):
    """Two frozen encoders and a head for each, whose outputs are compared on the unit sphere.

    The heads' parameters are all its parameters, so that trajectories hold these alone.

    Args:
        image_head: From the image encoder's features [n, d_v] to [n, k].
        text_head: From the text encoder's features [n, d_t] to [n, k].
        image_encoder: From images [n, ...] to features; ``None`` takes images as they are. Frozen.
        text_encoder: From texts to features; ``None`` takes texts as they are, for these usually are embeddings.
    """

    def __init__(
        self,
        image_head: nn.Module,
        text_head: nn.Module,
        *,
        image_encoder: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for name, head in (("image_head", image_head), ("text_head", text_head)):
            check_instance(name, head, nn.Module, "a module from features [n, d] to [n, k]")
        for name, encoder in (("image_encoder", image_encoder), ("text_encoder", text_encoder)):
            if encoder is not None:
                check_instance(name, encoder, nn.Module, "None, or a module that gives features")
        self.image_head = image_head
        self.text_head = text_head
        self.image_encoder = None if image_encoder is None else Frozen(image_encoder)
        self.text_encoder = None if text_encoder is None else Frozen(text_encoder)

    def encode(self, pairs: Pairs) -> Pairs:
        """Features of both encoders, with their graph to the pairs."""
        pairs = check_pairs("pairs", pairs)
        images = pairs.images if self.image_encoder is None else self.image_encoder(pairs.images)
        texts = pairs.texts if self.text_encoder is None else self.text_encoder(pairs.texts)
        return Pairs(images.flatten(1), texts.flatten(1))

    def forward(self, features: Pairs) -> Pairs:
        """Unit vectors [n, k] of both modalities, from what :meth:`encode` gave."""
        return Pairs(
            nn.functional.normalize(self.image_head(features.images), dim=1),
            nn.functional.normalize(self.text_head(features.texts), dim=1),
        )


def contrastive_loss(embedded: Pairs, temperature: float = 0.07) -> Tensor:
    """Symmetric InfoNCE: each image should find its text among all of them, and each text its image.

    ``(CE(V T' / tau, i) + CE(T V' / tau, i)) / 2`` (Radford et al., "Learning Transferable Visual Models From Natural
    Language Supervision", ICML 2021).

    Args:
        embedded: Unit vectors [n, k] of both.
        temperature: tau, above 0.

    Returns:
        Scalar.

    Raises:
        ArgumentError: No pairs, or a temperature that is not allowed.
    """
    check_pairs("embedded", embedded)
    check_number("temperature", temperature, "a number above 0", above=0)
    logits = embedded.images @ embedded.texts.T / float(temperature)
    rows = torch.arange(len(logits), device=logits.device)
    return (nn.functional.cross_entropy(logits, rows) + nn.functional.cross_entropy(logits.T, rows)) / 2


class PairedSynthetic(nn.Module):
    """A small set of pairs, both sides of which are learned, with the rates that heads are to be trained with.

    Args:
        images: [N, ...] Start values, floating.
        texts: [N, ...] Start values, floating: embeddings, not words.
        rates: Learning rates of the image head and of the text head.
        learn_rates: Whether they are learned.
        rate_bounds: Smallest and largest value of a learned rate; both above 0.
        targets: Which image belongs to which text; ``None`` leaves each image with its own text.

    Raises:
        ArgumentError: Arguments that are not allowed or do not fit each other.
    """

    rates: Tensor

    def __init__(
        self,
        images: Tensor,
        texts: Tensor,
        *,
        rates: tuple[float, float] = (0.1, 0.1),
        learn_rates: bool = False,
        rate_bounds: tuple[float, float] = (1e-6, 1e3),
        targets: PairTargets | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("images", images), ("texts", texts)):
            check_floating(name, value, "a floating tensor [N, ...], N >= 1", least_axes=2, rows=1)
        check_flag("learn_rates", learn_rates)
        pairs = Pairs(images, texts).checked("pairs")
        if not all(bool(torch.isfinite(each).all()) for each in pairs):
            raise argument_error("pairs", "a value that is not finite", "finite values")
        begun = numbers("rates", rates)
        if len(begun) != 2 or not min(begun) > 0:
            raise argument_error("rates", rates, "two finite numbers above 0: of the image head and of the text head")
        self.images = nn.Parameter(images.detach().clone())
        self.texts = nn.Parameter(texts.detach().clone())
        bounds = numbers("rate_bounds", rate_bounds)
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise argument_error("rate_bounds", rate_bounds, "(low, high) with 0 < low <= high")
        if targets is not None and not isinstance(targets, nn.Module):
            raise argument_error("targets", described(targets), "None or PairTargets")
        if targets is not None and len(targets) != len(images):
            raise argument_error("targets", f"those of {len(targets)} pairs", f"as many as there are, {len(images)}")
        self.rate_bounds = (bounds[0], bounds[1])
        self.targets = None if targets is None else targets.to(images)
        values = torch.tensor(begun, dtype=images.dtype, device=images.device)
        if learn_rates:
            self.rates = nn.Parameter(values)
        else:
            self.register_buffer("rates", values)

    @classmethod
    def from_real(cls, pairs: Pairs, rows: Tensor, **options: Any) -> PairedSynthetic:
        """Starts from some real pairs.

        Args:
            pairs: The real ones.
            rows: int64 [N], which.
            options: Of :class:`PairedSynthetic`.
        """
        return cls(*check_pairs("pairs", pairs).at(rows), **options)

    def __len__(self) -> int:
        return len(self.images)

    def pairs(self) -> Pairs:
        """The pairs with their graph."""
        return Pairs(self.images, self.texts)

    def stored_bytes(self) -> int:
        """Bytes of both sides, of the targets' parameters and of the two rates."""
        tensors: list[Tensor] = [self.images, self.texts, *(() if self.targets is None else self.targets.parameters())]
        return 16 + sum(each.numel() * each.element_size() for each in tensors)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by what they are: "images", "texts", "similarities" and "rates", the last two if learned."""
        groups = {"images": [self.images], "texts": [self.texts]}
        if self.targets is not None:
            groups["similarities"] = list(self.targets.parameters())
        if isinstance(self.rates, nn.Parameter):
            groups["rates"] = [self.rates]
        return groups

    @torch.no_grad()
    def project(self) -> None:
        """Brings the rates back into their bounds."""
        # Through .data, so that a graph of an earlier call is not told that its leaves changed when they did not.
        self.rates.data.clamp_(*self.rate_bounds)


@torch.no_grad()
def spread_pairs(network: PairNetwork, pairs: Pairs, count: int, *, seed: int = 0, batch: int = 1024) -> Tensor:
    """Rows of the real pairs nearest to the centres of k-means, all different.

    Points are both encoders' features, each of unit length, side by side, so that distances are those of the cosine.

    Args:
        network: Whose encoders are asked.
        pairs: The real pairs.
        count: Centres, and so pairs.
        seed: Of the centres' start.
        batch: Pairs in one pass through the encoders.

    Returns:
        int64 [count].

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: There are fewer than ``count`` pairs.
    """
    check_instance("network", network, PairNetwork, "a PairNetwork")
    for name, value in (("count", count), ("batch", batch)):
        check_whole(name, value, "a positive integer", least=1, most=2**63 - 1)
    if count > check_pairs("pairs", pairs).rows:
        raise DataError(f"count: got {count}, but there are {pairs.rows} pairs; allowed is at most as many")
    pieces = torch.split(torch.arange(pairs.rows), batch)
    encoded = [network.encode(pairs.at(rows)) for rows in pieces]
    points = torch.cat([torch.cat([nn.functional.normalize(side, dim=1) for side in each], 1) for each in encoded])
    return nearest_to_centres(points, torch.zeros(pairs.rows, dtype=torch.int64), count, seed=seed)

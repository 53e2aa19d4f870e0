"""The objective: a synthetic set of pairs should lie on the sphere as the real pairs do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distillrs import ops, random
from distillrs.checks import (
    check_floating,
    check_instance,
    check_number,
    check_text,
    check_turn,
    check_whole,
    described,
)
from distillrs.condense.functional import FunctionalNetwork, require_layout
from distillrs.condense.matching import TURN
from distillrs.condense.merging import merge_about
from distillrs.condense.pairs import PairedSynthetic, PairNetwork, Pairs, check_pairs, contrastive_loss
from distillrs.condense.signals import wide
from distillrs.condense.windows import TrajectoryStore, check_store
from distillrs.errors import argument_error
from distillrs.step import Loss, Step

# The square root has no slope at 0; a gap of two sets below its square is none.
_LEAST = 1e-8


def sphere_energy(x: Tensor, y: Tensor, kernel: ops.PairKernel) -> Tensor:
    """Maximum mean discrepancy of two sets of directions, ``sqrt(E k(x, x') + E k(y, y') - 2 E k(x, y))``.

    Within a set the means leave out a point with itself, without which a small set would seem to be spread less than it
    is (the unbiased estimate of Gretton et al., JMLR 2012). What then falls below 0 counts as 0 and has no gradient.

    Args:
        x: [n, d], n >= 2; scaled to unit length here.
        y: [m, d], m >= 2; scaled to unit length here.
        kernel: Of unit vectors, 1 where they are the same: :class:`~distillrs.ops.Geodesic`.

    Returns:
        Scalar, in 32 bits at least.

    Raises:
        ArgumentError: Fewer than two points.
    """
    for name, points in (("x", x), ("y", y)):
        check_instance(name, points, Tensor, "a tensor [n, d]")
        if points.ndim != 2 or len(points) < 2:
            raise argument_error(name, tuple(points.shape), "[n, d], n >= 2")
    # The smallest gap that has a slope is no number of 16 bits.
    x, y = nn.functional.normalize(wide(x), dim=1), nn.functional.normalize(wide(y), dim=1)
    return (_within(x, kernel) + _within(y, kernel) - 2 * _between(x, y, kernel)).clamp_min(_LEAST).sqrt()


def _between(x: Tensor, y: Tensor, kernel: ops.PairKernel) -> Tensor:
    a, b = x.new_full((len(x),), 1 / len(x)), y.new_full((len(y),), 1 / len(y))
    mean: Tensor = ops.energy(x, y, kernel, x_weights=a, y_weights=b)
    return mean


def _within(x: Tensor, kernel: ops.PairKernel) -> Tensor:
    # A point's kernel with itself is 1, and its slope is along the point, which scaling to unit length takes away.
    return (len(x) * _between(x, x, kernel) - 1) / (len(x) - 1)


class PairDistributionMatching(nn.Module):
    """Directions of sums and of differences of the two modalities, real against synthetic, under merged experts.

    At each step two snapshots of the experts' heads are drawn and merged about their common start
    (:func:`~distillrs.condense.merging.merge_about`). With z the unit vectors that these heads give::

        u = (z_v + z_t) / |z_v + z_t|,   g = (z_v - z_t) / |z_v - z_t|
        L = InfoNCE(synthetic) + common D(u_real, u_synthetic) + gap D(g_real, g_synthetic)

    where D is :func:`sphere_energy`: u says what the two have in common, g where they differ. No training is unrolled.
    Everything that is drawn is a pure function of the step.

    Args:
        store: Trajectories of the heads.
        network: Gives encoders and the heads' architecture; copied, and never trained.
        real: The real pairs.
        synthetic: What is trained.
        kernel: k.
        common: Weight of the sums' gap.
        gap: Weight of the differences' gap.
        temperature: Of InfoNCE.
        amount: How far the merged heads go from the start, from 0 to 1.
        batch: Synthetic pairs at a step, drawn at random; ``None`` takes all.
        real_batch: Real pairs at a step, drawn at random.
        records: Of the experts, which may be drawn; ``None`` for all but the start.
        anchor: [P] Heads from which experts set out; ``None`` takes the first record, which all must have in common.
        clip: Largest length of the gradient of images and texts together, as it comes out of this loss; ``None`` for
            any. A factor that stands before the loss does not count.
        column: Of the store.
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: Arguments that are not allowed or do not fit each other.
        SchemaMismatch: The store's trajectories belong to other heads.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        network: PairNetwork,
        real: Pairs,
        synthetic: PairedSynthetic,
        *,
        kernel: ops.PairKernel | None = None,
        common: float = 0.8,
        gap: float = 0.8,
        temperature: float = 0.07,
        amount: float = 0.5,
        batch: int | None = 64,
        real_batch: int = 512,
        records: range | None = None,
        anchor: Tensor | None = None,
        clip: float | None = 1.0,
        column: str = "theta",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.real = check_pairs("real", real)
        check_instance("synthetic", synthetic, PairedSynthetic, "a PairedSynthetic")
        check_instance("network", network, PairNetwork, "a PairNetwork")
        check_store(store)
        check_text("column", column)
        for name, one, other in zip(("images", "texts"), real, synthetic.pairs(), strict=True):
            if one.shape[1:] != other.shape[1:]:
                got = f"{name} of shape {tuple(other.shape[1:])}"
                raise argument_error("synthetic", got, f"those of the real pairs, {tuple(one.shape[1:])}")
        if len(synthetic) < 2 or real.rows < 2:
            raise argument_error("synthetic", f"{len(synthetic)} pairs beside {real.rows}", "at least 2 of each")
        for name, value in (("common", common), ("gap", gap)):
            check_number(name, value, "a number from 0", least=0)
        for name, value in (("temperature", temperature), ("clip", 1.0 if clip is None else clip)):
            check_number(name, value, "a number above 0", above=0)
        check_number("amount", amount, "a number from 0 to 1", least=0, most=1)
        for name, size in (("batch", 2 if batch is None else batch), ("real_batch", real_batch)):
            check_whole(name, size, "a whole number from 2", least=2)
        self.network = FunctionalNetwork(network)
        require_layout(store.metadata.get("layout"), self.network.layout)
        self._keys = sorted(store.lengths())
        if not self._keys:
            raise argument_error("store", "no complete trajectory", "at least one")
        longest = min(store.lengths().values())
        if records is not None and not isinstance(records, range):
            raise argument_error("records", described(records), "None or a range")
        self.records = range(1, longest) if records is None else records
        if not len(self.records) or min(self.records) < 0 or max(self.records) >= longest:
            allowed = f"None, or records from 0 to {longest - 1}, which every trajectory has"
            raise argument_error("records", records, allowed)
        self.store = store
        self.synthetic = synthetic
        self.kernel = ops.Geodesic(0.5) if kernel is None else kernel
        self.common, self.gap, self.temperature, self.amount = map(float, (common, gap, temperature, amount))
        self.batch, self.real_batch, self.clip = batch, real_batch, clip
        self.column = column
        self.seed = Step(0, seed=seed).seed
        if anchor is not None:
            check_floating("anchor", anchor, f"None or floating [{self.network.size}]", axes=1)
        self._anchor = self._common_start() if anchor is None else anchor.detach()
        if self._anchor.shape != (self.network.size,):
            raise argument_error("anchor", tuple(self._anchor.shape), f"({self.network.size},)")

    def forward(self, batch: Any = None, step: Step | int = 0, *, turn: str | None = None) -> Loss:
        """The loss at a step.

        Args:
            batch: ``None`` draws real pairs; or :class:`Pairs`, the real ones of this step.
            step: Step of the run; a plain number takes the objective's ``seed``.
            turn: ``None`` or "synthetic".

        Returns:
            ``total`` is the loss divided by ``step.items`` if that is given; ``terms`` are "matching" (all of it),
            "contrastive", "common" and "gap" (both before their weights).

        Raises:
            ArgumentError: A ``turn`` or a ``batch`` that is not allowed.
        """
        check_turn(turn, TURN)
        step = Step.of(step, self.seed)
        images, texts = self.synthetic.images, self.synthetic.texts
        if self.clip is not None:
            images, texts = _Clipped.apply(images, texts, self.clip)
        synthetic = Pairs(images, texts)
        if self.batch is not None and self.batch < synthetic.rows:
            synthetic = synthetic.at(random.choice(synthetic.rows, self.batch, step=step, name="synthetic pairs"))
        heads = self.teacher(step)
        with torch.no_grad():
            found = self._embedded(heads, self._drawn(step) if batch is None else self._given(batch))
        made = self._embedded(heads, synthetic)
        contrastive = contrastive_loss(made, self.temperature)
        common = sphere_energy(found.images + found.texts, made.images + made.texts, self.kernel)
        gap = sphere_energy(found.images - found.texts, made.images - made.texts, self.kernel)
        total = contrastive + self.common * common + self.gap * gap
        terms = {"matching": total, "contrastive": contrastive, "common": common, "gap": gap}
        return Loss(total / (step.items or 1), {name: value.detach() for name, value in terms.items()})

    def teacher(self, step: Step | int) -> Tensor:
        """The merged heads of a step, [P]."""
        step = Step.of(step, self.seed)
        count = len(self._keys)
        # Two different experts, where there are two.
        which = random.choice(count, min(2, count), step=step, name="merged experts").tolist()
        places = random.integers(range(2), len(self.records), step=step, name="merged records").tolist()
        one, two = (self._read(self._keys[which[side % len(which)]], self.records[places[side]]) for side in (0, 1))
        return merge_about(one, two, self._anchor.to(one), self.network.layout, amount=self.amount)

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "synthetic", steps both groups."""
        return (TURN,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Images and texts."""
        return self.synthetic.parameter_groups()

    def _read(self, key: str, record: int) -> Tensor:
        return self.store.read(key, record, column=self.column).to(self.synthetic.images)

    def _drawn(self, step: Step) -> Pairs:
        count = min(self.real_batch, self.real.rows)
        chosen = self.real.at(random.choice(self.real.rows, count, step=step, name="real pairs"))
        return Pairs(chosen.images.to(self.synthetic.images), chosen.texts.to(self.synthetic.texts))

    def _given(self, batch: Any) -> Pairs:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise argument_error("batch", type(batch).__name__, "None or Pairs")
        pairs = Pairs(*batch).checked("batch")
        for name, one, other in zip(Pairs._fields, pairs, self.synthetic.pairs(), strict=True):
            if one.shape[1:] != other.shape[1:]:
                allowed = f"those of the synthetic pairs, {tuple(other.shape[1:])}"
                raise argument_error("batch", f"{name} of shape {tuple(one.shape[1:])}", allowed)
        if pairs.rows < 2:
            raise argument_error("batch", f"{pairs.rows} pairs", "at least 2")
        return Pairs(pairs.images.to(self.synthetic.images), pairs.texts.to(self.synthetic.texts))

    def _embedded(self, heads: Tensor, pairs: Pairs) -> Pairs:
        network = self.network.skeleton.module
        assert isinstance(network, PairNetwork)
        embedded = self.network(heads, network.encode(pairs))
        assert isinstance(embedded, Pairs)
        return embedded

    def _common_start(self) -> Tensor:
        first = self._read(self._keys[0], 0)
        for key in self._keys[1:]:
            if not torch.equal(self._read(key, 0), first):
                raise argument_error("anchor", f"None, and {key!r} begins elsewhere", "the heads to merge about")
        return first


class _Clipped(torch.autograd.Function):
    """Two tensors whose gradient is shortened to a largest length of both together."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, most: float) -> tuple[Tensor, Tensor]:
        ctx.most = most
        return images.clone(), texts.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        images, texts = upstream
        length = (images.square().sum() + texts.square().sum()).sqrt()
        factor = (ctx.most / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1.0)
        return images * factor, texts * factor.to(texts), None

"""The objective of distribution matching: a rollout, gaps between two scores, a critic, and what stands beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.diffusion.checks import check_shape
from distillrs.diffusion.matching.adversary import Adversary, part_of
from distillrs.diffusion.matching.auxiliaries import Auxiliary
from distillrs.diffusion.matching.critics import Critic, pull_towards
from distillrs.diffusion.matching.gaps import check_gap
from distillrs.diffusion.matching.ratios import LogRatio
from distillrs.diffusion.matching.reals import Checkpoints, Real, check_real, modules_of
from distillrs.diffusion.matching.rollouts import Rolled, Rollout, one_step
from distillrs.diffusion.matching.scene import RESERVED, Scene, mean_of, scale_at
from distillrs.diffusion.matching.tally import CountedNetwork, Evaluations, Tally, counted
from distillrs.diffusion.matching.terms import Match
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.diffusion.scores import Score
from distillrs.diffusion.shared_base import check_ranks
from distillrs.diffusion.sources import Guided
from distillrs.diffusion.state_map import StateMap
from distillrs.diffusion.states import Batch
from distillrs.errors import argument_error, unknown_name_error
from distillrs.frozen import Frozen, evaluating
from distillrs.step import Loss, Step

GENERATOR, CRITIC = "generator", "critic"


class Matcher(nn.Module):
    """Draws a generator's distribution to that of a real score.

    A rollout makes samples ``x``; every term moves them by the gap between what the real score and a critic say of them
    under noise, ``0.5 |x - sg(x - W g)|^2``; the critic is fitted on ``sg(x)`` in a turn of its own::

        matcher = Matcher(
            StateMap(Network(student, times="t"), path, Jump("velocity")),
            real=Guided(Teacher(Network(Frozen(teacher), times="t"), "velocity"), 3.0),
            critic=Critic(Network(fake, times="t"), "velocity"),
            rollout=simulated((1.0, 0.75, 0.5, 0.25)), terms=[Match(DistributionGap(), MeanAbsolute())], ratio=5,
        )
        for turn in matcher.turns(step):
            loss = matcher(batch, step, turn=turn)
            optimisers[turn].zero_grad()
            loss.total.backward()
            optimisers[turn].step()

    The generator's turn comes once in ``ratio`` steps and the critic's at every step, so that between two updates of
    the generator there are exactly ``ratio`` of the critic; steps without the generator's turn build no graph of it. In
    the order of publication the generator goes first and the critic is fitted on the sample that it was just moved by;
    that sample is kept between the two calls if they are given the same batch.

    In the generator's turn gradients of the terms are taken with respect to the samples alone, inside the call: critic,
    adversary and real score never receive any, whatever their parameters say, and their graphs are gone before the
    generator's is walked. Scores are in evaluation mode there.

    ``terms`` of the loss: one for each term and auxiliary by name, ``loss``, and the network passes of one example,
    ``evaluations`` forward and ``backwards`` of them differentiated. Everything drawn is a pure function of the step
    and of a row's global id.

    Args:
        generator: The student as a map; ``Jump(kind)`` is the head of a network that predicts that kind.
        real: The real score. Give it frozen networks.
        critic: The fake score, or several by name; ``None`` where no term needs one.
        rollout: How samples are made; one call at time 1 by default.
        terms: The gaps.
        auxiliaries: Adversary, moments, consistency.
        ratio: Updates of the critic for each of the generator.
        first: Whose turn is first in a step that has both.
        shape: Of an example, where batches bring neither examples nor noise.
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: Parts that make no sense together, with the reason.
    """

    def __init__(
        self,
        generator: StateMap,
        *,
        real: Real | None = None,
        critic: Critic | Mapping[str, Critic] | None = None,
        rollout: Rollout | None = None,
        terms: Sequence[Match] = (),
        auxiliaries: Sequence[Auxiliary] = (),
        ratio: int = 1,
        first: Literal["generator", "critic"] = "generator",
        shape: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # In tuples: a module that is an attribute would become part of this one's state.
        self._generator = (generator,)
        self._real = (real,)
        critics = {} if critic is None else {CRITIC: critic} if isinstance(critic, Critic) else critic
        if not isinstance(critics, Mapping):
            raise argument_error("critic", type(critic).__name__, "a Critic, or several by name")
        self._critics = (critics,)
        self.rollout = one_step() if rollout is None else rollout
        for name, parts in (("terms", terms), ("auxiliaries", auxiliaries)):
            if not isinstance(parts, Iterable):
                raise argument_error(name, type(parts).__name__, "a list of them")
        self.terms = tuple(terms)
        self._auxiliaries = (tuple(auxiliaries),)
        for part in self.auxiliaries:
            if not isinstance(part, Auxiliary):
                raise argument_error("auxiliaries", type(part).__name__, "auxiliaries")
        self.owned = nn.ModuleList([part.owned for part in self.auxiliaries if part.owned is not None])
        self.ratio, self.first, self.seed = ratio, first, seed
        if shape is not None:
            check_shape("shape", shape, "the shape of an example")
        self.shape = None if shape is None else tuple(shape)
        self._tally = Tally()
        self._updates = {GENERATOR: 0, CRITIC: 0}
        self._counted_last: dict[str, int] = {}
        self._samples: dict[tuple[int, int, int], tuple[Batch, Rolled]] = {}
        self._check()

    @property
    def map(self) -> StateMap:
        """The generator's map, for samplers."""
        return self._generator[0]

    @property
    def critics(self) -> dict[str, Critic]:
        """The critics by name."""
        return dict(self._critics[0])

    @property
    def auxiliaries(self) -> tuple[Auxiliary, ...]:
        """The auxiliaries."""
        return self._auxiliaries[0]

    @property
    def evaluations(self) -> dict[str, Evaluations]:
        """Rows through each network since the run began, by its role: "generator", "real", each critic's name."""
        return dict(self._tally.counts)

    @property
    def updates(self) -> dict[str, int]:
        """Steps at which each turn was called since the run began."""
        return dict(self._updates)

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """The turns of a step: the critic's, where there is anything to fit, and once in ``ratio`` the generator's."""
        index = Step.of(step).index
        if not self._fits:
            return (GENERATOR,)
        if self.first == GENERATOR:
            return (GENERATOR, CRITIC) if index % self.ratio == 0 else (CRITIC,)
        return (CRITIC, GENERATOR) if index % self.ratio == self.ratio - 1 else (CRITIC,)

    def forward(
        self,
        batch: Batch,
        step: Step | int,
        *,
        turn: str | None = None,
        student: nn.Module | None = None,
        critic: nn.Module | Mapping[str, nn.Module] | None = None,
    ) -> Loss:
        """The loss of a turn.

        Args:
            batch: The rows.
            step: Step of the run; a plain number takes the objective's ``seed``.
            turn: One of :meth:`turns`; may be left out where there is only one.
            student: A wrapped generator (data parallel, compiled) in place of the network from construction.
            critic: A wrapped critic, or several by name, likewise. Wrappers that wait for gradients belong to the turn
                that makes them: in the generator's turn give the critic as it is, and the other way round.

        Returns:
            ``total`` is the sum of the rows' losses over ``step.items``, or over the rows.

        Raises:
            ArgumentError: A batch that lacks what the parts need, or an unknown turn.
        """
        if not isinstance(batch, Batch):
            raise argument_error("batch", type(batch).__name__, "a diffusion.Batch")
        step = Step.of(step, self.seed)
        known = [GENERATOR, CRITIC] if self._fits else [GENERATOR]
        if turn is None and len(known) == 1:
            turn = GENERATOR
        if turn not in known:
            raise argument_error("turn", turn, f"one of {', '.join(map(repr, known))}")
        tally = Tally()
        generator = self.map.replaced(student)
        generator = replace(generator, network=CountedNetwork(generator.network, tally, GENERATOR))
        critics = self._wrapped(critic, tally)
        if turn == GENERATOR:
            total, terms = self._generator_turn(batch, step, generator, critics, tally)
        else:
            total, terms = self._critic_turn(batch, step, generator, critics, tally)
        terms |= {"loss": total.detach() * (step.items or max(batch.rows, 1)) / max(batch.rows, 1)}
        terms |= tally.terms(batch.rows, total.device)
        self._tally.merge(tally)
        # Micro-batches of one step are one update.
        if self._counted_last.get(turn) != step.index:
            self._updates[turn] += 1
            self._counted_last[turn] = step.index
        return Loss(total, terms)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """By turn: the generator's and learned weights under "generator", critics' and heads' under "critic"."""
        parts = {GENERATOR: [self.map.network.module]}
        if self._fits:
            parts[CRITIC] = [critic.network.module for critic in self.critics.values()]
        for part in self.auxiliaries:
            if part.owned is not None and part.trained_by in parts:
                parts[part.trained_by].append(part.owned)
        return {
            turn: list(dict.fromkeys(value for module in modules for value in _trainable(module)))
            for turn, modules in parts.items()
        }

    def after_step(self) -> None:
        """Pulls critics towards the generator, where they say so; to be called after the optimisers' steps."""
        for critic in self.critics.values():
            if critic.pull:
                pull_towards(critic.network.module, self.map.network.module, critic.pull)

    def get_extra_state(self) -> dict[str, Any]:
        """The counts."""
        counts = {role: list(pair) for role, pair in self._tally.counts.items()}
        return {"updates": dict(self._updates), "evaluations": counts, "last": dict(self._counted_last)}

    def set_extra_state(self, state: Any) -> None:
        """Restores the counts.

        Raises:
            ArgumentError: A state that is not a matcher's; nothing is changed then.
        """
        try:
            updates = {turn: int(state["updates"][turn]) for turn in (GENERATOR, CRITIC)}
            last = {str(turn): int(index) for turn, index in state["last"].items()}
            counts = {str(role): (int(pair[0]), int(pair[1])) for role, pair in state["evaluations"].items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as failure:
            got = f"a mapping of {sorted(map(str, state))}" if isinstance(state, Mapping) else type(state).__name__
            allowed = "what get_extra_state of a Matcher gave: updates, last and evaluations"
            raise argument_error("state", got, allowed) from failure
        self._updates, self._counted_last, self._tally = updates, last, Tally(counts)

    @property
    def _fits(self) -> bool:
        return bool(self.critics) or any(isinstance(part, Adversary) for part in self.auxiliaries)

    def _generator_turn(
        self, batch: Batch, step: Step, generator: StateMap, critics: Mapping[str, Critic], tally: Tally
    ) -> tuple[Tensor, dict[str, Tensor]]:
        made = self.rollout.run(generator, self._noise(batch, step), batch, step)
        self._keep(batch, step, made)
        leaves = [part.detach().requires_grad_() for part in (made.x, made.state) if part is not None]
        rolled = Rolled(leaves[0], made.level, leaves[1] if len(leaves) > 1 else None, made.end)
        real = self._real_at(step, tally)
        networks = self._networks(critics, tally)
        scene = Scene(generator.path, rolled, batch, step, real, critics, networks, self._ratio(networks))
        scored = [*modules_of(self._real[0]), *(critic.network.module for critic in self.critics.values()), self.owned]
        with torch.enable_grad(), evaluating(*scored):
            value, terms = self._on_sample(scene, leaves[0])
            fields = (
                torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else [None] * len(leaves)
            )
        total: Tensor = _Attached.apply(value.detach(), made.x, fields[0], made.state, *fields[1:])
        for part in self.auxiliaries:
            if not scale_at(getattr(part, "scale", 1.0), step):
                continue
            found = part.on_generator(self.map.replaced(generator.network.module), batch, step, tally)
            if found is not None:
                total = total + found[1] * found[0]
                terms |= self._numbered(part, {type(part).__name__.lower(): found[0].detach()})
        return total, terms

    def _on_sample(self, scene: Scene, like: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        wide = torch.promote_types(like.dtype, torch.float32)
        value, terms = torch.zeros((), dtype=wide, device=like.device), dict[str, Tensor]()
        items = scene.step.items or max(scene.batch.rows, 1)
        for term in self.terms:
            factor = scale_at(term.scale, scene.step)
            if not factor:
                continue
            rows, reported = term.on_sample(scene)
            value, terms = value + factor * rows.sum() / items, terms | reported
        for part in self.auxiliaries:
            # What counts nothing at this step is not computed.
            if not scale_at(getattr(part, "scale", 1.0), scene.step):
                continue
            found = part.on_sample(scene)
            if found is not None:
                terms |= self._numbered(part, found.terms)
                value = value + found.scale * found.rows.sum() / items
        return value, terms

    def _numbered(self, part: Auxiliary, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a part reports; the second of a class as ``adversary_2``."""
        place = [other for other in self.auxiliaries if type(other) is type(part)].index(part) + 1
        if place == 1:
            return terms
        split = {key: key.partition("/") for key in terms}
        return {f"{first}_{place}{mark}{rest}": terms[key] for key, (first, mark, rest) in split.items()}

    def _critic_turn(
        self, batch: Batch, step: Step, generator: StateMap, critics: Mapping[str, Critic], tally: Tally
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rolled = self._kept(batch, step)
        if rolled is None:
            with torch.no_grad():
                rolled = self.rollout.run(generator, self._noise(batch, step), batch, step)
        items = step.items or max(batch.rows, 1)
        total = torch.zeros((), dtype=torch.promote_types(rolled.x.dtype, torch.float32), device=rolled.x.device)
        terms: dict[str, Tensor] = {}
        for name, critic in critics.items():
            rows = critic.fit(generator.path, rolled, batch.condition, step, f"critic/{name}")
            total = total + critic.scale * rows.sum() / items
            terms[name] = mean_of(rows)
        scene = Scene(generator.path, rolled, batch, step, None, critics, self._networks(critics, tally))
        for part in self.auxiliaries:
            found = part.on_critic(scene)
            if found is not None:
                terms |= self._numbered(part, found.terms)
                total = total + found.scale * found.rows.sum() / items
        return total, terms

    def _noise(self, batch: Batch, step: Step) -> Tensor:
        if batch.noise is not None:
            return batch.noise
        shape = batch.x0.shape[1:] if batch.x0 is not None else self.shape
        if shape is None:
            raise argument_error("shape", None, "the shape of an example: the batch brings neither x0 nor noise")
        like = batch.x0
        if like is None:
            like = next((value for value in self.map.network.module.parameters() if value.is_floating_point()), None)
        dtype, device = (torch.float32, None) if like is None else (like.dtype, like.device)
        return random.normal(batch.rows, *shape, step=step, name="noise", dtype=dtype, device=device)

    def _keep(self, batch: Batch, step: Step, made: Rolled) -> None:
        if self.first != GENERATOR or not self._fits:
            return
        if any(index != step.index for index, _, _ in self._samples):
            self._samples.clear()
        self._samples[step.index, step.seed, step.first_unit] = (batch, made.detached())

    def _kept(self, batch: Batch, step: Step) -> Rolled | None:
        of, rolled = self._samples.pop((step.index, step.seed, step.first_unit), (None, None))
        return rolled if of is batch else None

    def _real_at(self, step: Step, tally: Tally) -> Score | None:
        real = self._real[0]
        if real is None:
            return None
        return counted(real.at(step) if isinstance(real, Checkpoints) else real, tally, "real")

    def _wrapped(self, wrapped: nn.Module | Mapping[str, nn.Module] | None, tally: Tally) -> dict[str, Critic]:
        critics = self.critics
        if isinstance(wrapped, nn.Module):
            if len(critics) != 1:
                raise argument_error("critic", "one module", f"modules by name: {', '.join(sorted(critics))}")
            wrapped = dict.fromkeys(critics, wrapped)
        if wrapped is not None and not isinstance(wrapped, Mapping):
            raise argument_error("critic", type(wrapped).__name__, "a module, or several by name")
        for name, module in (wrapped or {}).items():
            if name not in critics:
                raise unknown_name_error("critic", name, sorted(critics))
            critics[name] = replace(critics[name], network=critics[name].network.replaced(module))
        return {
            name: replace(critic, network=CountedNetwork(critic.network, tally, name))
            for name, critic in critics.items()
        }

    def _networks(self, critics: Mapping[str, Critic], tally: Tally) -> dict[str, NetworkAdapter]:
        networks: dict[str, NetworkAdapter] = {name: critic.network for name, critic in critics.items()}
        real = self._real[0]
        inner = real.score if isinstance(real, Guided) else real
        adapter = getattr(inner, "network", None)
        if adapter is not None:
            networks["real"] = CountedNetwork(adapter, tally, "real")
        return networks

    def _ratio(self, networks: Mapping[str, NetworkAdapter]) -> LogRatio | None:
        for part in self.auxiliaries:
            if isinstance(part, Adversary) and part.loss == "logistic":
                return part.ratio(networks)
        return None

    def _check(self) -> None:
        if not isinstance(self.map, StateMap):
            raise argument_error("generator", type(self.map).__name__, "a StateMap: StateMap(network, path, head)")
        if not isinstance(self.rollout, Rollout):
            raise argument_error("rollout", self.rollout, "a Rollout")
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int) or self.ratio < 1:
            raise argument_error("ratio", self.ratio, "a positive number of the critic's updates for each generator's")
        if self.first not in (GENERATOR, CRITIC):
            raise unknown_name_error("first", self.first, [GENERATOR, CRITIC])
        for name, critic in self.critics.items():
            if not isinstance(critic, Critic):
                raise argument_error("critic", f"{name}: {type(critic).__name__}", "a Critic, or several by name")
            if name in (GENERATOR, "real", *RESERVED):
                taken = ", ".join(map(repr, (GENERATOR, "real", *RESERVED)))
                raise argument_error("critic", name, f"a name other than {taken}")
        for part in self.auxiliaries:
            part.check(self.map)
        if not self.terms and not self.auxiliaries:
            raise argument_error("terms", (), "a term or an auxiliary, at least one")
        self.rollout.check(self.map)
        self._check_terms()
        self._check_adversaries()
        self._check_networks()

    def _check_terms(self) -> None:
        names = []
        for term in self.terms:
            if not isinstance(term, Match):
                raise argument_error("terms", type(term).__name__, "terms: Match(...)")
            if term.name in names:
                raise argument_error("name", term.name, "a name of its own for each term")
            names.append(term.name)
            if self._real[0] is None:
                raise argument_error("real", None, "the real score that the terms compare with")
            check_real(self._real[0])
            check_gap(term.gap, self._real[0], bool(self.critics))
            if term.gap.needs_critic and term.critic not in self.critics:
                raise unknown_name_error("critic", term.critic, sorted(self.critics))
            if term.gap.needs_ratio and term.ratio is None and not self._knows_ratio:
                allowed = "a LogRatio, or None beside an Adversary with the logistic loss"
                raise argument_error("ratio", None, f"{allowed}: {type(term.gap).__name__} needs a ratio of densities")
            if term.gap.second_order and not self.rollout.ends_in_data:
                allowed = "a rollout that ends in the data: a second-order gap knows no state above it"
                raise argument_error("rollout", self.rollout, allowed)

    @property
    def _knows_ratio(self) -> bool:
        return any(isinstance(part, Adversary) and part.loss == "logistic" for part in self.auxiliaries)

    def _check_adversaries(self) -> None:
        networks = self._networks(self.critics, Tally())
        for part in self.auxiliaries:
            if isinstance(part, Adversary):
                network = part.network(networks)
                if part.features is not None:
                    part_of(network.module, part.features)

    def _check_networks(self) -> None:
        teachers = {
            id(value)
            for module in modules_of(self._real[0])
            for value in (module.module if isinstance(module, Frozen) else module).parameters()
        }
        for name, module in (
            ("generator", self.map.network.module),
            *(("critic", critic.network.module) for critic in self.critics.values()),
        ):
            inner = module.module if isinstance(module, Frozen) else module
            values = list(inner.parameters())
            # A critic that is known already need not be fitted; a teacher in its place is a mistake.
            mistaken = name == "generator" or any(id(value) in teachers for value in values)
            if mistaken and values and not _trainable(inner):
                allowed = "one that can be trained; a network that is the teacher as well was frozen: give a copy"
                raise argument_error(name, "a network whose parameters are all frozen", allowed)
        own = {id(value) for value in _trainable(self.map.network.module)}
        fitted = {id(value) for critic in self.critics.values() for value in _trainable(critic.network.module)}
        if own & fitted:
            allowed = "a network with parameters of its own: a copy, or another adapter of a SharedBase"
            raise argument_error("critic", "one that shares trained parameters with the generator", allowed)
        judged = {id(value) for module in modules_of(self._real[0]) for value in _trainable(module)}
        if judged & (own | fitted):
            raise argument_error("real", "a network that is trained here", "a frozen one: Frozen(copy.deepcopy(...))")
        for critic in self.critics.values():
            check_ranks(self.map.network.module, critic.network.module)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [value for value in module.parameters() if value.requires_grad]


class _Attached(torch.autograd.Function):
    """A value whose gradient with respect to samples is known already."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        x: Tensor,
        field: Tensor | None,
        state: Tensor | None = None,
        state_field: Tensor | None = None,
    ) -> Tensor:
        ctx.save_for_backward(field, state_field)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        fields = (None if part is None else (upstream * part).to(part.dtype) for part in ctx.saved_tensors)
        field, state_field = fields
        return None, field, None, state_field, None

"""The mixin for the Trainer of transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillrs.errors import argument_error
from distillrs.integrations.bookkeeping import (
    Terms,
    average_gradients,
    count_items,
    own_parameters,
    single_turn,
)
from distillrs.step import Step

_STATE = "objective.pt"


class Distil:
    """Gives a ``transformers.Trainer`` an objective.

    ::

        class Trainer(integrations.transformers.Distil, transformers.Trainer): ...
        trainer = Trainer(args=arguments, train_dataset=data, objective=objective)

    The objective gets the whole batch, masks included, the wrapped student, and a step with the global count of items
    over all micro-batches and processes; so its loss is that of one large batch however it is cut. Its own parameters
    are stepped by the Trainer's optimiser at its learning rate and weight decay (their gradients are averaged over the
    processes, and left out of clipping, which is of the student's); its state is saved in each checkpoint as
    ``objective.pt`` and restored from there. Columns of a data set that the objective reads are kept. Autocast holds
    for teachers too. Terms are logged as ``term/...``.

    Args:
        model: The student; ``None`` takes the objective's.
        objective: One with a single turn.
        *arguments: Of the Trainer.
        **settings: Of the Trainer.

    Raises:
        ArgumentError: The objective has several turns, or a loss function or smoothing of the Trainer's own was given
            too.
    """

    def __init__(self, model: nn.Module | None = None, *arguments: Any, objective: Any, **settings: Any) -> None:
        single_turn(objective)
        if settings.get("compute_loss_func") is not None:
            raise argument_error("compute_loss_func", "a function", "None beside an objective, which gives the loss")
        self.objective = objective
        self._micro_batch = 0
        self._terms = Terms()
        self._logged_at = 0
        trained = objective.student if model is None else model
        super().__init__(trained, *arguments, **settings)  # type: ignore[call-arg]  # the Trainer's, once mixed in
        smoothing = self._its.args.label_smoothing_factor
        if smoothing:
            raise argument_error("label_smoothing_factor", smoothing, "0 beside an objective: Labels(smoothing=...)")
        if isinstance(objective, nn.Module):
            objective.to(self._its.args.device)
        # The loss that comes back is normalised over all that is accumulated.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    @property
    def _its(self) -> Any:
        """The Trainer that this is mixed into."""
        return self

    def get_batch_samples(self, *arguments: Any, **settings: Any) -> tuple[list[Any], Tensor | None]:
        """The batches of one optimiser step, and the items of all of them on all processes."""
        parent: Any = super()
        batches, _ = parent.get_batch_samples(*arguments, **settings)
        self._micro_batch = 0
        if not batches:
            return batches, None
        counts = torch.stack([count_items(self.objective, batch).to(self._its.args.device) for batch in batches])
        return batches, self._its.accelerator.gather(counts.sum().reshape(1)).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **unused: Any,
    ) -> Any:
        """The objective's loss, as the Trainer wants it: times the processes, whose gradients it averages."""
        its = self._its
        is_step = model.training and torch.is_grad_enabled()
        items = None if num_items_in_batch is None or not is_step else max(1, int(num_items_in_batch))
        world, place = int(its.args.world_size), int(its.args.process_index)
        first = (self._micro_batch * world + place) * int(its.args.per_device_train_batch_size)
        step = Step(
            its.state.global_step,
            seed=its.args.seed,
            total=its.state.max_steps or None,
            first_unit=first if is_step else 0,
            items=items,
        )
        outputs: list[Any] = []
        # A copy of the model that is made meanwhile has this hook too.
        hook = model.register_forward_hook(
            lambda module, given, output: outputs.append(output) if return_outputs and module is model else None
        )
        try:
            with its.accelerator.autocast():
                loss = self.objective(inputs, step, student=model)
        finally:
            hook.remove()
        if is_step:
            self._micro_batch += 1
            self._terms.add(loss.terms)
        total = loss.total * world if items is not None else loss.total
        if not return_outputs:
            return total
        # The Trainer takes what follows the loss, or the entries of a mapping.
        given = outputs[0]
        if not isinstance(given, dict):
            given = {"loss": total, "logits": given[0] if isinstance(given, tuple) else given}
        return total, given

    def training_step(self, *arguments: Any, **settings: Any) -> Tensor:
        """The Trainer's, and what it does not do for parameters that are not the model's."""
        own = own_parameters(self.objective)
        if self._micro_batch == 0:
            for parameter in own:
                parameter.grad = None
        parent: Any = super()
        loss: Tensor = parent.training_step(*arguments, **settings)
        if self._its.accelerator.sync_gradients:
            average_gradients(own)
        return loss

    def create_optimizer(self, *arguments: Any, **settings: Any) -> Any:
        """The Trainer's optimiser with the objective's own parameters in it."""
        # Gives back the flags that a stage of an earlier call took: the Trainer leaves out what needs no gradient.
        self.objective.parameter_groups()
        given = self._its.optimizer is not None
        parent: Any = super()
        optimizer = parent.create_optimizer(*arguments, **settings)
        there = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        own = [parameter for parameter in own_parameters(self.objective) if id(parameter) not in there]
        if own and given:
            allowed = "one that steps the objective's own parameters too: see objective.parameter_groups()"
            raise argument_error("optimizers", f"an optimiser without {len(own)} of them", allowed)
        if own:
            optimizer.add_param_group({"params": own, "weight_decay": self._its.args.weight_decay})
        return optimizer

    def log(self, logs: dict[str, float], *arguments: Any, **settings: Any) -> None:
        """The Trainer's, with the terms beside the loss."""
        if "loss" in logs:
            steps = self._its.state.global_step - self._logged_at
            self._logged_at = self._its.state.global_step
            logs |= {f"term/{name}": value for name, value in self._terms.take(steps).items()}
        parent: Any = super()
        parent.log(logs, *arguments, **settings)

    def _set_signature_columns_if_needed(self) -> None:
        parent: Any = super()
        parent._set_signature_columns_if_needed()
        names = [getattr(self.objective, "labels", "labels"), getattr(self.objective, "ids", "ids")]
        names += getattr(self.objective, "withheld", ())
        columns = self._its._signature_columns
        columns += [name for name in names if name not in columns]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        parent: Any = super()
        parent._save_optimizer_and_scheduler(output_dir)
        if self._its.args.should_save:
            torch.save(self.objective.state_dict(), os.path.join(output_dir, _STATE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        parent: Any = super()
        parent._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._logged_at = self._its.state.global_step
        path = Path(checkpoint) / _STATE
        if path.is_file():
            self.objective.load_state_dict(torch.load(path, map_location=self._its.args.device, weights_only=True))
        elif self.objective.state_dict():
            raise argument_error("resume_from_checkpoint", checkpoint, f"one with the objective's state, {_STATE}")

"""What a student form is: a way to run a network other than with its parameters as they are."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

from torch import nn

from distillrs.checks import check_instance
from distillrs.step import Step


class Form(ABC):
    """A way to run a network: with weights on few levels, without some heads, at one of several widths.

    A form changes the network in place, through ``torch.nn.utils.parametrize`` and hooks, so that paths of modules,
    wrappers (``DistributedDataParallel``, ``torch.compile``) and ``copy.deepcopy`` keep working, and the parameters
    of the network stay the same objects: an optimiser goes on updating the full-precision, full-size ones. Make it
    after :meth:`apply` all the same: a form may add parameters of its own. What a form adds is in the network's
    ``state_dict``; to load one, apply the form first.

    A form that draws or changes with the step does so in modules of its own that are :class:`Stepped`;
    :class:`~distillrs.knowledge.Objective` tells them where the run stands.
    """

    @abstractmethod
    def apply(self, module: nn.Module) -> nn.Module:
        """Puts the form on a network, in place.

        Args:
            module: The plain network.

        Returns:
            The same object.

        Raises:
            ArgumentError: A network that this form does not fit, or one that already has it.
        """

    @abstractmethod
    def remove(self, module: nn.Module) -> nn.Module:
        """Takes the form off again: the plain network with its full-precision, full-size parameters as trained.

        Args:
            module: A network with this form.

        Returns:
            The same object.

        Raises:
            ArgumentError: A network without this form.
        """

    @abstractmethod
    def materialise(self, module: nn.Module) -> nn.Module:
        """A plain network with the weights that evaluation uses; the given one is left as it is.

        Args:
            module: A network with this form.

        Returns:
            A new network that needs nothing of this library.

        Raises:
            ArgumentError: A network without this form.
        """

    @abstractmethod
    def export(self, module: nn.Module, path: str | os.PathLike[str]) -> int:
        """Writes what :meth:`materialise` gives, in as few bytes as the form allows.

        Args:
            module: A network with this form.
            path: The file, which appears whole or not at all.

        Returns:
            Its size in bytes.

        Raises:
            ArgumentError: A network without this form.
        """

    @abstractmethod
    def restore(self, module: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
        """The network of an exported file.

        Args:
            module: A plain network of the architecture that the form was applied to; it is left as it is.
            path: The file. It may come from anybody.

        Returns:
            A new network, equal to the one that was materialised.

        Raises:
            DataError: A file that is damaged or of another kind.
            ArgumentError: A network of another architecture.
        """


@runtime_checkable
class Stepped(Protocol):
    """A module inside a form that depends on where the run stands: noise, annealing, a sampled budget."""

    def begin_step(self, step: Step) -> None:
        """Called before the student's forward pass, with the run's step. The same step gives the same state."""


def begin_step(network: nn.Module, step: Step) -> None:
    """Tells every :class:`Stepped` module of a network where the run stands.

    Args:
        network: The student, also wrapped.
        step: Of the run; a plain number takes the seed 0.

    Raises:
        ArgumentError: No network, or no step.
    """
    check_instance("network", network, nn.Module, "a torch.nn.Module")
    step = Step.of(step)
    for module in network.modules():
        stepped: Any = module
        if isinstance(stepped, Stepped):
            stepped.begin_step(step)

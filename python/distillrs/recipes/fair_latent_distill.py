"""A fair latent space, and a small encoder that learns it."""

from __future__ import annotations

from typing import Literal

from torch import nn

from distillrs.condense import FairAutoencoder, GaussianCode, LatentDistillation
from distillrs.condense.latents import Reconstruction, squared_error
from distillrs.registry import recipe


def fair_latent_teacher(
    encoder: GaussianCode,
    decoder: nn.Module,
    fairness: float = 1.0,
    divergence: float = 1.0,
    reconstruction: Reconstruction = squared_error,
    seed: int = 0,
) -> FairAutoencoder:
    """The first stage: a variational autoencoder whose latents say little of an attribute.

    Args:
        encoder: Trained.
        decoder: From latents ``[n, k]`` to examples; trained.
        fairness: gamma, factor of the distance covariance of latents and attribute.
        divergence: Factor of the divergence to the prior.
        reconstruction: From (decoded, examples) to ``[n]``; what suits the data.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its group is "teacher", and a batch is (examples, attribute).

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return FairAutoencoder(
        encoder, decoder, fairness=fairness, divergence=divergence, reconstruction=reconstruction, seed=seed
    )


@recipe(
    id="fair-latent-distill",
    source="Generating Synthetic Fair Syntax-agnostic Data by Learning and Distilling Fair Representation, 2024",
    equation="teacher: recon(x, dec(z)) + KL(q(z|x) || N(0, I)) + gamma dCov^2(z, s); student: q |z_S - z_T| + u "
    "KL(q_S(z|x) || q_T(z|x)), teacher and decoder frozen",
    deviations=[
        "Beyond the abstract and a summary the paper was not to be had: the factors, the reconstruction's scale, the "
        "direction of the student's divergence and that both latents have the same noise are chosen here.",
    ],
    optimisers={"student": {"lr": 1e-3, "betas": (0.9, 0.999)}},
    engine="latents",
)
def fair_latent_distill(
    student: GaussianCode,
    teacher: GaussianCode,
    quality: float = 1.0,
    utility: float = 1.0,
    distance: Literal["l1", "l2"] = "l2",
    seed: int = 0,
) -> LatentDistillation:
    """The second stage: a smaller encoder gives a fair teacher's latents, so that the teacher's decoder serves it.

    ::

        L = quality |z_S - z_T| + utility KL(q_S(z|x) || q_T(z|x))

    Only encoders and decoders know what the data are. The teacher is made by :func:`fair_latent_teacher`; new examples
    with the labels of real ones by :func:`distillrs.condense.generated`.

    Args:
        student: The smaller encoder, trained.
        teacher: The fair encoder; it is frozen.
        quality: Factor of the latents' distance.
        utility: Factor of the divergence.
        distance: "l1" or "l2" (squared).
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its group is "student", and a batch is examples, or a tuple that begins with them.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return LatentDistillation(student, teacher, quality=quality, utility=utility, distance=distance, seed=seed)

"""Progressive distillation: two steps of the teacher in one."""

from __future__ import annotations

from torch import nn

from distillrs.diffusion import FlowMap, Jump, NetworkAdapter, Score, Semigroup, Solver, Weighted
from distillrs.errors import argument_error
from distillrs.recipes._maps import adapted, teacher_score
from distillrs.registry import recipe
from distillrs.schedule import VP, Kind, Neighbouring, Path, TruncatedSNR
from distillrs.schedule.path import check_path


@recipe(
    id="progressive_distillation",
    source="Salimans, Ho: Progressive Distillation for Fast Sampling of Diffusion Models, ICLR 2022",
    equation="max(SNR, 1) |x_student(z_t) - x*|^2, x* = (z'' - (s''/s_t) z_t) / (a'' - (s''/s_t) a_t), "
    "z'' two DDIM steps of the teacher",
    deviations=["The cosine path is Nichol and Dhariwal's with its offset of .008; the paper's has none."],
    engine="diffusion",
)
def progressive_distillation(
    network: nn.Module | NetworkAdapter,
    teacher: nn.Module | NetworkAdapter | Score,
    sampling_steps: int = 4,
    path: Path | None = None,
    kind: Kind = "v",
    seed: int = 0,
) -> FlowMap:
    """One round of progressive distillation: a student of N steps from a teacher of 2N.

    At ``t = i / N`` the teacher takes two DDIM steps, to ``t - 1/(2N)`` and ``t - 1/N``; the student's prediction at
    ``t`` is to make one DDIM step arrive there. Afterwards the student is the teacher of the next round, N halved::

        x* = (z'' - (sigma''/sigma_t) z_t) / (alpha'' - (sigma''/sigma_t) alpha_t)
        L = max(alpha_t^2 / sigma_t^2, 1) |x_student(z_t) - x*|^2

    Args:
        network: The student, called with (x, t), t from 0 to 1; it begins as a copy of the teacher.
        teacher: A network of the same form, or any score.
        sampling_steps: N.
        path: ``None`` for the cosine.
        kind: What both networks predict.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective of one round.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    path = VP.cosine() if path is None else path
    check_path("path", path)
    if isinstance(sampling_steps, bool) or not isinstance(sampling_steps, int) or sampling_steps < 1:
        raise argument_error("sampling_steps", sampling_steps, "a positive integer")
    if kind in ("noise", "score") and float(path.alpha(1.0)) == 0:
        raise argument_error("kind", kind, "'v', 'x0' or 'velocity': at time 1 this path has no signal left")
    return FlowMap(
        adapted(network, times="t"),
        path=path,
        head=Jump(kind),
        source=teacher_score(teacher, kind),
        residual=Semigroup(Solver(None, "ddim")),
        pairs=Neighbouring(tuple(level / sampling_steps for level in range(sampling_steps + 1))),
        balance=Weighted(TruncatedSNR(), kind),
        seed=seed,
    )

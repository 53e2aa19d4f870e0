"""What the exit codes of the command mean."""

from __future__ import annotations

from distillrs import errors

SUCCESS = 0
FAILED = 1
USAGE = 2
MISSING = 3
INTERRUPTED = 130
TERMINATED = 143

MEANINGS = {
    SUCCESS: "done",
    FAILED: "the operation ran and failed, or found damage",
    USAGE: "an argument or a configuration that is not allowed",
    MISSING: "data, a store or an optional package is not there",
    INTERRUPTED: "interrupted (Ctrl-C); the same command continues",
    TERMINATED: "terminated (SIGTERM); the same command continues",
}


def of(failure: BaseException) -> int | None:
    """The exit code of a failure, or ``None`` for one that nobody expects."""
    if isinstance(failure, errors.DataError | errors.StoreMissing | errors.KeyNotFound | ModuleNotFoundError):
        return MISSING
    if isinstance(failure, errors.ArgumentError | errors.SchemaMismatch | errors.StoreExists):
        return USAGE
    if isinstance(failure, errors.DistillrsError | OSError):
        return FAILED
    return None

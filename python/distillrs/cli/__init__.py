"""The ``distillrs`` command."""


def main() -> int:
    """Runs the command line."""
    return 0

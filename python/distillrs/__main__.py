"""``python -m distillrs`` is the ``distillrs`` command."""

import sys

from distillrs.cli import main

if __name__ == "__main__":
    sys.exit(main())

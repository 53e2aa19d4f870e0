"""``distillrs distill-sampler``: settings, phases and results."""

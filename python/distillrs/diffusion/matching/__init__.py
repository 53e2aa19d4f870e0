"""The parts of distribution matching; they are public as names of :mod:`distillrs.diffusion`."""

"""Trajectories in a dictionary, with the part of a store's interface that the condensing engine uses."""

import torch

from distillrs import random
from distillrs.step import Step


class MemoryStore:
    def __init__(self, trajectories, metadata=None):
        self.trajectories = {key: torch.stack(list(records)) for key, records in trajectories.items()}
        self.metadata = dict(metadata or {})
        self.window_outs = []

    def keys(self):
        return list(self.trajectories)

    def lengths(self):
        return {key: len(records) for key, records in self.trajectories.items()}

    def read(self, key, step, column=None):
        return self.trajectories[key][step].clone()

    def window(self, key, column=None, *, start, span, out=None):
        self.window_outs.append(out)
        records = self.trajectories[key]
        if out is None:
            return records[start].clone(), records[start + span].clone()
        for target, step in zip(out, (start, start + span), strict=True):
            # Through the raw memory, as a compiled reader does: torch's version counter does not notice.
            target.detach().numpy()[...] = records[step].numpy()
        return out

    def sample(self, span, start=None, *, units=1, step=0, name="window"):
        step = Step.of(step)
        fits = {key: [s for s in start if s + span < len(r)] for key, r in self.trajectories.items()}
        keys = [key for key, starts in fits.items() if starts]
        which = random.integers(units, len(keys), step=step, name=f"{name}.key").tolist()
        where = random.integers(units, 2**31, step=step, name=f"{name}.start").tolist()
        return [(keys[k], fits[keys[k]][w % len(fits[keys[k]])]) for k, w in zip(which, where, strict=True)]


def walk(layout, network, epochs=8, seed=0, size=0.1):
    """A made-up expert: a random walk with a drift, in the network's parameters."""
    generator = torch.Generator().manual_seed(seed)
    here = layout.flatten(network)
    drift = torch.randn(here.shape, generator=generator, dtype=here.dtype)
    records = [here]
    for _ in range(epochs):
        noise = torch.randn(here.shape, generator=generator, dtype=here.dtype)
        records.append(records[-1] + size * (drift + noise))
    return records

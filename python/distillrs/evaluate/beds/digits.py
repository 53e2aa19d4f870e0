"""The digits of scikit-learn as a bed."""

from __future__ import annotations

import torch

from distillrs.checks import check_number
from distillrs.errors import argument_error
from distillrs.evaluate.beds.kernel import KernelDensity
from distillrs.evaluate.data.sources import read_source


def digits_kde(bandwidth: float = 0.3, *, classes: tuple[int, ...] | None = None) -> KernelDensity:
    """The kernel density of the 1,797 digits, standardised by one mean and one deviation of all pixels.

    Args:
        bandwidth: Standard deviation of every Gaussian, in standardised units.
        classes: Keeps the digits of these classes alone; the standardisation is that of all. ``None`` for all.

    Returns:
        Examples ``[n, 64]`` in float64, with labels.

    Raises:
        ArgumentError: For a bandwidth that is no number from 0, or classes that are none of the ten.
        DataError: scikit-learn is not installed.
    """
    check_number("bandwidth", bandwidth, "a number from 0", least=0)
    if classes is not None and (not isinstance(classes, tuple | list) or not set(classes) <= set(range(10))):
        raise argument_error("classes", classes, "digits from 0 to 9, or None")
    arrays = read_source("digits", None).arrays
    data = torch.cat([torch.as_tensor(arrays[f"x_{part}"]).double().flatten(1) for part in ("train", "test")])
    labels = torch.cat([torch.as_tensor(arrays[f"y_{part}"]).long() for part in ("train", "test")])
    data = (data - data.mean()) / data.std(correction=0)
    if classes is not None:
        keep = torch.isin(labels, torch.tensor(classes))
        data, labels = data[keep], labels[keep]
    return KernelDensity(data, bandwidth, labels)

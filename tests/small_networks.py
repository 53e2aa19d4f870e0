"""Small networks that the tests of condensing are called with."""

import torch
from torch import nn

from distillrs import condense


def network(seed=0):
    """For images of 8 x 8, with running statistics."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))


def plain(seed=0):
    """For images of 8 x 8, without them."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def heads(seed=0):
    """For pairs of four numbers each."""
    torch.manual_seed(seed)
    return condense.PairNetwork(nn.Linear(4, 3), nn.Linear(4, 3))

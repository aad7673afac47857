"""A layer that wears people, its copies and what is left of it."""

from copy import deepcopy

import torch
from torch import nn

from hyperdreambooth.lidb import linear
from hyperdreambooth.lidb.linear import LiDBLinear, Worn


def test_a_copy_of_a_layer_wears_nobody_and_a_new_one_nobodys_leavings() -> None:
    layer = LiDBLinear(nn.Linear(4, 3))
    worn = Worn(torch.ones(1, 4), torch.ones(3, 1))
    layer.worn = worn
    assert layer.worn is worn and deepcopy(layer).worn == Worn()
    number = id(layer)
    del layer
    assert number not in linear._WORN

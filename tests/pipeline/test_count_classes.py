"""A model that a method is not defined for is refused while planning."""

import pytest
from torch import nn

from pipeline.errors import SettingsError
from pipeline.planning import count_classes
from transforms.methods import parse_methods


def test_a_model_that_a_method_is_not_defined_for_is_refused_before_work() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    for method in ("excitation_backprop", "contrastive_excitation_backprop"):
        with pytest.raises(SettingsError, match="defined for ReLU networks, and this one calls"):
            count_classes(model, ["0"], parse_methods([method]), 16)
    assert count_classes(model, ["0"], parse_methods(["normgrad"]), 16) == 5

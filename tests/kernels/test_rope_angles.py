from __future__ import annotations

import math

import pytest
import torch

from remuda.config.model import RopeScaling
from remuda.kernels.rotary.torch import RopeAngles, inverse_frequencies, query_temperature


def scaled_by_hand(frequency: float, scaling: RopeScaling) -> float:
    """One pair's frequency, from the published description of llama3 scaling."""
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    if turns > scaling.high_freq_factor or scaling.low_freq_factor == scaling.high_freq_factor:
        return frequency
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - share) * frequency / scaling.factor + share * frequency


@pytest.mark.parametrize(
    "scaling", [RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(16.0, 1.0, 1.0, 8192), RopeScaling(8.0, 1.0, 4.0, 64)]
)
def test_llama3_scaling(scaling: RopeScaling) -> None:
    plain = [500000.0 ** -(2 * j / 128) for j in range(64)]
    want = torch.tensor([scaled_by_hand(frequency, scaling) for frequency in plain])
    got = inverse_frequencies(128, 500000.0, scaling)
    assert torch.isfinite(got).all() and torch.allclose(got, want, rtol=1e-5)


def test_angles_far_out_need_no_table() -> None:
    angles = RopeAngles(8, 500000.0, None)
    cos_sin_TD, temperature_T = angles(torch.tensor([0, 1, 10_485_759]))
    assert temperature_T is None
    assert cos_sin_TD.shape == (3, 8)
    assert cos_sin_TD[0].tolist() == [1.0] * 4 + [0.0] * 4
    assert cos_sin_TD[1, 0] == pytest.approx(math.cos(1.0)) and cos_sin_TD[1, 4] == pytest.approx(math.sin(1.0))
    assert cos_sin_TD[2, 0] == pytest.approx(math.cos(10_485_759), abs=1e-4)


@pytest.mark.parametrize(
    ("position", "steps"), [(0, 0), (8190, 0), (8191, 1), (8192, 1), (16382, 1), (16383, 2), (1_048_575, 128)]
)
def test_temperature_steps_at_multiples_of_the_floor(position: int, steps: int) -> None:
    temperature = query_temperature(torch.tensor([position]), 8192.0, 0.1)
    assert temperature.item() == pytest.approx(1 + 0.1 * math.log(1 + steps), rel=1e-6)

"""The sampler agrees with diffusers' LCMScheduler, and with the timesteps of the published settings."""

import pytest
import torch
from diffusers import LCMScheduler

from live2diff.model.lcm import (
    add_noise,
    build_scheduler,
    denoise,
    make_schedule,
    spread_indices,
    timesteps_of_indices,
)


@pytest.fixture
def scheduler() -> LCMScheduler:
    return build_scheduler()


def test_indices_give_the_published_timesteps(scheduler):
    assert timesteps_of_indices(scheduler, [25, 30, 34, 36, 42, 43]) == [499, 399, 319, 279, 159, 139]


def test_steps_are_spread_from_the_first_index_to_the_last():
    assert [spread_indices(30, 42, steps) for steps in (1, 2, 3, 4)] == [
        [30],
        [30, 42],
        [30, 36, 42],
        [30, 34, 38, 42],
    ]
    assert spread_indices(48, 49, 4) == [46, 47, 48, 49]  # where there is too little room, it begins earlier


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_step_and_its_renoising_equal_those_of_the_scheduler(scheduler, prediction_type):
    scheduler.register_to_config(prediction_type=prediction_type)
    indices = [30, 36, 42]
    schedule = make_schedule(scheduler, timesteps_of_indices(scheduler, indices))
    torch.manual_seed(0)
    clean, output, noise = torch.randn(3, 3, 4, 8, 8)
    # All three rows at once, each at its own step, against the scheduler's own steps one by one.
    sample = add_noise(schedule, slice(None), clean, noise)
    denoised = denoise(schedule, slice(None), sample, output)
    for row, timestep in enumerate(schedule.timesteps):
        expected = scheduler.add_noise(clean[row], noise[row], timestep)
        torch.testing.assert_close(sample[row], expected)
        scheduler.set_timesteps(50, original_inference_steps=50)
        step = scheduler.step(output[row], timestep, sample[row])
        torch.testing.assert_close(denoised[row], step.denoised, atol=1e-5, rtol=1e-5)

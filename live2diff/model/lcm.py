"""The few-step sampler as pure functions: schedule, LCM step, re-noising (Luo et al., LCM, 2023)."""

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor

from ..config import MAX_DENOISING_STEPS

SIGMA_DATA = 0.5  # of LCM's boundary condition


@dataclass(frozen=True)
class Schedule:
    """The denoising steps of a stream, noisiest first; all tensors are `[steps]`, float32 unless noted.

    Clean latents are the noised ones times `x0_from_sample` plus the model's output times `x0_from_output`.
    """

    timesteps: Tensor  # int64 in `[0, 1000)`, decreasing
    sqrt_alpha_bar: Tensor  # factor of clean latents at each timestep
    sqrt_one_minus_alpha_bar: Tensor  # factor of the noise
    x0_from_sample: Tensor
    x0_from_output: Tensor
    skip: Tensor  # LCM's boundary scalings c_skip and c_out
    out: Tensor

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return len(self.timesteps)

    def to(self, device: torch.device) -> "Schedule":
        """Return a copy on that device."""
        return Schedule(*(getattr(self, field.name).to(device) for field in fields(self)))


def build_scheduler(prediction_type: str = "epsilon") -> LCMScheduler:
    """Build Stable Diffusion's noise schedule, but linear, as the published model was trained (section 5).

    `prediction_type` is "epsilon" for the noise, "sample" for the clean latents, or "v_prediction".
    """
    return LCMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        steps_offset=1,
        clip_sample=False,
        prediction_type=prediction_type,
    )


def make_schedule(scheduler: LCMScheduler, timesteps: list[int]) -> Schedule:
    """Return the schedule of 1 to 4 decreasing `timesteps` of `scheduler`.

    Raises:
        ValueError: too few, too many, out of range or out of order.
    """
    total = scheduler.config["num_train_timesteps"]
    if not 1 <= len(timesteps) <= MAX_DENOISING_STEPS:
        raise ValueError(
            f"There are {len(timesteps)} denoising steps; 1 to {MAX_DENOISING_STEPS} are possible."
        )
    if any(not 0 <= t < total for t in timesteps) or any(a <= b for a, b in pairwise(timesteps)):
        raise ValueError(f"timesteps {timesteps} must decrease and lie in [0, {total}).")
    alpha_bar = scheduler.alphas_cumprod.numpy()[timesteps].astype(np.float64)
    scaled = np.array(timesteps, np.float64) * scheduler.config["timestep_scaling"]
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    x0_factors = {
        "epsilon": (1 / alpha, -sigma / alpha),
        "sample": (0 * alpha, 1 + 0 * alpha),
        "v_prediction": (alpha, -sigma),
    }[scheduler.config["prediction_type"]]
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    out = scaled / np.sqrt(scaled**2 + SIGMA_DATA**2)
    factors = np.stack([alpha, sigma, *x0_factors, skip, out]).astype(np.float32)
    return Schedule(torch.tensor(timesteps), *torch.from_numpy(factors))


def concatenate(schedules: list[Schedule]) -> Schedule:
    """Concatenate the schedules of several streams: one step per row."""
    if len(schedules) == 1:
        return schedules[0]
    names = [field.name for field in fields(Schedule)]
    return Schedule(*(torch.cat([getattr(schedule, name) for schedule in schedules]) for name in names))


def timesteps_of_indices(
    scheduler: LCMScheduler, indices: list[int], num_inference_steps: int = 50
) -> list[int]:
    """Return the timesteps at increasing `indices` into an LCM schedule of `num_inference_steps`.

    Raises:
        ValueError: an index out of range or out of order.
    """
    in_range = all(0 <= index < num_inference_steps for index in indices)
    if not in_range or any(a >= b for a, b in pairwise(indices)):
        raise ValueError(
            f"t_index_list {indices} must hold increasing numbers from 0 to {num_inference_steps - 1}."
        )
    scheduler.set_timesteps(num_inference_steps, original_inference_steps=num_inference_steps)
    return [int(scheduler.timesteps[index]) for index in indices]


def spread_indices(first: int, last: int, steps: int) -> list[int]:
    """Return `steps` different indices from `first` to `last`; start earlier if the range is too short."""
    if steps == 1:
        return [first]
    first = min(first, last - steps + 1)
    return [int(index) for index in np.linspace(first, last, steps).round()]


def per_row(factor: Tensor, latents: Tensor) -> Tensor:
    """Reshape `[rows]` to multiply latents `[rows, C, h, w]`, in their precision and on their device."""
    return factor.to(latents).view(-1, *[1] * (latents.ndim - 1))


def add_noise(schedule: Schedule, step: int | slice, latents: Tensor, noise: Tensor) -> Tensor:
    """Noise clean `latents`, `[rows, C, h, w]`, to denoising step `step` (a slice: one step per row)."""
    alpha, sigma = (
        per_row(torch.atleast_1d(factor[step]), latents)
        for factor in (schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar)
    )
    return alpha * latents + sigma * noise


def denoise(schedule: Schedule, step: int | slice, sample: Tensor, model_output: Tensor) -> Tensor:
    """Return the clean latents, `[rows, C, h, w]`, after one LCM step from noised latents `sample`."""
    x0_from_sample, x0_from_output, skip, out = (
        per_row(torch.atleast_1d(factor[step]), sample)
        for factor in (schedule.x0_from_sample, schedule.x0_from_output, schedule.skip, schedule.out)
    )
    x0 = x0_from_sample * sample + x0_from_output * model_output
    return out * x0 + skip * sample

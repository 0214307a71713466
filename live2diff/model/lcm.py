"""The few-step sampler: noise schedule, LCM step, re-noising. Pure functions of tensors (Luo et al., LCM,
2023)."""

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from diffusers import LCMScheduler

from ..config import MAX_DENOISING_STEPS


@dataclass(frozen=True)
class Schedule:
    """The denoising steps of a stream, noisiest first; every tensor is `[steps]`, float32 but for
    `timesteps`, int64.

    Attributes:
        timesteps: in `[0, 1000)`, decreasing.
        signal, noise: the square roots of alpha-bar and of 1 - alpha-bar at each timestep.
        of_sample, of_output: the clean latents are the noised ones times the first plus the model's output
            times the second, whatever it is that the model predicts.
        skip, out: LCM's boundary scalings c_skip and c_out.
    """

    timesteps: torch.Tensor
    signal: torch.Tensor
    noise: torch.Tensor
    of_sample: torch.Tensor
    of_output: torch.Tensor
    skip: torch.Tensor
    out: torch.Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> "Schedule":
        """The same on that device."""
        return Schedule(*(getattr(self, field.name).to(device) for field in fields(self)))


def build_scheduler(prediction_type: str = "epsilon") -> LCMScheduler:
    """Stable Diffusion's noise schedule, but linear, as the published model was trained with (section 5).

    Args:
        prediction_type: what the model predicts: "epsilon", the noise; "sample", the clean latents; or
            "v_prediction".
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
    """The schedule that visits `timesteps` of `scheduler` (1 to 4 of them, decreasing).

    Raises:
        ValueError: too few, too many, out of range or out of order.
    """
    total = scheduler.config.num_train_timesteps
    if not 1 <= len(timesteps) <= MAX_DENOISING_STEPS:
        raise ValueError(
            f"{len(timesteps)} denoising steps asked for; 1 to {MAX_DENOISING_STEPS} are possible."
        )
    if any(not 0 <= t < total for t in timesteps) or any(a <= b for a, b in pairwise(timesteps)):
        raise ValueError(f"timesteps {timesteps} must decrease and lie in [0, {total}).")
    visited = torch.tensor(timesteps, dtype=torch.int64)
    alpha_bar = scheduler.alphas_cumprod[visited].double()
    scaled = visited.double() * scheduler.config.timestep_scaling
    deviation = 0.5  # sigma_data of LCM's boundary condition
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    of_sample, of_output = {
        "epsilon": (1 / signal, -noise / signal),
        "sample": (0 * signal, 1 + 0 * signal),
        "v_prediction": (signal, -noise),
    }[scheduler.config.prediction_type]
    return Schedule(
        timesteps=visited,
        signal=signal.float(),
        noise=noise.float(),
        of_sample=of_sample.float(),
        of_output=of_output.float(),
        skip=(deviation**2 / (scaled**2 + deviation**2)).float(),
        out=(scaled / (scaled**2 + deviation**2).sqrt()).float(),
    )


def joined(schedules: list[Schedule]) -> Schedule:
    """The steps of these schedules one after the other: a step for each row of several streams."""
    if len(schedules) == 1:
        return schedules[0]
    names = [field.name for field in fields(Schedule)]
    return Schedule(*(torch.cat([getattr(schedule, name) for schedule in schedules]) for name in names))


def timesteps_of_indices(
    scheduler: LCMScheduler, indices: list[int], num_inference_steps: int = 50
) -> list[int]:
    """The timesteps at `indices` (increasing) of an LCM schedule of `num_inference_steps`.

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


def timesteps_of_strength(scheduler: LCMScheduler, num_inference_steps: int, strength: float) -> list[int]:
    """The last `floor(num_inference_steps * strength)` timesteps of an LCM schedule of `num_inference_steps`.

    Raises:
        ValueError: a strength outside (0, 1], or one so small that no step is left.
    """
    kept = int(num_inference_steps * strength)
    if not 0 < strength <= 1 or kept < 1:
        raise ValueError(
            f"strength {strength} of {num_inference_steps} steps leaves no step; it must lie in "
            f"[{1 / num_inference_steps:g}, 1]."
        )
    scheduler.set_timesteps(
        num_inference_steps, original_inference_steps=scheduler.config.original_inference_steps
    )
    return [int(timestep) for timestep in scheduler.timesteps[-kept:]]


def spread_indices(first: int, last: int, steps: int) -> list[int]:
    """`steps` different indices from `first` to `last`; `first` alone for one step, an earlier one where
    there would be too few between the two."""
    if steps == 1:
        return [first]
    first = min(first, last - steps + 1)
    return [int(index) for index in np.linspace(first, last, steps).round()]


def per_row(factor: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """`[rows]` shaped to multiply `[rows, C, h, w]`, in its precision and on its device."""
    return factor.to(latents).view(-1, *[1] * (latents.ndim - 1))


def add_noise(
    schedule: Schedule, step: int | slice, latents: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Noise clean `latents`, `[rows, C, h, w]`, to denoising step `step` (a slice: one step a row)."""
    signal, sigma = (torch.atleast_1d(factor[step]) for factor in (schedule.signal, schedule.noise))
    return per_row(signal, latents) * latents + per_row(sigma, latents) * noise


def denoise(
    schedule: Schedule, step: int | slice, sample: torch.Tensor, model_output: torch.Tensor
) -> torch.Tensor:
    """One LCM step: the clean latents that `model_output`, what the model predicts for `sample`, makes of it,
    `[rows, C, h, w]`."""
    of_sample, of_output, skip, out = (
        per_row(torch.atleast_1d(factor[step]), sample)
        for factor in (schedule.of_sample, schedule.of_output, schedule.skip, schedule.out)
    )
    clean = of_sample * sample + of_output * model_output
    return out * clean + skip * sample

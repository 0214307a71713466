"""Stream: all that one viewer's stream remembers, and the stream batch that turns each new frame into one
UNet call."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from .attention import KVCache, Window
from .config import WARMUP_FRAMES
from .depth import DepthRange, depth_pictures
from .sampler import Schedule, add_noise, denoise

if TYPE_CHECKING:
    from .pipeline import Live2DiffPipeline


@dataclass(eq=False)
class Frame:
    """A frame on its way: what it needs from the moment it comes in until it is decoded.

    Attributes:
        latents: `[C, h, w]`; clean before its first step, then noised to the step it waits for.
        depth: inverse depth `[H, W]` at the estimator's size.
        depth_latents: `[C, h, w]`, once the range is known.
        noise: `[steps, C, h, w]`, the frame's own noise for each of its steps.
        prompt_embeds: `[tokens, dim]`, the prompt it was begun with.
        shape: (height, width) at which it came in and will go out.
    """

    latents: torch.Tensor
    depth: torch.Tensor
    depth_latents: torch.Tensor | None
    noise: torch.Tensor
    prompt_embeds: torch.Tensor
    shape: tuple[int, int]


class Stream:
    """One viewer's stream: frames in, as many frames out, in order; open it with `Live2DiffPipeline.stream`.

    The first 8 frames are gathered and translated together (the warmup). From then on each pushed frame
    enters row 0 of the stream batch, the frames in flight move on by one denoising step in the same UNet
    call, and the one that has done its last step comes out: n - 1 pushes after it went in, with n denoising
    steps.

    Not for use by several threads at once.

    Attributes:
        frames_in, frames_out: how many frames were pushed and given back.
        schedule: the denoising steps.
    """

    def __init__(
        self,
        pipeline: Live2DiffPipeline,
        schedule: Schedule,
        style: str | None,
        prompt: str,
        seed: int,
        size: int | tuple[int, int],
        lora_scale: float = 1.0,
    ):
        self.schedule = schedule
        self.frames_in = self.frames_out = 0
        self._pipeline: Live2DiffPipeline | None = pipeline
        self._size = size
        self._working_size: tuple[int, int] | None = None
        self._style, self._prompt, self._lora_scale = style, prompt, lora_scale
        pipeline.tokenize(style, prompt)  # complain before any weights change
        pipeline.wear(style, self, lora_scale)
        self._embeds = self._target_embeds = pipeline.encode_prompt(style, prompt)
        self._blend_left = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._depth_range = DepthRange()
        self._gathered: list[Frame] = []  # before the warmup
        self._recent: deque[Frame] = deque(maxlen=WARMUP_FRAMES)  # what a restart warms up from
        self._rows: list[Frame | None] = [None] * schedule.steps  # the stream batch; row r waits for step r
        self._cache: KVCache | None = None
        self._restart = False

    @property
    def warm(self) -> bool:
        """Whether the warmup is done and frames come out one for one."""
        return self._cache is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the stream's cache; 0 before the warmup."""
        return self._cache.nbytes if self._cache else 0

    @torch.no_grad()
    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        """Take in one frame, and give back those that are finished.

        Args:
            frame: uint8 `[height, width, 3]` RGB, any size.

        Returns:
            uint8 `[height, width, 3]` RGB, each at the size at which it came in: none while 8 frames are
            gathered, then those 8, then none n - 1 times, then one a push.

        Raises:
            ValueError: not such an array.
            RuntimeError: the stream is closed.
        """
        entering = self._take_in(frame)
        self.frames_in += 1
        if not self.warm:
            self._gathered.append(entering)
            return self._warm_up_gathered() if len(self._gathered) == WARMUP_FRAMES else []
        if self._restart:
            self._restart = False
            recent = list(self._recent)
            self._warm_up(
                [
                    replace(f, prompt_embeds=entering.prompt_embeds, noise=self._noise(f.latents))
                    for f in recent
                ]
            )
        self._recent.append(entering)
        finished = self._advance(entering)
        return [] if finished is None else self._give_out([finished])

    @torch.no_grad()
    def flush(self) -> list[np.ndarray]:
        """Finish the frames in flight and give them back, at the end of a clip; more frames may be pushed
        afterwards.

        With fewer than 8 frames so far, the last one stands in for the missing warmup frames.
        """
        out = []
        if self._gathered:
            out += self._warm_up_gathered()
        while any(self._rows):
            finished = self._advance(None)
            if finished is not None:
                out += self._give_out([finished])
        return out

    def update(
        self,
        prompt: str | None = None,
        style: str | None = None,
        blend: int = 8,
        lora_scale: float | None = None,
        keep_memory: bool = False,
    ) -> None:
        """Change prompt or style from the next frame on; the denoising steps stay.

        The memory is kept where the weights stay the same. Where a style brings others, keys and values were
        made by weights that are gone, so the stream warms up again from its last 8 frames, without a gap.

        Args:
            prompt: the viewer's words; None keeps them.
            style: a name in the pipeline's `styles`, "" for none; None keeps it.
            blend: over how many frames the old prompt turns into the new one; 0 or 1 for at once.
            lora_scale: multiplies the weights of the style's LoRAs, from 0 to 2; None keeps it.
            keep_memory: keep it although the weights change: what was drawn so far fades out slowly.

        Raises:
            ValueError: as `Live2DiffPipeline.wear` and `.tokenize`; the stream goes on as before.
            OSError: the style's weights cannot be had; the stream goes on as before.
        """
        pipeline = self._open
        style = self._style if style is None else style
        prompt = self._prompt if prompt is None else prompt
        lora_scale = self._lora_scale if lora_scale is None else lora_scale
        pipeline.tokenize(style, prompt)
        changed = pipeline.wear(style, self, lora_scale)
        self._style, self._prompt, self._lora_scale = style, prompt, lora_scale
        self._target_embeds = pipeline.encode_prompt(style, prompt)
        # Embeddings of two text encoders have nothing between them.
        self._blend_left = max(1, blend) if self.frames_in and not changed else 1
        if changed and not keep_memory:
            self.restart()

    def restart(self) -> None:
        """Warm up again at the next frame, from the last 8 frames and with the current prompt, without a gap.

        Frames in flight go on in the new memory. Before the first warmup there is nothing to restart.
        """
        self._restart = self.warm

    def close(self) -> None:
        """Free everything; may be called twice."""
        if self._pipeline is not None:
            self._pipeline.leave(self)
        self._pipeline = self._cache = None
        self._gathered, self._rows = [], []
        self._recent.clear()

    @property
    def ignored_words(self) -> str:
        """The end of the prompt that is too long for the text encoder, "" if it all fits."""
        return self._open.ignored_words(self._style, self._prompt)

    @property
    def _open(self) -> Live2DiffPipeline:
        if self._pipeline is None:
            raise RuntimeError("This stream is closed; open a new one.")
        return self._pipeline

    def _take_in(self, frame: np.ndarray) -> Frame:
        """Pixels to latents and depth, with the prompt and the noise that the frame will keep."""
        pipeline = self._open
        if (
            not isinstance(frame, np.ndarray)
            or frame.dtype != np.uint8
            or frame.ndim != 3
            or frame.shape[2] != 3
        ):
            found = (
                f"{frame.dtype} {list(frame.shape)}"
                if isinstance(frame, np.ndarray)
                else type(frame).__name__
            )
            raise ValueError(f"A frame must be a uint8 array [height, width, 3]; this is {found}.")
        if 0 in frame.shape:
            raise ValueError(f"A frame must have pixels; this one is {frame.shape[1]} x {frame.shape[0]}.")
        shape = frame.shape[:2]
        if self._working_size is None:
            self._working_size = pipeline.working_size(*shape, self._size)
        pictures = upload([frame], self._working_size, pipeline.unet.device)
        depth = pipeline.inverse_depth(pictures)[0]
        if self.warm:  # camera and depth in one batch; before, the depth's range is not known yet
            pictures = torch.cat([pictures, self._depth_pictures(depth[None])])
        latents, *depth_latents = pipeline.encode(pictures).to(pipeline.unet.dtype)
        depth_latents = depth_latents[0] if depth_latents else None
        return Frame(latents, depth, depth_latents, self._noise(latents), self._next_embeds(), shape)

    def _next_embeds(self) -> torch.Tensor:
        """The prompt embeddings of the next frame: one step closer to the prompt last set."""
        if self._blend_left:
            self._embeds = torch.lerp(self._embeds, self._target_embeds, 1 / self._blend_left)
            self._blend_left -= 1
        return self._embeds

    def _noise(self, like: torch.Tensor) -> torch.Tensor:
        """Fresh noise for all steps of one frame, `[steps, C, h, w]`; drawn on the CPU, so that a seed means
        the same on every device."""
        return torch.randn(self.schedule.steps, *like.shape, generator=self._generator).to(like)

    def _depth_pictures(self, depth: torch.Tensor) -> torch.Tensor:
        return depth_pictures(self._depth_range.normalise(depth), self._working_size)

    def _warm_up_gathered(self) -> list[np.ndarray]:
        """Translate the gathered frames together, filled up with the last one if there are not 8."""
        pipeline, real = self._open, len(self._gathered)
        frames = self._gathered + [self._gathered[-1]] * (WARMUP_FRAMES - real)
        depth_latents = pipeline.encode(self._depth_pictures(torch.stack([frame.depth for frame in frames])))
        frames = [
            replace(frame, depth_latents=latents, prompt_embeds=self._embeds)
            for frame, latents in zip(frames, depth_latents, strict=True)
        ]
        self._gathered = []
        self._recent.extend(frames)
        height, width = frames[0].latents.shape[1:]
        self._cache = pipeline.unet.new_cache(self.schedule.steps, height, width)
        clean = self._warm_up(frames)
        done = [replace(frame, latents=latents) for frame, latents in zip(frames, clean, strict=True)]
        return self._give_out(done[:real])

    def _warm_up(self, frames: list[Frame]) -> torch.Tensor:
        """Denoise 8 frames together, step by step, filling the cache's first 8 slots; their clean latents."""
        pipeline, schedule = self._open, self.schedule
        clean, depth_latents, noise, embeds = (
            torch.stack([getattr(frame, name) for frame in frames])
            for name in ("latents", "depth_latents", "noise", "prompt_embeds")
        )
        window = Window.warmup(clean.device)
        self._cache.count.zero_()
        for step in range(schedule.steps):
            sample = add_noise(schedule, step, clean, noise[:, step])
            timesteps = schedule.timesteps[step].to(clean.device).expand(WARMUP_FRAMES)
            output = pipeline.predict(sample, timesteps, embeds, depth_latents, window, self._cache.row(step))
            clean = denoise(schedule, step, sample, output)
        return clean

    def _advance(self, entering: Frame | None) -> Frame | None:
        """One UNet call: every frame in flight takes its next step; the one that took its last is given
        back."""
        schedule, rows = self.schedule, self._rows
        if entering is not None:
            noised = add_noise(schedule, 0, entering.latents[None], entering.noise[None, 0])[0]
            rows[0] = replace(entering, latents=noised)
        # An empty row computes along on another frame's input; its count stays, so it leaves nothing in the
        # cache.
        stand_in = next(row for row in rows if row is not None)
        batch = [row or stand_in for row in rows]
        sample, depth_latents, embeds = (
            torch.stack([getattr(row, name) for row in batch])
            for name in ("latents", "depth_latents", "prompt_embeds")
        )
        window = Window.stream(self._cache.count)
        timesteps = schedule.timesteps.to(sample.device)
        output = self._open.predict(sample, timesteps, embeds, depth_latents, window, self._cache)
        clean = denoise(schedule, slice(None), sample, output)
        self._cache.count += torch.tensor([row is not None for row in rows], device=sample.device)

        moved: list[Frame | None] = [
            row and replace(row, latents=latents) for row, latents in zip(rows, clean, strict=True)
        ]
        for step, row in enumerate(moved[:-1], start=1):
            if row is not None:
                row.latents = add_noise(schedule, step, row.latents[None], row.noise[None, step])[0]
        self._rows = [None, *moved[:-1]]
        return moved[-1]

    def _give_out(self, frames: list[Frame]) -> list[np.ndarray]:
        """Clean latents to frames of the size they came in."""
        pictures = self._open.decode(torch.stack([frame.latents for frame in frames]))
        self.frames_out += len(frames)
        return download(pictures, [frame.shape for frame in frames])


def upload(frames: list[np.ndarray], size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """uint8 `[height, width, 3]` frames as pictures `[n, 3, h, w]` of `size` in `[-1, 1]`, on the device."""
    pixels = torch.from_numpy(np.stack([resize(frame, size) for frame in frames])).to(device)
    return (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def download(pictures: torch.Tensor, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Pictures `[n, 3, h, w]` as uint8 `[height, width, 3]` frames of these (height, width)."""
    pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return [resize(picture, shape) for picture, shape in zip(pixels, shapes, strict=True)]


def resize(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 `[height, width, 3]` at another (height, width)."""
    if picture.shape[:2] == tuple(shape):
        return np.ascontiguousarray(picture)
    shrinks = shape[0] * shape[1] < picture.shape[0] * picture.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(picture, (shape[1], shape[0]), interpolation=interpolation)

"""What one viewer's stream remembers, and what it calls of a model."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..config import WARMUP_FRAMES, WINDOW
from ..model.attention import Window
from ..model.depth import DepthRange
from ..model.kv_cache import KVCache
from ..model.lcm import Schedule
from ..model.unet import StreamUNet
from .cache_pool import CacheLease
from .scene_change import SceneChangeDetector
from .settings import StreamSettings
from .similar_frames import SimilarFrameFilter


class FrameNetworks(Protocol):
    """The networks on the path of a frame, as `Live2DiffPipeline` and the faster runtimes have them."""

    encode: Callable[[torch.Tensor], torch.Tensor]  # images to latents
    decode: Callable[[torch.Tensor], torch.Tensor]  # latents to images
    inverse_depth: Callable[[torch.Tensor], torch.Tensor]  # images to depth
    predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Window, KVCache], torch.Tensor]


class FrameModel(FrameNetworks, Protocol):
    """What a stream calls of a model; `Live2DiffPipeline` documents it."""

    unet: StreamUNet
    tokenize: Callable[[str | None, str], torch.Tensor]
    encode_prompt: Callable[[str | None, str], torch.Tensor]
    ignored_words: Callable[[str | None, str], str]
    activate_style: Callable[[str | None, object, float], bool]
    release_style: Callable[[object], None]
    working_size: Callable[[int, int, int | tuple[int, int] | None], tuple[int, int]]
    latent_shape: Callable[[tuple[int, int]], tuple[int, int, int]]


@dataclass(eq=False)
class Frame:
    """A frame from the moment it is encoded until it is decoded.

    Attributes:
        latents: `[C, h, w]`, without noise: of the input at first, then of each step's result.
        depth: inverse depth `[H, W]` at the estimator's size; None where an earlier frame's is reused.
        depth_latents: `[C, h, w]`; None until the depth range is known.
        noise: `[steps, C, h, w]`, the frame's own noise for each of its steps.
        prompt_embeds: `[tokens, dim]`.
        shape: (height, width) of the input and of the output.
        number: how many frames the stream received before it.
    """

    latents: torch.Tensor
    depth: torch.Tensor | None
    depth_latents: torch.Tensor | None
    noise: torch.Tensor
    prompt_embeds: torch.Tensor
    shape: tuple[int, int]
    number: int


@dataclass
class PromptBlend:
    """Prompt embeddings `[tokens, dim]` on their way to those of the prompt last set."""

    embeds: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    target: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    frames_left: int = 0

    def next_embeds(self) -> torch.Tensor:
        """Move one frame closer to the target and return the embeddings of that frame."""
        if self.frames_left > 1:
            self.embeds = torch.lerp(self.embeds, self.target, 1 / self.frames_left)
        elif self.frames_left == 1:
            self.embeds = self.target
        self.frames_left = max(0, self.frames_left - 1)
        return self.embeds


@dataclass
class FrameCounts:
    """Frames received and returned, and frames returned when the stream last recovered from NaN."""

    frames_in: int = 0
    frames_out: int = 0
    recovered_at: int = -WINDOW


@dataclass(eq=False)
class StreamState:
    """What one viewer's stream remembers; the functions in `steps` and `warmup` work on it.

    Attributes:
        pipeline: the model; None once the stream is closed.
        new_lease: takes rows of a cache for latents of this (height, width).
        draw_noise: standard normal noise of a shape, on the CPU, so that a seed means the same everywhere.
        scenes: detects that the scene changed and the cache is to be filled again.
        similar: decides which frames repeat the last output.
        rows: the stream batch: row r holds the frame that waits for step r.
        recent: the last 8 frames, which fill the cache; before the warmup, those collected for it.
        working_size: (height, width) at which frames are processed, set by the first frame.
        lease: the stream's rows of the cache; None before the warmup.
        restart_due: whether the next frame fills the cache again from the recent frames.
    """

    pipeline: FrameModel | None
    settings: StreamSettings
    schedule: Schedule
    new_lease: Callable[[tuple[int, int]], CacheLease]
    draw_noise: Callable[[tuple[int, ...]], torch.Tensor]
    scenes: SceneChangeDetector
    similar: SimilarFrameFilter
    rows: list[Frame | None]
    recent: deque[Frame] = field(default_factory=lambda: deque(maxlen=WARMUP_FRAMES))
    prompt: PromptBlend = field(default_factory=PromptBlend)
    depth_range: DepthRange = field(default_factory=DepthRange)
    counts: FrameCounts = field(default_factory=FrameCounts)
    working_size: tuple[int, int] = (0, 0)
    lease: CacheLease | None = None
    restart_due: bool = False

    @property
    def model(self) -> FrameModel:
        """The model.

        Raises:
            RuntimeError: the stream is closed.
        """
        if self.pipeline is None:
            raise RuntimeError("This stream is closed; open a new one.")
        return self.pipeline

    @property
    def warm(self) -> bool:
        """Whether the warmup is done and frames come out one for one."""
        return self.lease is not None

    @property
    def cache(self) -> KVCache:
        """The stream's rows of the cache; only once it is warm, and not to be kept: leases move."""
        assert self.lease is not None, "the stream has not warmed up"
        return self.lease.cache

    def close(self) -> None:
        """Free the cache and all frames; may be called twice."""
        if self.pipeline is not None:
            self.pipeline.release_style(self)
        if self.lease is not None:
            self.lease.free()
        self.pipeline = self.lease = None
        self.rows = []
        self.recent.clear()

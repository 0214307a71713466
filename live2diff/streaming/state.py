"""The state of one viewer's stream, and the methods that it calls of a model."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ..config import WARMUP_FRAMES, WINDOW
from ..model.attention import Window
from ..model.depth import DepthRange
from ..model.kv_cache import KVCache
from ..model.lcm import Schedule
from ..model.unet import StreamUNet
from .cache_pool import CacheLease, CacheSource
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
    config: Any
    tokenize: Callable[[str | None, str], torch.Tensor]
    encode_prompts: Callable[[StreamSettings], torch.Tensor]
    ignored_words: Callable[[StreamSettings], str]
    timesteps: Callable[[StreamSettings], list[int]]
    schedule: Callable[[StreamSettings], Schedule]
    activate_style: Callable[[str | None, object, float], bool]
    release_style: Callable[[object], None]
    working_size: Callable[[int, int, int | tuple[int, int] | None], tuple[int, int]]
    latent_shape: Callable[[tuple[int, int]], tuple[int, int, int]]


@dataclass(eq=False)
class Frame:
    """A frame from the moment it is encoded until it is decoded."""

    latents: torch.Tensor  # [C, h, w], without noise: of the input at first, then of each step's result
    depth: torch.Tensor | None  # inverse, [H, W] of the estimator; None where an earlier frame's is reused
    depth_latents: torch.Tensor | None  # [C, h, w]; None until the depth range is known
    noise: torch.Tensor  # [steps, C, h, w], the frame's own noise for each of its steps
    prompt_embeds: torch.Tensor  # [tokens, dim]
    shape: tuple[int, int]  # height, width of the input and of the output
    number: int  # how many frames the stream received before it


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


@dataclass
class Outputs:
    """Images that are still to be returned."""

    finished: list[np.ndarray] = field(default_factory=list)  # that the next push returns first
    launched: list[Any] = field(default_factory=list)  # `steps.DecodedFrames` on their way from the device


@dataclass(eq=False)
class StreamState:
    """The state of one viewer's stream; the functions in `steps` and `warmup` work on it."""

    pipeline: FrameModel | None  # the model; None once the stream is closed
    settings: StreamSettings
    schedule: Schedule
    caches: CacheSource
    draw_noise: Callable[[tuple[int, ...]], torch.Tensor]  # a seed means the same on one kind of device
    scenes: SceneChangeDetector
    similar: SimilarFrameFilter
    rows: list[Frame | None]  # the stream batch: row r holds the frame that waits for step r
    # The last 8 frames, which fill the cache; before the warmup, those collected for it.
    recent: deque[Frame] = field(default_factory=lambda: deque(maxlen=WARMUP_FRAMES))
    prompt: PromptBlend = field(default_factory=PromptBlend)
    depth_range: DepthRange = field(default_factory=DepthRange)
    counts: FrameCounts = field(default_factory=FrameCounts)
    working_size: tuple[int, int] = (0, 0)  # height, width at which frames are processed: of the first frame
    outputs: Outputs = field(default_factory=Outputs)
    lease: CacheLease | None = None  # the stream's rows of the cache; None before the warmup
    restart_due: bool = False  # whether the next frame fills the cache again from the recent frames

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
        """The stream's rows of the cache; only once it is warm, and not to be kept: a pool may grow."""
        assert self.lease is not None, "the stream has not warmed up"
        return self.lease.cache

    def close(self) -> None:
        """Free the cache and all frames; may be called twice."""
        if self.pipeline is not None:
            self.pipeline.release_style(self)
        if self.lease is not None:
            self.lease.free()
        self.pipeline = self.lease = None
        self.rows, self.outputs = [], Outputs()
        self.recent.clear()

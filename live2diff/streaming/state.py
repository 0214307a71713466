"""The state of one viewer's stream, and what a stream calls on a model."""

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
    """The networks on the path of a frame, in `Live2DiffPipeline` and in the faster runtimes."""

    encode: Callable[[torch.Tensor], torch.Tensor]  # images to latents
    decode: Callable[[torch.Tensor], torch.Tensor]  # latents to images
    inverse_depth: Callable[[torch.Tensor], torch.Tensor]  # images to inverse depth
    predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Window, KVCache], torch.Tensor]


class FrameModel(FrameNetworks, Protocol):
    """What a stream calls on a model; documented in `Live2DiffPipeline`."""

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
    """A frame between encoding and decoding."""

    latents: torch.Tensor  # [C, h, w], clean: of the input at first, then the result of each step
    depth: torch.Tensor | None  # inverse, [H, W] of the estimator; None if an earlier frame's is reused
    depth_latents: torch.Tensor | None  # [C, h, w]; None until the depth range is known
    noise: torch.Tensor  # [steps, C, h, w], the frame's own noise for each step
    prompt_embeds: torch.Tensor  # [tokens, dim]
    shape: tuple[int, int]  # height, width of the input and of the output
    number: int  # of frames that the stream received before it


@dataclass
class PromptBlend:
    """Prompt embeddings `[tokens, dim]` that move towards those of the prompt last set."""

    embeds: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    target: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    frames_left: int = 0

    def next_embeds(self) -> torch.Tensor:
        """Move the embeddings one frame closer to the target and return them."""
        if self.frames_left > 1:
            self.embeds = torch.lerp(self.embeds, self.target, 1 / self.frames_left)
        elif self.frames_left == 1:
            self.embeds = self.target
        self.frames_left = max(0, self.frames_left - 1)
        return self.embeds


@dataclass
class FrameCounts:
    """Numbers of frames received and returned."""

    frames_in: int = 0
    frames_out: int = 0
    recovered_at: int = -WINDOW  # `frames_out` when the stream last recovered from NaN


@dataclass
class Outputs:
    """Images that have not been returned yet."""

    finished: list[np.ndarray] = field(default_factory=list)  # the next push returns these first
    launched: list[Any] = field(default_factory=list)  # `steps.DecodedFrames` that the device is computing


@dataclass(eq=False)
class StreamState:
    """The state of one viewer's stream; the functions in `steps` and `warmup` work on it."""

    pipeline: FrameModel | None  # the model; None once the stream is closed
    settings: StreamSettings
    schedule: Schedule
    caches: CacheSource
    draw_noise: Callable[[tuple[int, ...]], torch.Tensor]  # of a shape; see `stream.noise_source`
    scenes: SceneChangeDetector
    similar: SimilarFrameFilter
    rows: list[Frame | None]  # the stream batch: row r holds the frame that waits for step r
    # The last 8 frames, to fill the cache from; before the warmup, those collected for it.
    recent: deque[Frame] = field(default_factory=lambda: deque(maxlen=WARMUP_FRAMES))
    prompt: PromptBlend = field(default_factory=PromptBlend)
    depth_range: DepthRange = field(default_factory=DepthRange)
    counts: FrameCounts = field(default_factory=FrameCounts)
    working_size: tuple[int, int] = (0, 0)  # height, width of processing, set by the first frame
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
        """Whether the warmup is done."""
        return self.lease is not None

    @property
    def cache(self) -> KVCache:
        """The stream's rows of the cache, once it is warm. Do not keep this: a pool may grow."""
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

"""Live2DiffPipeline: the networks of a model and what they compute, without state of any viewer."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from .model.attention import Window
from .model.depth import inverse_depth, standardize_weights
from .model.kv_cache import KVCache
from .model.lcm import Schedule, make_schedule, spread_indices, timesteps_of_indices
from .model.unet import StreamUNet
from .model.vae import VAE, decode, encode, pad_by_replication, vae_scale_factor
from .streaming.cache_pool import CachePools
from .streaming.content_filter import ContentFilter
from .streaming.settings import StreamSettings
from .streaming.state import FrameNetworks
from .streaming.stream import Stream
from .styles import STYLES, Style, find_style
from .weights.swap import WeightSwapper

LARGEST_SIDE = 1024  # of the working size; a larger one needs over 12 GB of cache with SD 1.5 and two steps
WIDEST_ASPECT = 4.0
PUBLISHED_INDICES = (30, 36, 42)  # denoising steps of most published styles
PROMPT_HINT = "Say what the camera sees, and how it looks. The style adds words of its own."
PROMPT_EXAMPLES = ("a person at a desk", "golden evening light", "a snowy night")
CACHE_DTYPES = (None, torch.int8, torch.float8_e4m3fn)


class FrameRuntime(FrameNetworks, Protocol):
    """A faster implementation of the networks."""

    takes: Callable[[Window, KVCache], bool]  # whether `predict` can be called with these
    apply_filter: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]  # applies a content filter to images
    forget: Callable[[], None]  # drops what was compiled for the shapes so far


class Live2DiffPipeline(DiffusionPipeline):
    """The modules of one model, shared by all streams; only a change of style writes to the weights.

    Args:
        size: default working size: a frame is processed at about `size` x `size` pixels, in its aspect ratio.
        t_index_list: default denoising steps, as indices into `num_inference_steps` LCM steps.
        strongest_index: the first step at strength 1: the noisiest that the model was trained on.
        few_step_lora: file in the model's folder with the LoRA for few-step sampling; None if not needed.
        fixed_noise: whether all frames of a stream get the same noise, so that still parts flicker less.
        replicate_borders: whether convolutions pad with the border pixels and not with zeros.
        prompt_hint, prompt_examples: a text for users on what to write, and prompts to try.
    """

    config: Any
    vae: VAE
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: StreamUNet
    scheduler: LCMScheduler
    depth_estimator: DPTForDepthEstimation

    def __init__(
        self,
        vae: VAE,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: StreamUNet,
        scheduler: LCMScheduler,
        depth_estimator: DPTForDepthEstimation,
        size: int = 512,
        t_index_list: list[int] | None = None,
        num_inference_steps: int = 50,
        strongest_index: int = 0,
        few_step_lora: str | None = None,
        fixed_noise: bool = False,
        replicate_borders: bool = False,
        prompt_hint: str = PROMPT_HINT,
        prompt_examples: Sequence[str] = PROMPT_EXAMPLES,
    ) -> None:
        super().__init__()
        # The presets whose weights are available, and the default one.
        self.styles: dict[str, Style] = {n: style for n, style in STYLES.items() if not style.has_weights}
        self.default_style: str | None = None
        self.weight_swapper: WeightSwapper | None = None  # None if no style has weights of its own
        self.runtime: FrameRuntime | None = None  # None for PyTorch's own kernels
        self.content_filter: ContentFilter | None = None  # checks the output
        self.about = ""  # which model this is and why, for users
        standardize_weights(depth_estimator)
        if replicate_borders:
            pad_by_replication(unet, vae)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            depth_estimator=depth_estimator,
        )
        self.register_to_config(
            size=size,
            t_index_list=list(t_index_list or PUBLISHED_INDICES),
            num_inference_steps=num_inference_steps,
            strongest_index=strongest_index,
            few_step_lora=few_step_lora,
            fixed_noise=fixed_noise,
            replicate_borders=replicate_borders,
            prompt_hint=prompt_hint,
            prompt_examples=list(prompt_examples),
        )

    def stream(
        self,
        settings: StreamSettings | None = None,
        *,
        cache_dtype: torch.dtype | None = None,
        pools: CachePools | None = None,
        **changes: Any,
    ) -> Stream:
        """Open a viewer's stream.

        Args:
            settings: None for the default ones.
            cache_dtype: `torch.int8` or `torch.float8_e4m3fn`; None for the precision of the weights.
            pools: cache pools of streams that are pushed together; None for a cache of its own.
            **changes: fields of `StreamSettings` that replace those of `settings`.

        Raises:
            ValueError: a setting is out of range, or other streams are using other weights than the style's.
            OSError: the style's weights cannot be read or downloaded.
        """
        settings = (settings or StreamSettings()).updated(**changes)
        if cache_dtype not in CACHE_DTYPES:
            raise ValueError(
                f"cache_dtype is {cache_dtype}; it must be torch.int8, torch.float8_e4m3fn or None."
            )
        self.working_size(1, 1, settings.size)  # fail now rather than at the first frame
        return Stream(self, settings, cache_dtype, pools)

    def timesteps(self, settings: StreamSettings) -> list[int]:
        """Return the timesteps of a stream with these settings.

        Raises:
            ValueError: there is no such style, or a step is out of range.
        """
        chosen: StreamSettings | Style = settings
        if settings.steps is None and settings.strength is None and settings.t_index_list is None:
            chosen = self.preset(settings.style)
        indices = chosen.t_index_list
        if indices is None:
            indices = self.indices(chosen.steps, chosen.strength)
        return timesteps_of_indices(self.scheduler, list(indices), self.config.num_inference_steps)

    def schedule(self, settings: StreamSettings) -> Schedule:
        """Return the denoising steps of a stream with these settings, on the model's device."""
        return make_schedule(self.scheduler, self.timesteps(settings)).to(self.unet.device)

    def preset(self, style: str | None) -> Style:
        """Return the preset of that name; None is the default style, "" leaves the prompt unchanged.

        Raises:
            ValueError: there is no such preset, or its weights are not available.
        """
        style = self.default_style if style is None else style
        if style in STYLES and style not in self.styles:
            full = self.config.few_step_lora
            needs = " and ".join(STYLES[style].files) if full else "the full model (--model live2diff)"
            raise ValueError(f"The style {style!r} needs {needs}. Choose one of: {', '.join(self.styles)}.")
        return find_style(style, self.styles)

    def fetch(self, style: str | None) -> None:
        """Download the style's files in advance, for `activate_style`; any thread may call it.

        Raises:
            ValueError: there is no such style.
            OSError: a file cannot be downloaded.
        """
        preset = self.preset(style)
        if self.weight_swapper is not None:
            self.weight_swapper.fetch(preset.base, preset.loras)

    def activate_style(self, style: str | None, user: object = None, lora_scale: float = 1.0) -> bool:
        """Write the weights of a style for the stream `user`; return whether they changed.

        Raises:
            ValueError: there is no such style, a file does not fit, or other streams use other weights.
            OSError: a file cannot be read or downloaded.
        """
        preset = self.preset(style)
        if self.weight_swapper is None:
            return False
        return self.weight_swapper.activate(preset.base, [(n, w * lora_scale) for n, w in preset.loras], user)

    def release_style(self, user: object) -> None:
        """Note that the stream `user` has ended and no longer keeps the weights from changing."""
        if self.weight_swapper is not None:
            self.weight_swapper.release(user)

    def indices(self, steps: int | None, strength: float | None) -> list[int]:
        """Return the indices of `steps` denoising steps at `strength`; None is the model's default."""
        own, last = list(self.config.t_index_list), self.config.num_inference_steps - 1
        if steps is None and strength is None:
            return own
        first = own[0] if strength is None else last - int(strength * (last - self.config.strongest_index))
        return spread_indices(first, own[-1] if len(own) > 1 else last, steps or len(own))

    @torch.no_grad()
    def __call__(self, frames: Iterable[np.ndarray], **settings: Any) -> list[np.ndarray]:
        """Translate a clip of uint8 `[height, width, 3]` frames to as many; settings as for `stream`."""
        with closing(self.stream(**settings)) as stream:
            out = [translated for frame in frames for translated in stream.push(frame)]
            return out + stream.flush()

    @property
    def size_multiple(self) -> int:
        """Sides of the working size are multiples of this, so that VAE and UNet halve them evenly."""
        return vae_scale_factor(self.vae) * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def working_size(
        self, height: int, width: int, size: int | tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Return the (height, width) at which frames of `height` x `width` are processed.

        `size` is that of `StreamSettings`; None is the model's default.

        Raises:
            ValueError: `size` is out of range.
        """
        if size is None:
            return self.working_size(height, width, self.config.size)
        multiple = self.size_multiple
        sides: tuple[float, float] = (size, size) if isinstance(size, int) else size
        if min(sides) < 2 * multiple or max(sides) > LARGEST_SIDE:
            raise ValueError(
                f"size {size} is out of range: a side must have {2 * multiple} to {LARGEST_SIDE} pixels."
            )
        if isinstance(size, int):
            aspect = min(max(width / height, 1 / WIDEST_ASPECT), WIDEST_ASPECT)
            sides = size / math.sqrt(aspect), size * math.sqrt(aspect)
        return round(sides[0] / multiple) * multiple, round(sides[1] / multiple) * multiple

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return the (channels, height, width) of the latents of an image of `size` (height, width)."""
        factor = vae_scale_factor(self.vae)
        return self.unet.config.in_channels, size[0] // factor, size[1] // factor

    def _text(self, style: str | None, prompt: str) -> str:
        """Return the tokenizer's input; unpaired surrogates, which JSON can hold, become question marks."""
        return self.preset(style).prompt(prompt).encode("utf-8", "replace").decode()

    def tokenize(self, style: str | None, prompt: str) -> Tensor:
        """Tokenize a style and the viewer's words to `[1, 77]`; words beyond 77 tokens have no effect.

        Raises:
            ValueError: the style is unknown.
        """
        return self.tokenizer(
            self._text(style, prompt),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    @torch.no_grad()
    def encode_prompt(self, style: str | None, prompt: str) -> Tensor:
        """Encode a style and the viewer's words to prompt embeddings `[tokens, dim]`.

        Raises:
            ValueError: the style is unknown.
        """
        tokens = self.tokenize(style, prompt).to(self.text_encoder.device)
        layer = -(self.preset(style).clip_skip + 1)
        hidden = self.text_encoder(tokens, output_hidden_states=True).hidden_states[layer]
        text_model = getattr(self.text_encoder, "text_model", self.text_encoder)  # moved in transformers 5
        return text_model.final_layer_norm(hidden)[0]

    def encode_prompts(self, settings: StreamSettings) -> Tensor:
        """Encode the prompts of a stream, interpolated by `mix`, to prompt embeddings `[tokens, dim]`.

        Raises:
            ValueError: a style is unknown.
        """
        first, *second = [self.encode_prompt(*each) for each in settings.prompts]
        return torch.lerp(first, second[0], settings.mix) if second else first

    def ignored_words(self, settings: StreamSettings) -> str:
        """Return what the text encoder ignores of the prompts, beyond 77 tokens each; "" if all fits."""
        most, ends = self.tokenizer.model_max_length - 2, []
        for prompt in settings.prompts:
            tokens = self.tokenizer(self._text(*prompt)).input_ids[1:-1]
            ends.append(str(self.tokenizer.decode(tokens[most:])).strip())
        return " … ".join(filter(None, ends))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images `[n, 3, height, width]` in `[-1, 1]` to scaled latents `[n, C, h, w]`."""
        return self.runtime.encode(images) if self.runtime else encode(self.vae, images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents `[n, C, h, w]` to images `[n, 3, height, width]` in about `[-1, 1]`.

        Images that the content filter flags are hidden.
        """
        images = self.runtime.decode(latents) if self.runtime else decode(self.vae, latents)
        if self.content_filter is None:
            return images
        if self.runtime:
            return self.runtime.apply_filter(self.content_filter, images)
        return self.content_filter(images)

    @torch.no_grad()
    def inverse_depth(self, images: Tensor) -> Tensor:
        """Estimate inverse depth; see `model.depth.inverse_depth`."""
        if self.runtime:
            return self.runtime.inverse_depth(images)
        return inverse_depth(self.depth_estimator, images)

    @torch.no_grad()
    def predict(self, *inputs: Any) -> Tensor:
        """Run the UNet on the inputs of `StreamUNet.forward`, the window and the cache last."""
        if self.runtime and self.runtime.takes(*inputs[-2:]):
            return self.runtime.predict(*inputs)
        return self.unet(*inputs)


def to_channels_last(*modules: nn.Module) -> None:
    """Convert modules to the channels-last memory format, in place, in which convolutions are faster."""
    for module in modules:
        module.to(memory_format=torch.channels_last)  # pyright: ignore  # missing in torch's overloads

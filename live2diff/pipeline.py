"""Live2DiffPipeline: the weights, and what they do to tensors. Nothing of any viewer is kept here."""

import math
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline, LCMScheduler
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from .config import MAX_DENOISING_STEPS
from .model.attention import Window
from .model.depth import inverse_depth
from .model.kv_cache import KVCache
from .model.lcm import make_schedule, spread_indices, timesteps_of_indices
from .model.unet import StreamUNet
from .model.vae import VAE, decode, encode, vae_scale_factor
from .streaming.cache_pool import CachePools
from .streaming.settings import LONGEST_PROMPT, StreamSettings
from .streaming.stream import Stream
from .styles import STYLES, Style, find_style
from .weights.swap import WeightSwapper

if TYPE_CHECKING:
    from .runtime.openvino import Runtime
    from .streaming.content_filter import ContentFilter

# Of the working size; beyond it a viewer's cache alone takes over 12 GB with SD 1.5's UNet.
LARGEST_SIDE = 1024
WIDEST_ASPECT = 4.0
PUBLISHED_INDICES = (30, 36, 42)  # of most of the published styles


class Live2DiffPipeline(DiffusionPipeline):
    """Text encoder, VAE, depth estimator and UNet of one model, shared by all streams; only a change of
    style writes to its weights.

    Args:
        size: default working size: a frame is worked on at about `size` x `size` pixels, in its own aspect.
        t_index_list: default denoising steps, as indices into `num_inference_steps` LCM steps.
        strongest_index: where a stream of full strength begins: the noisiest step the model was trained on.
        few_step_lora: a file beside the weights, the LoRA that lets a model of many steps do with a few.

    Attributes:
        styles: the presets it can wear.
        default_style: the style of streams that name none.
        runtime: computes a stream's frames in place of PyTorch's own kernels; None if they do it.
        content_filter: looks at what goes out; None for none.
        weight_swapper: writes a style's weights; None if no style has weights of its own.
        about: which model this is, in a sentence for people.
    """

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
    ):
        super().__init__()
        self.styles: dict[str, Style] = {n: style for n, style in STYLES.items() if not style.has_weights}
        self.default_style: str | None = None
        self.weight_swapper: WeightSwapper | None = None
        self.runtime: Runtime | None = None
        self.content_filter: ContentFilter | None = None
        self.about = ""
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
            settings: the settings of the stream; None for the default ones.
            cache_dtype: `torch.int8` or `torch.float8_e4m3fn` for a memory of a byte a number; None for one
                in the precision of the weights.
            pools: where its memory is to be beside that of other streams, to be pushed together with them;
                by default on its own.
            **changes: fields of `StreamSettings` that replace those of `settings`.

        Raises:
            ValueError: a setting out of range, with what is possible; or a style with other weights than
                those that other streams use now.
            OSError: the style's weights cannot be read or downloaded.
        """
        settings = (settings or StreamSettings()).updated(**changes)
        steps, strength, t_index_list = settings.steps, settings.strength, settings.t_index_list
        if steps is None and strength is None and t_index_list is None:
            preset = self.preset(settings.style)
            steps, strength, t_index_list = preset.steps, preset.strength, preset.t_index_list
        indices = self.indices(steps, strength) if t_index_list is None else list(t_index_list)
        timesteps = timesteps_of_indices(self.scheduler, indices, self.config.num_inference_steps)
        if cache_dtype not in (None, torch.int8, torch.float8_e4m3fn):
            raise ValueError(
                f"cache_dtype is {cache_dtype}; it must be torch.int8, torch.float8_e4m3fn or None."
            )
        self.working_size(1, 1, settings.size)  # fail now rather than at the first frame
        return Stream(self, settings, make_schedule(self.scheduler, timesteps), cache_dtype, pools)

    def preset(self, style: str | None) -> Style:
        """Return the preset of that name; None is the default style, "" the prompt as it is.

        Raises:
            ValueError: there is none, or this model cannot wear it.
        """
        style = self.default_style if style is None else style
        if style in STYLES and style not in self.styles:
            full = self.config.few_step_lora
            needs = " and ".join(STYLES[style].files) if full else "the full model (--model live2diff)"
            raise ValueError(f"The style {style!r} needs {needs}. Choose one of: {', '.join(self.styles)}.")
        return find_style(style, self.styles)

    def fetch(self, style: str | None) -> None:
        """Have the files of a style on the disk, so that `wear` is quick; for any thread.

        Raises:
            ValueError: no such style.
            OSError: a file cannot be downloaded.
        """
        preset = self.preset(style)
        if self.weight_swapper is not None:
            self.weight_swapper.fetch(preset.base, preset.loras)

    def activate_style(self, style: str | None, user: object = None, lora_scale: float = 1.0) -> bool:
        """Have the weights of a style, on behalf of the stream `user`; whether they changed.

        Raises:
            ValueError: no such style, `lora_scale` out of range, a file that does not fit, or other streams
                use other weights.
            OSError: a file cannot be read or downloaded.
        """
        if not 0 <= lora_scale <= 2:
            raise ValueError(f"lora_scale is {lora_scale!r}; it must be from 0 to 2.")
        preset = self.preset(style)
        if self.weight_swapper is None:
            return False
        return self.weight_swapper.activate(preset.base, [(n, w * lora_scale) for n, w in preset.loras], user)

    def release_style(self, user: object) -> None:
        """The stream `user` has ended: the weights may change without it."""
        if self.weight_swapper is not None:
            self.weight_swapper.release(user)

    def indices(self, steps: int | None, strength: float | None) -> list[int]:
        """The denoising steps that this number of steps and this strength stand for; None: the model's own.

        Raises:
            ValueError: one of them is out of range.
        """
        own, last = list(self.config.t_index_list), self.config.num_inference_steps - 1
        if steps is not None and steps not in range(1, MAX_DENOISING_STEPS + 1):
            raise ValueError(f"steps is {steps!r}; it must be 1, 2, 3 or 4.")
        if strength is not None and not 0 < strength <= 1:
            raise ValueError(f"strength is {strength!r}; it must be above 0 and at most 1.")
        if steps is None and strength is None:
            return own
        first = own[0] if strength is None else last - int(strength * (last - self.config.strongest_index))
        return spread_indices(first, own[-1] if len(own) > 1 else last, steps or len(own))

    @torch.no_grad()
    def __call__(self, frames, **settings) -> list:
        """Translate a clip: an iterable of uint8 `[height, width, 3]` frames to a list of as many; settings
        as `stream`'s."""
        with closing(self.stream(**settings)) as stream:
            out = [translated for frame in frames for translated in stream.push(frame)]
            return out + stream.flush()

    @property
    def size_multiple(self) -> int:
        """The working size is a multiple of this many pixels, so that every level of VAE and UNet halves
        evenly."""
        return vae_scale_factor(self.vae) * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def working_size(
        self, height: int, width: int, size: int | tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Return the (height, width) at which frames of `height` x `width` are processed.

        `size` is that of `StreamSettings`; None is the model's default.

        Raises:
            ValueError: `size` is out of range.
        """
        size = self.config.size if size is None else size
        if isinstance(size, int):
            aspect = min(max(width / height, 1 / WIDEST_ASPECT), WIDEST_ASPECT)
            asked, wanted = (size, size), (size / math.sqrt(aspect), size * math.sqrt(aspect))
        else:
            asked = wanted = tuple(size)
        smallest = 2 * self.size_multiple
        if len(asked) != 2 or min(asked) < smallest or max(asked) > LARGEST_SIDE:
            raise ValueError(
                f"size {size} is out of range: a side must have {smallest} to {LARGEST_SIDE} pixels."
            )
        sides = tuple(max(1, round(side / self.size_multiple)) * self.size_multiple for side in wanted)
        return sides

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a picture of `size` (height, width)."""
        cell = vae_scale_factor(self.vae)
        return self.unet.config.in_channels, size[0] // cell, size[1] // cell

    def _text(self, style: str | None, prompt: str) -> str:
        """What the tokenizer gets; half a character (JSON can spell one) becomes a question mark."""
        return self.preset(style).prompt(prompt).encode("utf-8", "replace").decode()

    def tokenize(self, style: str | None, prompt: str) -> torch.Tensor:
        """A style and the viewer's words as tokens `[1, 77]`; words beyond 77 tokens have no effect.

        Raises:
            ValueError: an unknown style, or a prompt over 4000 characters.
        """
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(
                f"The prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} are possible."
            )
        return self.tokenizer(
            self._text(style, prompt),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    @torch.no_grad()
    def encode_prompt(self, style: str | None, prompt: str) -> torch.Tensor:
        """Prompt embeddings `[tokens, dim]` of a style and the viewer's words.

        Raises:
            ValueError: as `tokenize`.
        """
        tokens = self.tokenize(style, prompt).to(self.text_encoder.device)
        layer = -(self.preset(style).clip_skip + 1)
        hidden = self.text_encoder(tokens, output_hidden_states=True).hidden_states[layer]
        text_model = getattr(self.text_encoder, "text_model", self.text_encoder)  # moved in transformers 5
        return text_model.final_layer_norm(hidden)[0]

    def ignored_words(self, style: str | None, prompt: str) -> str:
        """The end of the prompt that does not fit into the text encoder's 77 tokens; empty if all of it
        does."""
        tokens = self.tokenizer(self._text(style, prompt)).input_ids[1:-1]
        return self.tokenizer.decode(tokens[self.tokenizer.model_max_length - 2 :]).strip()

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures `[n, 3, height, width]` in `[-1, 1]` to scaled latents `[n, C, h, w]`."""
        return self.runtime.encode(pictures) if self.runtime else encode(self.vae, pictures)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents `[n, C, h, w]` to pictures `[n, 3, height, width]` in `[-1, 1]`, not clamped, and
        hidden where the content filter objects."""
        pictures = self.runtime.decode(latents) if self.runtime else decode(self.vae, latents)
        return pictures if self.content_filter is None else self.content_filter(pictures)

    @torch.no_grad()
    def inverse_depth(self, pictures: torch.Tensor) -> torch.Tensor:
        """As `depth.inverse_depth`."""
        return (
            self.runtime.inverse_depth(pictures)
            if self.runtime
            else inverse_depth(self.depth_estimator, pictures)
        )

    @torch.no_grad()
    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        depth_latents: torch.Tensor,
        window: Window,
        cache: KVCache,
    ) -> torch.Tensor:
        """As `StreamUNet.forward`."""
        by_runtime = self.runtime is not None and self.runtime.takes(window, cache)
        predict = self.runtime.predict if by_runtime else self.unet
        return predict(sample, timestep, prompt_embeds, depth_latents, window, cache)

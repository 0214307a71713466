"""Live2DiffPipeline: the weights, and what they do to tensors. Nothing of any viewer is kept here."""

import math

import torch
from diffusers import DiffusionPipeline, LCMScheduler
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from .config import MAX_DENOISING_STEPS
from .sampler import make_schedule, spread_indices, timesteps_of_indices
from .stream import Stream
from .styles import find_style
from .unet import StreamUNet
from .vae import VAE, cell_side, decode, encode

# Of the working size; beyond it a viewer's cache alone takes over 12 GB with SD 1.5's UNet.
LARGEST_SIDE = 1024
WIDEST_ASPECT = 4.0
PUBLISHED_INDICES = (30, 36, 42)  # of most of the published styles
LONGEST_PROMPT = 4000  # characters; the tokenizer keeps 77 tokens in any case


class Live2DiffPipeline(DiffusionPipeline):
    """Text encoder, VAE, depth estimator and UNet of one model, shared by all streams and never written to.

    Args:
        size: default working size: a frame is worked on at about `size` x `size` pixels, in its own aspect.
        t_index_list: default denoising steps, as indices into `num_inference_steps` LCM steps.
        strongest_index: where a stream of full strength begins: the noisiest step the model was trained on.
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
    ):
        super().__init__()
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
        )

    def stream(
        self,
        style: str | None = None,
        prompt: str = "",
        seed: int = 0,
        steps: int | None = None,
        strength: float | None = None,
        t_index_list: list[int] | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> Stream:
        """Open a viewer's stream.

        Args:
            style: a name in `STYLES`, or None for the prompt as it is.
            prompt: the viewer's words.
            seed: decides everything: same seed and frames, same output.
            steps: 1 to 4 denoising steps, from the first one on; by default the model's own number.
            strength: how far a picture may go from the camera's, from near 0, a touch, to 1; by default the
                model's own first step.
            t_index_list: the steps themselves, as increasing indices; overrides `steps` and `strength`.
            size: working size, `n` for about n x n pixels in the frames' aspect, or `(height, width)`.

        Raises:
            ValueError: a setting out of range, with what is possible.
        """
        indices = self.indices(steps, strength) if t_index_list is None else list(t_index_list)
        timesteps = timesteps_of_indices(self.scheduler, indices, self.config.num_inference_steps)
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed is {seed}; it must fit into 64 bits.")
        size = self.config.size if size is None else size
        self.working_size(1, 1, size)  # speak up now rather than at the first frame
        return Stream(self, make_schedule(self.scheduler, timesteps), style, prompt, seed, size)

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
        first = own[0] if strength is None else last - round(strength * (last - self.config.strongest_index))
        return spread_indices(first, own[-1] if len(own) > 1 else last, steps or len(own))

    @torch.no_grad()
    def __call__(self, frames, **settings) -> list:
        """Translate a clip: an iterable of uint8 `[height, width, 3]` frames to a list of as many; settings
        as `stream`'s."""
        stream = self.stream(**settings)
        out = [translated for frame in frames for translated in stream.push(frame)]
        return out + stream.flush()

    @property
    def cell(self) -> int:
        """The working size is a multiple of this many pixels, so that every level of VAE and UNet halves
        evenly."""
        return cell_side(self.vae) * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def working_size(self, height: int, width: int, size: int | tuple[int, int]) -> tuple[int, int]:
        """The `(height, width)` at which frames of `height` x `width` are worked on.

        Raises:
            ValueError: `size` is out of range.
        """
        if isinstance(size, int):
            aspect = min(max(width / height, 1 / WIDEST_ASPECT), WIDEST_ASPECT)
            asked, wanted = (size, size), (size / math.sqrt(aspect), size * math.sqrt(aspect))
        else:
            asked = wanted = tuple(size)
        smallest = 2 * self.cell
        if len(asked) != 2 or min(asked) < smallest or max(asked) > LARGEST_SIDE:
            raise ValueError(
                f"size {size} is out of range: a side must have {smallest} to {LARGEST_SIDE} pixels."
            )
        sides = tuple(max(1, round(side / self.cell)) * self.cell for side in wanted)
        return sides

    @torch.no_grad()
    def encode_prompt(self, style: str | None, prompt: str) -> torch.Tensor:
        """Prompt embeddings `[tokens, dim]` of a style and the viewer's words; words beyond 77 tokens have no
        effect.

        Raises:
            ValueError: an unknown style, or a prompt over 4000 characters.
        """
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(f"The prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} are read.")
        preset = find_style(style)
        tokens = self.tokenizer(
            preset.prompt(prompt),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.text_encoder.device)
        hidden = self.text_encoder(tokens, output_hidden_states=True).hidden_states[-(preset.clip_skip + 1)]
        text_model = getattr(self.text_encoder, "text_model", self.text_encoder)  # moved in transformers 5
        return text_model.final_layer_norm(hidden)[0]

    def ignored_words(self, style: str | None, prompt: str) -> str:
        """The end of the prompt that does not fit into the text encoder's 77 tokens; empty if all of it
        does."""
        tokens = self.tokenizer(find_style(style).prompt(prompt)).input_ids[1:-1]
        return self.tokenizer.decode(tokens[self.tokenizer.model_max_length - 2 :]).strip()

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures `[n, 3, height, width]` in `[-1, 1]` to scaled latents `[n, C, h, w]`."""
        return encode(self.vae, pictures)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents `[n, C, h, w]` to pictures `[n, 3, height, width]` in `[-1, 1]`, not clamped."""
        return decode(self.vae, latents)

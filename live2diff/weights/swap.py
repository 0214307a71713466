"""Swap a model's weights for those of another style, in place.

This does not use peft's fusing or diffusers' hot-swapping, on purpose. Weights are always `base + LoRAs`,
computed in float32 from the unchanged base, so after a hundred swaps they are bit-identical to a fresh load,
while fusing and unfusing accumulates rounding errors. And parameters are written, never replaced, and no
layer is wrapped, so compiled code and captured CUDA graphs stay valid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from .checkpoints import (
    Tensors,
    check_fits,
    is_added,
    normalise_text_encoder,
    normalise_vae,
    read_tensors,
    split_single_file,
)
from .lora import read_lora


@dataclass(frozen=True)
class WeightSet:
    """A base (None: the model's own), and the LoRAs on top of it with their scales."""

    base: str | None = None
    loras: tuple[tuple[str, float], ...] = ()


class WeightSwapper:
    """Write the weights of styles into a pipeline's modules.

    All streams of a model share its weights, which change only while no other stream uses them: one viewer's
    style never changes another's image.

    Args:
        parts: the modules that a style may change, as from `parts_of`.
        own: the folder of the model, with its own base weights.
        find: returns the path of a base or a LoRA by name, like `hub.find`.
        always: LoRAs that are added to every style, such as the few-step LoRA.
    """

    def __init__(
        self,
        parts: dict[str, nn.Module],
        own: Path,
        find: Callable[[str], Path],
        always: Sequence[tuple[str, float]] = (),
    ):
        self.parts, self.always = parts, tuple(always)
        self._find = cache(find)  # which may need the network
        self._read_lora = cache(lambda name: read_lora(self._find(name), parts))
        self._read_base = lru_cache(maxsize=1)(
            lambda base: read_base(own if base is None else self._find(base), parts)
        )
        self._active: WeightSet | None = WeightSet()  # None after a write that failed midway
        self._users: WeakSet = WeakSet()

    def fetch(self, base: str | None, loras: Sequence[tuple[str, float]]) -> None:
        """Download the files of a style; raise as `hub.find`. Any thread may call it while streams run."""
        for name in (base, *(name for name, _ in loras)):
            if name is not None:
                self._find(name)

    def activate(self, base: str | None, loras: Sequence[tuple[str, float]], user: Any) -> bool:
        """Write these weights for the stream `user`, unless they are active; return whether they changed.

        Everything is read and checked before anything is written.

        Raises:
            ValueError: other streams use other weights, or a file does not fit.
            OSError: a file cannot be read or downloaded.
        """
        target = WeightSet(base, (*loras, *self.always))
        changes = target != self._active
        if changes:
            if any(other is not user for other in self._users):
                raise ValueError(
                    "Another viewer is using this model in a style with other weights. Choose a style with "
                    "the same weights, or try again when they have left."
                )
            self._write(target)
        if user is not None:
            self._users.add(user)
        return changes

    def release(self, user: Any) -> None:
        """Note that the stream `user` has ended and no longer keeps the weights from changing."""
        self._users.discard(user)

    @torch.no_grad()
    def _write(self, target: WeightSet) -> None:
        previous = self._active or WeightSet()
        added = [(self._read_lora(name), scale) for name, scale in target.loras if scale]
        removed = [self._read_lora(name) for name, scale in previous.loras if scale]
        tensors = self._read_base(target.base)
        touched = set().union(*removed, *(layers for layers, _ in added))
        write_all = self._active is None or target.base != previous.base
        self._active = None
        for part, module in self.parts.items():
            for name, parameter in module.named_parameters():
                base = tensors[part].get(base_name(part, name))
                if base is None or not (write_all or (part, name) in touched):
                    continue
                value = base.to(parameter.device, torch.float32, copy=True)
                for layers, scale in added:
                    if (part, name) in layers:
                        value += scale * layers[part, name].delta(value.shape, value.device)
                parameter.copy_(value)
        self._active = target


def base_name(part: str, name: str) -> str:
    """Return the name of a parameter in the tensors that `read_base` returns."""
    return name.removeprefix("text_model.") if part == "text_encoder" else name


def parts_of(pipeline: Any) -> dict[str, nn.Module]:
    """Return the modules of a pipeline that a style may change: not a tiny VAE."""
    names = ["unet", "text_encoder", *(["vae"] if isinstance(pipeline.vae, AutoencoderKL) else [])]
    return {name: getattr(pipeline, name) for name in names}


def read_base(path: Path, parts: dict[str, nn.Module]) -> dict[str, Tensors]:
    """Read weights for `parts` from a folder in diffusers' layout or a single file in the original one.

    Raises:
        ValueError: the weights do not fit; the message names the first ones.
        OSError: a file is missing or cannot be read.
    """
    if path.is_dir():
        tensors = {part: read_tensors(weights_file(path / part)) for part in parts}
        tensors["text_encoder"] = normalise_text_encoder(tensors["text_encoder"])
        if "vae" in parts:
            tensors["vae"] = normalise_vae(tensors["vae"])
    else:
        unet: Any = parts["unet"]
        tensors = split_single_file(read_tensors(path), dict(unet.config), path)
    tensors["unet"] = {name: tensor for name, tensor in tensors["unet"].items() if not is_added(name)}
    for part, module in parts.items():
        expected = {base_name(part, n): p for n, p in module.named_parameters() if not is_added(n)}
        check_fits(expected, tensors[part], path / part if path.is_dir() else path)
    return tensors


def weights_file(folder: Path) -> Path:
    """Return the weight file of one part: safetensors before pickles, full precision before half."""
    for ending in (".safetensors", ".fp16.safetensors", ".bin"):
        for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
            if (folder / (stem + ending)).is_file():
                return folder / (stem + ending)
    raise FileNotFoundError(f"{folder} holds no weights, such as diffusion_pytorch_model.safetensors.")

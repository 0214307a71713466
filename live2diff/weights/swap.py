"""Changing a model's weights to those of another style, in place.

The parameters that all streams share are written, never replaced: compiled code and captured graphs go on
with them. What is written is always `base + LoRAs`, computed from the untouched base in float32, so nothing
adds up over many changes and the bits are those of a fresh load.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from diffusers import AutoencoderKL
from torch import nn

from .checkpoints import (
    Tensors,
    check_fits,
    plain_text_names,
    plain_vae_names,
    read_tensors,
    split_single_file,
)
from .lora import Layers, read_lora

# All that the conversion from the original layout wants to know of Stable Diffusion 1.x's VAE.
SD_VAE = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)

Look = tuple[str | None, tuple[tuple[str, float], ...]]  # a base (None: the model's own), and LoRAs on it


class WeightSwapper:
    """The weights that a pipeline wears, and who depends on them.

    Weights belong to all streams of a model. So they change only as long as no other stream uses them: one
    viewer can never restyle another's picture.

    Args:
        parts: the pipeline's modules that a style may change: "unet", "text_encoder" and, unless it is a tiny
            one, "vae".
        own: the folder of the model, with its own base weights.
        find: turns the name of a base or a LoRA into the file or folder where it lies, as `hub.find`.
        always: LoRAs that go with every style, such as the one for few steps.
    """

    def __init__(
        self,
        parts: dict[str, nn.Module],
        own: Path,
        find: Callable[[str], Path],
        always: Sequence[tuple[str, float]] = (),
    ):
        self.parts, self.always = parts, tuple(always)
        self._own, self._find = own, find
        self._look: Look = (None, ())
        self._base: tuple[str | None, dict[str, Tensors]] | None = None  # the last one that was read
        self._loras: dict[str, Layers] = {}
        self._places: dict[str, Path] = {}  # found once: looking again may ask the network
        self._users: WeakSet = WeakSet()

    def fetch(self, base: str | None, loras: Sequence[tuple[str, float]]) -> None:
        """Have the files of a style on the disk, which may take a download. Touches no weights: any thread
        may call it while streams run.

        Raises:
            ValueError, OSError: as `hub.find`.
        """
        for name in (base, *(name for name, _ in loras)):
            if name is not None:
                self._place(name)

    def activate(self, base: str | None, loras: Sequence[tuple[str, float]], user: Any) -> bool:
        """Make these the weights, if they are not, on behalf of the stream `user`. All is read and checked
        before anything is written.

        Returns:
            Whether the weights changed.

        Raises:
            ValueError: other streams use other weights, or a file does not fit.
            OSError: a file cannot be read or downloaded.
        """
        look: Look = (base, (*loras, *self.always))
        changes = look != self._look
        if changes:
            if any(other is not user for other in self._users):
                raise ValueError(
                    "Somebody else is using this model in a style with other weights. Choose a style with "
                    "the same weights, or try again when they have left."
                )
            self._write(look)
        if user is not None:
            self._users.add(user)
        return changes

    def release(self, user: Any) -> None:
        """The stream `user` needs the weights no more."""
        self._users.discard(user)

    @torch.no_grad()
    def _write(self, look: Look) -> None:
        base, loras = look
        added = [(self._lora(name), weight) for name, weight in loras if weight]
        before = [self._lora(name) for name, weight in self._look[1] if weight]
        tensors = self._tensors(base)
        touched = {target for layers in [*before, *(layers for layers, _ in added)] for target in layers}
        rebased = base != self._look[0]
        self._look = ("unfinished", ())  # should writing fail, the next one writes all
        for part, module in self.parts.items():
            given = tensors[part]
            for name, parameter in module.named_parameters():
                key = base_name(part, name)
                if key not in given or not (rebased or (part, name) in touched):
                    continue
                value = given[key].to(parameter.device, torch.float32, copy=True)
                for layers, weight in added:
                    if (part, name) in layers:
                        value += weight * layers[part, name].delta(value.shape, value.device)
                parameter.copy_(value)
        self._look = look

    def _place(self, name: str) -> Path:
        if name not in self._places:
            self._places[name] = self._find(name)
        return self._places[name]

    def _lora(self, name: str) -> Layers:
        if name not in self._loras:
            self._loras[name] = read_lora(self._place(name), self.parts)
        return self._loras[name]

    def _tensors(self, base: str | None) -> dict[str, Tensors]:
        """The untouched weights of a base, by part; in memory, or mapped into it."""
        if self._base is None or self._base[0] != base:
            place = self._own if base is None else self._place(base)
            self._base = base, read_base(place, self.parts)
        return self._base[1]


def base_name(part: str, name: str) -> str:
    """A parameter's name in what `read_base` gives."""
    return name.removeprefix("text_model.") if part == "text_encoder" else name


def parts_of(pipeline: Any) -> dict[str, nn.Module]:
    """The modules of a pipeline that a style may change."""
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return parts | ({"vae": pipeline.vae} if isinstance(pipeline.vae, AutoencoderKL) else {})


def read_base(place: Path, parts: dict[str, nn.Module]) -> dict[str, Tensors]:
    """The weights for `parts` from a folder in diffusers' layout or a single file in the original one.

    Raises:
        ValueError: the weights do not fit; the message names the first ones.
        OSError: a file is missing or cannot be read.
    """
    if place.is_dir():
        found = {part: read_tensors(weights_file(place / part)) for part in parts}
        found["text_encoder"] = plain_text_names(found["text_encoder"])
        if "vae" in parts:
            found["vae"] = plain_vae_names(found["vae"])
    else:
        found = split_single_file(read_tensors(place), dict(parts["unet"].config), SD_VAE, place)
    for part, module in parts.items():
        wanted = {base_name(part, name): parameter for name, parameter in module.named_parameters()}
        if part == "unet":
            wanted = {name: p for name, p in wanted.items() if not is_added(name)}
            found[part] = {name: t for name, t in found[part].items() if not is_added(name)}
        check_fits(wanted, found[part], place / part if place.is_dir() else place)
    return found


def is_added(name: str) -> bool:
    """Whether a parameter of this name is one that the base lacks: of motion modules or depth mapping."""
    return ".motion_modules." in name or name.startswith("flow_conv_in.")


def weights_file(folder: Path) -> Path:
    """The file with the weights of one part; safetensors before pickles, full precision before half."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds no weights: it lacks {WEIGHT_FILES[0]}.")

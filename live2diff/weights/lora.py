"""LoRA files in the layouts of kohya, diffusers and PEFT, as exact differences to a model's weights.

Every layout spells the same thing: for some layer of UNet or text encoder two small matrices, down and up,
and maybe an alpha; the layer's weight changes by `alpha / rank * up @ down`. Only the spelling of the layer
differs, so each layer is looked up by one plain spelling of its name.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .checkpoints import check_names, read_tensors

# What a name begins with, and which part of the pipeline that is.
PREFIXES = (
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te_", "text_encoder"),
    ("base_model.model.", "unet"),
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
)
ENDINGS = re.compile(
    r"(\.|_)(?P<kind>lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up|lora_linear_layer\.down"
    r"|lora_linear_layer\.up|alpha|lora\.alpha)(\.default)?(\.weight)?$"
)
KINDS = {"A": "down", "B": "up", "down": "down", "up": "up", "alpha": "alpha"}


@dataclass(frozen=True)
class Factors:
    """One layer's change: down `[rank, …]`, up `[out, rank, …]`, and what their product is multiplied by."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def delta(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """The change of a weight of `shape` at full strength, float32."""
        down, up = (part.to(device, torch.float32) for part in (self.down, self.up))
        if up.ndim == 4 and up.shape[2:] != (1, 1):  # the second of two convolutions may be the wide one
            return self.scale * torch.einsum("orhw,ri->oihw", up, down.flatten(1))
        return self.scale * (up.flatten(1) @ down.flatten(1)).view(shape)


Layers = dict[tuple[str, str], Factors]  # by part of the pipeline and name of the weight


def plain(name: str, part: str) -> str:
    """One spelling for a layer's name in all layouts."""
    name = name.replace(".processor.", ".").removeprefix("text_model.").removeprefix("text_model_")
    name = re.sub(r"\.to_out(\.0)?$", ".to_out.0", name)
    if part == "text_encoder":  # old diffusers files name its layers like the UNet's
        name = re.sub(r"\.to_([qkv]|out)(\.0)?$", r".\1_proj", name)
    return name.replace(".", "_")


def split_name(name: str) -> tuple[str, str, str] | None:
    """The part, the layer's plain name and the kind ("down", "up", "alpha") of a tensor in a LoRA file; None
    if it is named otherwise."""
    # Old diffusers files: `…attn1.processor.to_q_lora.down.weight`.
    name = re.sub(r"\.to_(q|k|v|out)_lora\.(down|up)", r".to_\1.lora.\2", name)
    ending = ENDINGS.search(name)
    prefix, part = next(((p, part) for p, part in PREFIXES if name.startswith(p)), ("", "unet"))
    if ending is None:
        return None
    return part, plain(name[len(prefix) : ending.start()], part), KINDS[re.split(r"[._]", ending["kind"])[-1]]


def read_lora(file: str | Path, parts: dict[str, nn.Module]) -> Layers:
    """A LoRA file as the changes it makes to the modules in `parts`, `{"unet": …, "text_encoder": …}`.

    Raises:
        ValueError: no LoRA of a supported kind, or one whose layers this model does not have; the message
            names the first ones.
        OSError: it cannot be read.
    """
    weights = {
        (part, plain(name.removesuffix(".weight"), part)): (part, name)
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if name.endswith(".weight") and parameter.ndim in (2, 4)
    }
    found: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    strange = []
    tensors = read_tensors(file)
    for name, tensor in tensors.items():
        split = split_name(name)
        target = weights.get(split[:2]) if split else None
        if target is None:
            strange.append(name)
        else:
            found.setdefault(target, {})[split[2]] = tensor
    if not found:
        raise ValueError(
            f"No layer of {file} matches this model (it has, for instance, {sorted(tensors)[0]!r}). It is no "
            "LoRA, one for another model than Stable Diffusion 1.x, or of a kind that is not supported, like "
            "LoHa."
        )
    check_names(strange, "has, beside layers that fit,", file)
    return {target: checked(target, kinds, parts, file) for target, kinds in found.items()}


def checked(
    target: tuple[str, str], kinds: dict[str, torch.Tensor], parts: dict[str, nn.Module], file: str | Path
) -> Factors:
    """One layer's factors; raises `ValueError` if they are not two, or do not fit its weight."""
    part, name = target
    if not {"down", "up"} <= kinds.keys():
        raise ValueError(f"{file} has only half of what it changes {name} of the {part} by.")
    down, up, alpha = kinds["down"], kinds["up"], kinds.get("alpha")
    shape = parts[part].get_parameter(name).shape
    rank = len(down) if down.ndim else 0
    fits = (
        min(up.ndim, down.ndim) >= 2
        and (len(up), up.shape[1], rank, down.shape[1]) == (shape[0], rank, up.shape[1], shape[1])
        and down.shape[2:].numel() * up.shape[2:].numel() == shape[2:].numel()
    )
    if not fits:
        raise ValueError(
            f"{name} of the {part} has the shape {list(shape)}, and {file} changes it by {list(up.shape)} "
            f"times {list(down.shape)}: it was made for another model."
        )
    if rank == 0:
        raise ValueError(f"{file} changes {name} of the {part} by matrices of rank 0: it holds nothing.")
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"{file} has {alpha.numel()} numbers for one alpha, that of {name} of the {part}.")
    alpha = float(rank if alpha is None else alpha)
    if not (math.isfinite(alpha) and down.isfinite().all() and up.isfinite().all()):
        raise ValueError(f"{file} has NaN or infinity in an alpha or a weight of {name}: it is damaged.")
    return Factors(down, up, alpha / rank)

"""Read LoRA files in the layouts of kohya, diffusers and PEFT as exact changes of a model's weights.

Each layout has two small matrices, down and up, and optionally an alpha for some layers of UNet or text
encoder; a layer's weight changes by `alpha / rank * up @ down`. Only the names of the layers differ, so each
layer is looked up by a normalised name.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .checkpoints import Tensors, check_names, is_added, read_tensors

# The name of a tensor: part of the pipeline, layer, and kind.
NAME = re.compile(
    r"(?P<part>lora_unet_|lora_te1?_|base_model\.model\.|unet\.|text_encoder\.)?(?P<layer>.+?)[._]"
    r"((lora_linear_layer\.|lora[._])(?P<kind>down|up|A|B)|(lora\.)?alpha)(\.default)?(\.weight)?"
)
KINDS = {"A": "down", "B": "up", None: "alpha"}


@dataclass(frozen=True)
class Factors:
    """The change of one layer: down `[rank, in, ...]`, up `[out, rank, ...]`, scale of their product."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def delta(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return the change of a weight of `shape` at full strength, float32."""
        down, up = (part.to(device, torch.float32) for part in (self.down, self.up))
        if up.ndim == 4 and up.shape[2:] != (1, 1):  # the kernel is in the second convolution
            return self.scale * torch.einsum("orhw,ri->oihw", up, down.flatten(1))
        return self.scale * (up.flatten(1) @ down.flatten(1)).view(shape)


Layers = dict[tuple[str, str], Factors]  # by (part of the pipeline, name of the weight)


def normalise(name: str, part: str) -> str:
    """Return the spelling of a layer's name that is common to all layouts."""
    name = name.replace(".processor.", ".").removeprefix("text_model.").removeprefix("text_model_")
    name = re.sub(r"\.to_out(\.0)?$", ".to_out.0", name)
    if part == "text_encoder":  # in old diffusers files, its layers have names like the UNet's
        name = re.sub(r"\.to_([qkv]|out)(\.0)?$", r".\1_proj", name)
    return name.replace(".", "_")


def parse_name(name: str) -> tuple[tuple[str, str], str] | None:
    """Split a tensor's name into (part, normalised layer) and "down", "up" or "alpha"; None if unknown."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    is_text = (found["part"] or "").startswith(("lora_te", "text_encoder"))
    part = "text_encoder" if is_text else "unet"
    return (part, normalise(found["layer"], part)), KINDS.get(found["kind"], found["kind"])


def read_lora(file: str | Path, parts: Mapping[str, nn.Module]) -> Layers:
    """Read a LoRA file as changes of the modules in `parts`, `{"unet": ..., "text_encoder": ...}`.

    Raises:
        ValueError: it is not a LoRA of a supported kind, or has layers that a base model lacks, such as those
            of motion modules; the message names the first ones.
        OSError: it cannot be read.
    """
    weights = {
        (part, normalise(name.removesuffix(".weight"), part)): (part, name)
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if name.endswith(".weight") and parameter.ndim in (2, 4) and not is_added(name)
    }
    layers: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    unknown = []
    tensors = read_tensors(file)
    for name, tensor in tensors.items():
        layer, kind = parse_name(name) or (None, "")
        if layer in weights:
            layers.setdefault(weights[layer], {})[kind] = tensor
        else:
            unknown.append(name)
    if not layers:
        raise ValueError(
            f"No layer of {file} matches this model (it has, for instance, {sorted(tensors)[0]!r}). It is "
            "not a LoRA, or one for another model than Stable Diffusion 1.x, or of an unsupported kind, "
            "like LoHa."
        )
    check_names(unknown, "has, besides layers that fit,", file)
    changes = {}
    for (part, name), found in layers.items():
        shape = parts[part].get_parameter(name).shape
        changes[part, name] = check_factors(found, shape, f"{name} of the {part}", file)
    return changes


def check_factors(tensors: Tensors, shape: Sequence[int], name: str, file: str | Path) -> Factors:
    """Check the tensors of one layer and return them as factors.

    Raises:
        ValueError: a tensor is missing, does not fit a weight of `shape`, or is not finite.
    """
    if not {"down", "up"} <= tensors.keys():
        raise ValueError(f"{file} has only half of the change of {name}.")
    down, up, alpha = tensors["down"], tensors["up"], tensors.get("alpha")
    rank = len(down) if down.ndim else 0
    # On ZeroGPU `shape` is a plain tuple and not a `torch.Size`.
    fits = (
        min(up.ndim, down.ndim) >= 2
        and (len(up), up.shape[1], down.shape[1]) == (shape[0], rank, shape[1])
        and math.prod(down.shape[2:]) * math.prod(up.shape[2:]) == math.prod(shape[2:])
    )
    if not fits:
        raise ValueError(
            f"{name} has the shape {list(shape)}, and {file} changes it by {list(up.shape)} times "
            f"{list(down.shape)}: it was made for another model."
        )
    if rank == 0:
        raise ValueError(f"{file} changes {name} by matrices of rank 0: it is empty.")
    most = max(shape[0], math.prod(shape[1:]))
    if rank > most:  # a small file can declare tensors of any size
        raise ValueError(f"{file} changes {name} by matrices of rank {rank}; more than {most} is of no use.")
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"{file} has {alpha.numel()} numbers for one alpha, that of {name}.")
    scale = float(rank if alpha is None else alpha) / rank
    if not (math.isfinite(scale) and all(factor.float().isfinite().all() for factor in (down, up))):
        raise ValueError(f"{file} has NaN or infinity in an alpha or a weight of {name}: it is damaged.")
    return Factors(down, up, scale)

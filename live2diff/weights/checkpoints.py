"""Read checkpoint files in the layouts that are in circulation.

They are not trusted: a pickle is read by PyTorch's restricted unpickler only, which builds tensors and runs
no code.
"""

import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]

# What the restricted unpickler raises for damaged files, found by fuzzing.
BROKEN_PICKLE = (
    AssertionError,
    AttributeError,
    BadZipFile,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

# Prefixes of parameter names in the original single-file layout of Stable Diffusion, by part.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
# What else such files contain: EMA weights, unused projections, the noise schedule.
UNUSED = ("model_ema.", "cond_stage_model.logit_scale", "cond_stage_model.text_projection")
SCHEDULE = ("alphas_", "betas", "log_one_minus_", "posterior_", "sqrt_", "lvlb_weights", "scale_factor")
# The part of the VAE's configuration that diffusers' conversion reads.
SD_VAE = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
# The layers of a VAE's attention as the first diffusers releases named them.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_tensors(file: str | Path) -> Tensors:
    """Read all tensors of a `.safetensors` file or of a pickled `.ckpt`, `.pt` or `.bin`.

    They are memory-mapped if the format allows it. A nested `state_dict` is unwrapped.

    Raises:
        ValueError: the file is cut off, holds something else, or holds code.
        OSError: the file cannot be read.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: check the name.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds more than tensors, or is no checkpoint. Code in a file is never run: get it as "
            ".safetensors."
        ) from None
    except (SafetensorError, *BROKEN_PICKLE) as error:
        reason = str(error).partition("\n")[0] or "it ends too early"
        raise ValueError(
            f"{file} is cut off, or no checkpoint ({reason}). Copy or download it again."
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__} and no named tensors.")
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    for name in tensors:
        if not isinstance(name, str):
            raise ValueError(f"{file} has a tensor under {name!r}, which is not a name: it is no checkpoint.")
    if not tensors:
        raise ValueError(f"{file} holds no named tensors.")
    return tensors


def read_published(file: str | Path) -> Tensors:
    """Read `live2diff.ckpt` with the names of `StreamUNet`, without tables that can be computed."""
    tensors = {name.removeprefix("module."): tensor for name, tensor in read_tensors(file).items()}
    return {n: tensor for n, tensor in tensors.items() if "grid" not in n and "pos_encoder.pe" not in n}


def split_single_file(tensors: Tensors, unet_config: dict, source: str | Path) -> dict[str, Tensors]:
    """Split a checkpoint in the original layout into `{"unet": ..., "vae": ..., "text_encoder": ...}`.

    Parameters are renamed to diffusers' and transformers' names.

    Raises:
        ValueError: it is not such a checkpoint, or has unknown parameters; the message names them.
    """
    missing = [part for part, prefix in PREFIXES.items() if not any(n.startswith(prefix) for n in tensors)]
    if missing:
        raise ValueError(
            f"{source} has no {' and no '.join(missing)} in the layout of Stable Diffusion 1.x. "
            "A LoRA goes under loras, not under base."
        )
    known = (*PREFIXES.values(), *UNUSED, *SCHEDULE)
    check_names([name for name in tensors if not name.startswith(known)], "has unknown parameters", source)
    return {
        "unet": convert_ldm_unet_checkpoint(tensors, unet_config),
        "vae": convert_ldm_vae_checkpoint(tensors, SD_VAE),
        "text_encoder": normalise_text_encoder(convert_ldm_clip_checkpoint(tensors)),
    }


def normalise_text_encoder(tensors: Tensors) -> Tensors:
    """Drop the prefix `text_model.`, which only some releases use, and the table of positions."""
    named = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not name.endswith("position_ids")}


def normalise_vae(tensors: Tensors) -> Tensors:
    """Rename and reshape the layers of a VAE's attention to those of the current diffusers."""
    renamed = {}
    for name, tensor in tensors.items():
        if ".attentions." in name:
            parent, layer, kind = name.rsplit(".", 2)
            name = f"{parent}.{OLD_ATTENTION.get(layer, layer)}.{kind}"
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor  # formerly 1 x 1 convolutions
        renamed[name] = tensor
    return renamed


def is_added(name: str) -> bool:
    """Return whether a UNet's parameter belongs to the motion modules or the depth mapping."""
    return ".motion_modules." in name or name.startswith("flow_conv_in.")


def check_fits(expected: Mapping[str, torch.Tensor], tensors: Tensors, source: str | Path) -> None:
    """Raise a `ValueError` that names what is missing in `tensors`, unknown, or of another shape."""
    check_names(expected.keys() - tensors.keys(), "lacks", source)
    check_names(tensors.keys() - expected.keys(), "has unknown parameters", source)
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(
                f"{name} in {source} has the shape {list(tensors[name].shape)}, not {list(tensor.shape)}: it "
                "belongs to another model."
            )


def check_names(wrong: Iterable[str], problem: str, source: str | Path) -> None:
    """Raise a `ValueError` that lists the first three wrong names, if there are any."""
    names = sorted(wrong)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{source} {problem} {', '.join(names[:3])}{more}: it is not a model of this kind.")

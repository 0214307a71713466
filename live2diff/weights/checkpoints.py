"""Reading checkpoint files as they are found in the world. They come from strangers: a pickle is read by
PyTorch's restricted reader only, which builds tensors and runs no code."""

import pickle
import struct
from collections.abc import Iterable, Iterator
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

# What the restricted reader raises over pickles with wrong bytes in them, found by trying.
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

# Beginnings of the names in the original single-file layout of Stable Diffusion, by what they belong to.
SINGLE_FILE_PARTS = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
# What else such files hold: the noise schedule, averages kept for training, the trainer's own state.
SINGLE_FILE_REST = ("model_ema.", "cond_stage_model.logit_scale", "cond_stage_model.text_projection")
SCHEDULE_NAMES = ("alphas_", "betas", "log_one_minus_", "posterior_", "sqrt_", "lvlb_weights", "scale_factor")
# VAEs of the first diffusers releases name their attention's layers so.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_tensors(file: str | Path) -> Tensors:
    """All tensors of a `.safetensors` file or of a pickled `.ckpt`, `.pt` or `.bin`, mapped into memory where
    the format allows it. A state dict wrapped in `state_dict` is unwrapped.

    Raises:
        ValueError: the file is cut off, holds something else, or holds code.
        OSError: it cannot be read.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: check the name.")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(
                f"{file} is cut off, or no safetensors file ({error}). Copy or download it again."
            ) from None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds more than tensors, or is no checkpoint. Code from a file is never run: get it as "
            ".safetensors."
        ) from None
    except BROKEN_PICKLE as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise ValueError(
            f"{file} is cut off, or no checkpoint ({reason}). Copy or download it again."
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__} and no named tensors.")
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{file} holds no named tensors.")
    return tensors


def read_published(file: str | Path) -> Tensors:
    """The tensors of `live2diff.ckpt` by their names in `StreamUNet`: without the prefix of a parallel
    training, and without the tables that can be computed.

    Raises:
        ValueError, OSError: as `read_tensors`.
    """
    named = {name.removeprefix("module."): tensor for name, tensor in read_tensors(file).items()}
    return {name: t for name, t in named.items() if "grid" not in name and "pos_encoder.pe" not in name}


def split_single_file(tensors: Tensors, unet_config: dict, vae_config: dict, source: str | Path) -> dict:
    """A checkpoint in the original layout as `{"unet": …, "vae": …, "text_encoder": …}`, each by diffusers'
    and transformers' names.

    Raises:
        ValueError: it is no such checkpoint, or holds parameters that belong to nothing; the message names
            them.
    """
    missing = [part for part, prefix in SINGLE_FILE_PARTS.items() if not begins(tensors, prefix)]
    if missing:
        raise ValueError(
            f"{source} has no {' and no '.join(missing)} in the layout of Stable Diffusion 1.x. "
            "A LoRA goes under loras, not under base."
        )
    known = (*SINGLE_FILE_PARTS.values(), *SINGLE_FILE_REST, *SCHEDULE_NAMES)
    check_names([name for name in tensors if not name.startswith(known)], "has, unknown here,", source)
    return {
        "unet": convert_ldm_unet_checkpoint(tensors, unet_config),
        "vae": convert_ldm_vae_checkpoint(tensors, vae_config),
        "text_encoder": plain_text_names(convert_ldm_clip_checkpoint(tensors)),
    }


def begins(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def plain_text_names(tensors: Tensors) -> Tensors:
    """A text encoder's tensors without the outer `text_model.` that came and went between releases, and
    without the table of positions, which is only counting."""
    named = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not name.endswith("position_ids")}


def plain_vae_names(tensors: Tensors) -> Tensors:
    """A VAE's tensors with the attention's layers named and shaped as they are now."""
    renamed = {}
    for name, tensor in tensors.items():
        *parents, layer, kind = name.split(".")
        if "attentions" in parents and layer in OLD_ATTENTION:
            name = ".".join([*parents, OLD_ATTENTION[layer], kind])
        renamed[name] = tensor.reshape(len(tensor), -1) if is_squeezed(name, tensor) else tensor
    return renamed


def is_squeezed(name: str, tensor: torch.Tensor) -> bool:
    """Whether an attention's weight is still a 1 x 1 convolution's."""
    return "attentions" in name and tensor.ndim == 4


def check_fits(wanted: dict[str, torch.Tensor], given: Tensors, source: str | Path) -> None:
    """Raises `ValueError` that names what is missing, unknown or of another shape in `given`."""
    check_names(wanted.keys() - given.keys(), "lacks", source)
    check_names(given.keys() - wanted.keys(), "has, unknown here,", source)
    for name, shape in shapes_apart(wanted, given):
        raise ValueError(
            f"{name} in {source} has the shape {list(given[name].shape)}, and {shape} is wanted: it belongs "
            "to another model."
        )


def shapes_apart(wanted: Tensors, given: Tensors) -> Iterator[tuple[str, list[int]]]:
    return ((name, list(t.shape)) for name, t in wanted.items() if t.shape != given[name].shape)


def check_names(wrong: Iterable[str], what: str, source: str | Path) -> None:
    """Raises `ValueError` if there are any wrong names, with the first ones."""
    names = sorted(wrong)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{source} {what} {', '.join(names[:3])}{more}: it is no model of this kind.")

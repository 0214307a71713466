"""Read the parts of the published model, from which `loading.convert` assembles a pipeline.

The parts are base, motion modules with depth mapping, tiny VAE, depth estimator and few-step LoRA; `Sources`
says where they are.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation
from transformers.utils import logging as transformers_logging

from ..model.attention import TemporalAttention, positional_table
from ..model.lcm import build_scheduler
from ..model.unet import StreamUNet
from .checkpoints import Tensors, check_fits, check_names, is_added, read_tensors
from .hub import find


@dataclass(frozen=True)
class Sources:
    """Where the parts of the published model are: folders, files or Hub names, `owner/name[/file]`."""

    base: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    motion: str = "Leoxing/Live2Diff/live2diff.ckpt"
    few_step_lora: str = "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"
    vae: str = "madebyollin/taesd"  # "" for that of the base, which is slower than this tiny one
    depth: str = "Intel/dpt-hybrid-midas"


PUBLISHED = Sources()


def converted_folder(sources: Sources) -> Path:
    """Return the cache folder of the converted model: a hash of the sources' names, sizes and times."""
    described = []
    for source in astuple(sources):
        described.append(source)
        if source and Path(source).exists():
            stat = Path(source).stat()
            described.append(f"{stat.st_size} {stat.st_mtime_ns}")
    digest = hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
    return Path(constants.HF_HOME) / "live2diff" / digest


@contextmanager
def new_folder(out: Path, needed_bytes: float) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `out` if the block succeeds, and deleted otherwise.

    Raises:
        OSError: the disk has no room for `needed_bytes`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < needed_bytes:
        raise OSError(
            errno.ENOSPC,
            f"The disk is full: the converted model needs {needed_bytes / 1e9:.2g} GB in {out.parent}, and "
            f"{free / 1e9:.2g} GB are free. Free some space, or set HF_HOME to a folder on another disk.",
        )
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out.parent, ignore_cleanup_errors=True) as new:
        yield Path(new)
        os.chmod(new, 0o755)
        os.replace(new, out)


def load_components(
    base: str | Path,
    depth_estimator: str | Path = Sources.depth,
    *,
    added: Tensors | None = None,
    motion: str | Path = "",
    vae: str | Path | None = None,
) -> dict[str, Any]:
    """Load Stable Diffusion 1.5, or a model like it, as the components of a pipeline in float32.

    `added` are weights of motion modules and depth mapping, and base weights that replace those of `base`;
    `motion` is their file, for messages. Without `added`, these modules are untrained and change nothing. The
    other arguments are folders or Hub names in diffusers' layout; `vae` is a tiny one to replace the base's.

    Raises:
        ValueError: the model does not fit; for a UNet, the message names the parameters.
        OSError: a part cannot be read or downloaded.
    """
    base, depth_estimator = find(str(base)), find(str(depth_estimator))
    vae_class, vae_folder = (AutoencoderTiny, find(str(vae))) if vae else (AutoencoderKL, base / "vae")
    dtype = torch.float32
    with reading(base):
        loaded: Any = UNet2DConditionModel.from_pretrained(
            base, subfolder="unet", output_loading_info=True, dtype=dtype
        )
        stock, found = loaded
        check_names(found["missing_keys"], "lacks", base)
        check_names(found["unexpected_keys"], "has unknown parameters", base)
        text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", dtype=dtype)
        tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    with reading(vae_folder):
        autoencoder = vae_class.from_pretrained(vae_folder, dtype=dtype)
    with reading(depth_estimator):
        estimator = DPTForDepthEstimation.from_pretrained(depth_estimator, dtype=dtype)
    return {
        "vae": autoencoder,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": add_motion(stock, added, motion),
        "scheduler": build_scheduler(),
        "depth_estimator": estimator,
    }


def add_motion(
    stock: UNet2DConditionModel, added: Tensors | None = None, source: str | Path = ""
) -> StreamUNet:
    """Return a `StreamUNet` that shares the weights of a stock UNet, with `added` or untrained ones besides.

    Raises:
        ValueError: `added` lacks a parameter, or has one that is unknown or of another shape; the message
            names it and `source`.
    """
    with torch.device("meta"):  # without allocating or initialising weights
        unet = cast(StreamUNet, StreamUNet.from_config(stock.config))
    weights = stock.state_dict()
    if added is None:
        unet.load_state_dict(weights, strict=False, assign=True)
        unet.add_motion()
        return unet.eval()
    expected = {name: t for name, t in unet.state_dict().items() if is_added(name) or name in added}
    check_fits(expected, added, source)
    weights |= {name: tensor.float() for name, tensor in added.items()}
    unet.load_state_dict(weights, assign=True)
    for module in unet.modules():
        if isinstance(module, TemporalAttention):
            module.positions = positional_table(module.to_q.in_features)
    return unet.eval()


def added_weights(unet: StreamUNet) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of motion modules and depth mapping by name."""
    return {name: parameter for name, parameter in unet.named_parameters() if is_added(name)}


def load_added(unet: StreamUNet, file: str | Path) -> None:
    """Load motion modules and depth mapping from a file that contains nothing else.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape; the message names it.
        OSError: the file cannot be read.
    """
    parameters, tensors = added_weights(unet), read_tensors(file)
    check_fits(parameters, tensors, file)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Silence the libraries that read from `folder` in the block, and name it in their errors.

    Raises:
        ValueError: a file is damaged.
        OSError: a file is missing.
    """
    try:
        with quiet():
            yield
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"A file in {folder} is damaged ({error}). Copy or download it again.") from None
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{folder} cannot be read: {reason} Copy or download it again.") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and log messages of diffusers and transformers in the block."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        for logging in (diffusers_logging, transformers_logging):
            logging.enable_progress_bar()

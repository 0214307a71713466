"""The published model, put together from its parts: base, motion modules and depth mapping, tiny VAE, depth
estimator, few-step LoRA (`Sources` says where they are)."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from ..model.attention import TemporalAttention, positional_table
from ..model.lcm import build_scheduler
from ..model.unet import StreamUNet
from ..pipeline import Live2DiffPipeline
from .checkpoints import Tensors, check_fits, check_names, read_published, read_tensors
from .hub import find
from .lora import read_lora
from .swap import is_added, parts_of

FEW_STEP_LORA = "few_step_lora.safetensors"  # in a converted folder
Report = Callable[[str], None]


@dataclass(frozen=True)
class Sources:
    """Where the parts of the published model are: Hub names, folders or files. A Hub repository's file is
    named `owner/name/file`. `vae` may be "" for the base's own, slower than the tiny one."""

    base: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    motion: str = "Leoxing/Live2Diff/live2diff.ckpt"
    few_step_lora: str = "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"
    vae: str = "madebyollin/taesd"
    depth: str = "Intel/dpt-hybrid-midas"


PUBLISHED = Sources()


def converted_folder(sources: Sources) -> Path:
    """Where the converted model of these sources is kept: in the Hub's cache, by what they are called and,
    for files, what they are."""
    told = []
    for source in astuple(sources):
        told.append(source)
        if source and Path(source).exists():
            stat = Path(source).stat()
            told.append(f"{stat.st_size} {stat.st_mtime_ns}")
    digest = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    return Path(constants.HF_HOME) / "live2diff" / digest


def convert(
    out: str | Path,
    sources: Sources = PUBLISHED,
    dtype: torch.dtype = torch.float16,
    report: Report = lambda line: None,
) -> None:
    """Put the published model together and write it to the folder `out`, as safetensors; it appears there in
    one piece or not at all. The few-step LoRA lies beside the weights, not in them: styles need it again.

    Raises:
        ValueError: a part does not fit; the message names it. `out` exists already.
        OSError: a part cannot be read or downloaded, or there is no room.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists already: name a new folder.")
    places = {}
    for field in fields(sources):
        name = getattr(sources, field.name)
        if name:
            report(f"Fetching {name}")
            places[field.name] = find(name)
    report("Putting the parts together")
    pipeline = load_base(
        places["base"], places["depth"], added=read_published(places["motion"]), vae=places.get("vae"),
        motion=places["motion"],
    )  # fmt: skip
    read_lora(places["few_step_lora"], parts_of(pipeline))  # speak up now rather than when it is used
    pipeline.register_to_config(few_step_lora=FEW_STEP_LORA)
    report(f"Writing {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    check_disk(out.parent, pipeline, dtype)
    partly = Path(tempfile.mkdtemp(prefix=".partly-", dir=out.parent))
    try:
        with quiet():
            pipeline.to(dtype)
            pipeline.save_pretrained(partly)
        save_file(
            {name: t.contiguous() for name, t in read_tensors(places["few_step_lora"]).items()},
            partly / FEW_STEP_LORA,
        )
        partly.chmod(0o755)
        os.replace(partly, out)
    finally:
        shutil.rmtree(partly, ignore_errors=True)


def check_disk(folder: Path, pipeline: Live2DiffPipeline, dtype: torch.dtype) -> None:
    """Raises `OSError` if the disk of `folder` has no room for the pipeline's weights."""
    modules = [module for module in pipeline.components.values() if isinstance(module, torch.nn.Module)]
    needed = 1.1 * dtype.itemsize * sum(p.numel() for module in modules for p in module.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"The disk is full: the converted model needs {needed / 1e9:.2g} GB in {folder}, and "
            f"{free / 1e9:.2g} GB are free. Free some room, or set HF_HOME to a folder on another disk.",
        )


def load_base(
    base: str | Path,
    depth_estimator: str | Path = Sources.depth,
    *,
    added: Tensors | None = None,
    motion: str | Path = "",
    vae: str | Path | None = None,
) -> Live2DiffPipeline:
    """Stable Diffusion 1.5, or a model like it, as a pipeline of float32.

    Args:
        base: a folder in diffusers' layout, or the name of such a repository on the Hugging Face Hub.
        depth_estimator: a folder or the Hub name of a DPT.
        added: the weights of motion modules and depth mapping, and of the base where they differ from it; by
            default they are untrained: as yet they change nothing.
        motion: what `added` was read from, for messages.
        vae: a folder or the Hub name of a tiny VAE to use instead of the base's own.

    Raises:
        ValueError: it is no such model; for a UNet, the message names the parameters that do not fit.
        OSError: a part cannot be read or downloaded.
    """
    base, depth_estimator = find(str(base)), find(str(depth_estimator))
    single = {"dtype": torch.float32}
    with reading(base):
        stock, found = UNet2DConditionModel.from_pretrained(
            base, subfolder="unet", output_loading_info=True, **single
        )
        check_names(found["missing_keys"], "lacks", base)
        check_names(found["unexpected_keys"], "has, unknown here,", base)
        text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", **single)
        tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        autoencoder = None if vae else AutoencoderKL.from_pretrained(base, subfolder="vae", **single)
    if vae:
        place = find(str(vae))
        with reading(place):
            autoencoder = AutoencoderTiny.from_pretrained(place, **single)
    with reading(depth_estimator):
        estimator = DPTForDepthEstimation.from_pretrained(depth_estimator, **single)
    return Live2DiffPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=with_motion(stock, added, motion),
        scheduler=build_scheduler(),
        depth_estimator=estimator,
    )


def with_motion(
    stock: UNet2DConditionModel, added: Tensors | None = None, source: str | Path = ""
) -> StreamUNet:
    """A `StreamUNet` of the very weights of a stock UNet, with `added` on top, or with untrained motion
    modules and depth mapping; nothing is held twice.

    Raises:
        ValueError: `added` lacks a parameter, or has one that is unknown or of another shape; the message
            names it and `source`.
    """
    with torch.device("meta"):  # an outline, which costs neither memory nor time
        unet = StreamUNet.from_config(stock.config)
    weights = stock.state_dict()
    if added is None:
        unet.load_state_dict(weights, strict=False, assign=True)
        unet.add_motion()
        return unet.eval()
    wanted = {name: p for name, p in unet.state_dict().items() if is_added(name) or name in added}
    check_fits(wanted, added, source)
    weights |= {name: tensor.float() for name, tensor in added.items()}
    unet.load_state_dict(weights, assign=True)
    for module in unet.modules():
        if isinstance(module, TemporalAttention):
            module.positions = positional_table(module.to_q.in_features)
    return unet.eval()


def added_weights(unet: StreamUNet) -> dict[str, torch.nn.Parameter]:
    """The parameters of motion modules and depth mapping, by their names in the published checkpoints."""
    return {name: parameter for name, parameter in unet.named_parameters() if is_added(name)}


def load_added(unet: StreamUNet, file: str | Path) -> None:
    """Fill motion modules and depth mapping from a file that holds these and nothing else.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape; the message names it.
        OSError: the file cannot be read.
    """
    mine, given = added_weights(unet), read_tensors(file)
    check_fits(mine, given, file)
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(given[name])


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Have the libraries read from `place` in silence, and what is wrong with a file told as such.

    Raises:
        ValueError: a file is damaged.
        OSError: one is missing.
    """
    try:
        with quiet():
            yield
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"A file in {place} is damaged ({error}). Copy or download it again.") from None
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{place} cannot be read: {reason} Copy or download it again.") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries from printing bars and notes about each file they read."""
    verbosity = diffusers.utils.logging.get_verbosity()
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    diffusers.utils.logging.set_verbosity_error()
    for logging in libraries:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(verbosity)
        for logging in libraries:
            logging.enable_progress_bar()

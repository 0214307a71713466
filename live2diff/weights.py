"""From a name or a folder to a pipeline.

    python -m live2diff.weights convert OUT [--base ...] [--motion ...] [--few-step-lora ...] [--vae ...]

The published weights lie in five places and partly in a pickle. They are put together once, into a folder of
safetensors that `Live2DiffPipeline.from_pretrained` reads, and that is what is loaded from then on.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from .attention import TemporalAttention, positional_table
from .checkpoints import Tensors, check_fits, check_names, read_published, read_tensors
from .hub import CHECKPOINTS, find, is_hub_name
from .lora import read_lora
from .pipeline import Live2DiffPipeline
from .restyle import Restyler, is_added, parts_of
from .sampler import build_scheduler
from .styles import STYLES, Style
from .unet import StreamUNet

NANO = Path(__file__).parent / "nano"
FEW_STEP_LORA = "few_step_lora.safetensors"  # in a converted folder
GPU_BYTES = 6 * 2**30  # weights in half precision, one viewer's cache at 512 x 512 with 2 steps, and some air
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


def load(
    model: str = "auto",
    device: str | None = None,
    *,
    style: str | None = None,
    loras: Sequence[tuple[str, float]] = (),
    styles: dict[str, Style] | None = None,
    checkpoints: str | Path = CHECKPOINTS,
    sources: Sources = Sources(),
    report: Report = lambda line: None,
) -> Live2DiffPipeline:
    """Load a model.

    Args:
        model: "nano", the model shipped with this package; "live2diff", the published one, put together from
            `sources`; a folder written by `convert` or `save_pretrained`; the name of a repository on the
            Hugging Face Hub that holds such a folder; "auto" for the published one if it can be had and there
            is a GPU with room for it, else nano. The pipeline's `about` says which it is and why.
        device: "cpu", "cuda", "mps"; by default the fastest there is. Half precision on GPUs, single on CPUs.
        style: the style of streams that name none.
        loras: files or Hub names `owner/name/file`, and weights, that go with every style.
        styles: more presets, as `read_styles` gives.
        checkpoints: the folder where the files that styles name are looked for.
        report: told in words what is going on, step by step.

    Raises:
        ValueError: there is no such model, or a part of it does not fit; the message names it.
        OSError: it cannot be read or downloaded.
    """
    device, about = device or best_device(), ""
    if model == "auto":
        model, about = choose(device, sources, report)
    folder = folder_of(model, sources, report)
    report(f"Reading {model}")
    cpu = torch.device(device).type == "cpu"
    with quiet():
        pipeline = Live2DiffPipeline.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32 if cpu else torch.float16,
        )
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.config.few_step_lora:
        check_room(device)
    report(f"Moving the weights to {device}")
    pipeline.to(device)
    for module in (pipeline.vae, pipeline.unet, pipeline.depth_estimator):
        module.to(memory_format=torch.channels_last)
    pipeline.about = about or f"Model: {model}."
    pipeline.default_style = style
    give_styles(pipeline, folder, STYLES | (styles or {}), loras, checkpoints)
    report("Putting on the style" if style else "Ready")
    pipeline.wear(style)
    return pipeline


def give_styles(
    pipeline: Live2DiffPipeline,
    folder: Path,
    styles: dict[str, Style],
    loras: Sequence[tuple[str, float]],
    checkpoints: str | Path,
) -> None:
    """Tell a pipeline read from `folder` which styles it can wear, and who changes its weights for them."""
    few_step = pipeline.config.few_step_lora
    if few_step or loras:
        always = [*loras, *([(str(folder / few_step), 1.0)] if few_step else [])]
        locate = partial(find, checkpoints=checkpoints)
        pipeline.restyler = Restyler(parts_of(pipeline), folder, locate, always)
    pipeline.styles = {
        name: style
        for name, style in styles.items()
        if not style.has_weights or (few_step and can_be_had(style, checkpoints))
    }


def folder_of(model: str, sources: Sources, report: Report) -> Path:
    """The folder that a model's name stands for, downloaded and converted if need be."""
    if model == "nano":
        return NANO
    if model == "live2diff" and not Path(model).is_dir():
        folder = converted_folder(sources)
        if not (folder / "model_index.json").is_file():
            convert(folder, sources, report=report)
        return folder
    if not Path(model).is_dir() and not is_hub_name(model):
        raise ValueError(
            f"There is no model {model!r}: give 'nano', 'live2diff', a folder or a Hub name, 'owner/name'."
        )
    folder = find(model)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"The folder {str(folder)!r} holds no model: it has no model_index.json.")
    return folder


def can_be_had(style: Style, checkpoints: str | Path) -> bool:
    """Whether the weights of a style are on the disk, or have a Hub name."""
    names = [name for name in (style.base, *(lora for lora, _ in style.loras)) if name]
    return all(Path(n).exists() or (Path(checkpoints) / n).exists() or is_hub_name(n) for n in names)


def choose(device: str, sources: Sources, report: Report) -> tuple[str, str]:
    """The model to take where none is asked for, and why, in a sentence."""
    if torch.device(device).type != "cuda":
        return "nano", "Model: nano, the small one, as there is no CUDA GPU here for the full one."
    try:
        check_room(device)
        folder_of("live2diff", sources, report)
    except (OSError, ValueError) as error:
        return "nano", f"Model: nano, the small one. The full one cannot be had: {error}"
    return "live2diff", "Model: Live2Diff, the full one."


def check_room(device: str) -> None:
    """Raises `ValueError` if a CUDA GPU has too little free memory for the full model."""
    if torch.device(device).type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0]
    if free < GPU_BYTES:
        raise ValueError(
            f"The GPU has {free / 2**30:.1f} GiB of free memory, and the full model needs about "
            f"{GPU_BYTES / 2**30:.0f}. Close what else uses it, or take --model nano."
        )


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
    sources: Sources = Sources(),
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
    with quiet():
        stock, found = UNet2DConditionModel.from_pretrained(
            base, subfolder="unet", dtype=torch.float32, output_loading_info=True
        )
        check_names(found["missing_keys"], "lacks", base)
        check_names(found["unexpected_keys"], "has, unknown here,", base)
        if vae:
            autoencoder = AutoencoderTiny.from_pretrained(find(str(vae)), dtype=torch.float32)
        else:
            autoencoder = AutoencoderKL.from_pretrained(base, subfolder="vae", dtype=torch.float32)
        return Live2DiffPipeline(
            vae=autoencoder,
            text_encoder=CLIPTextModel.from_pretrained(base, subfolder="text_encoder", dtype=torch.float32),
            tokenizer=CLIPTokenizer.from_pretrained(base, subfolder="tokenizer"),
            unet=with_motion(stock, added, motion),
            scheduler=build_scheduler(),
            depth_estimator=DPTForDepthEstimation.from_pretrained(depth_estimator, dtype=torch.float32),
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


def best_device() -> str:
    """The fastest kind of device there is: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 when the folder is written, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m live2diff.weights", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    told = commands.add_parser("convert", help="put the published model together as a folder of safetensors")
    told.add_argument("out", metavar="OUT", help="a new folder, for --model")
    for field in fields(Sources):
        flag = "--" + field.name.replace("_", "-")
        told.add_argument(flag, default=field.default, help="a Hub name, a folder or a file (%(default)s)")
    told.add_argument("--full-precision", action="store_true", help="float32: twice the size")
    options = parser.parse_args(words)
    sources = Sources(**{field.name: getattr(options, field.name) for field in fields(Sources)})
    dtype = torch.float32 if options.full_precision else torch.float16
    try:
        convert(options.out, sources, dtype, report=partial(print, file=sys.stderr, flush=True))
    except (ValueError, OSError) as error:
        print("live2diff: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

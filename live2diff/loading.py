"""Load a model by name, as a pipeline that is ready for use.

    python -m live2diff.loading convert OUT [--base ...] [--motion ...] [--vae ...] [--depth ...] ...

The published weights are in five repositories, and partly in a pickle. They are converted once to a folder of
safetensors, which `Live2DiffPipeline.from_pretrained` reads from then on.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from .command import run_main
from .errors import is_out_of_memory
from .pipeline import Live2DiffPipeline, to_channels_last
from .runtime.device import best_device, check_device, release_memory
from .runtime.mps import spare_memory
from .styles import STYLES, Style
from .weights.checkpoints import read_published, read_tensors
from .weights.convert import PUBLISHED, Sources, converted_folder, load_components, new_folder, quiet, reading
from .weights.hub import CHECKPOINTS, find, find_local, is_hub_name
from .weights.lora import read_lora
from .weights.swap import WeightSwapper, parts_of

NANO = Path(__file__).parent / "nano"
RANGES = "activation_ranges.json"  # in the folder of a model that is small enough for `runtime.openvino`
FEW_STEP_LORA = "few_step_lora.safetensors"  # in a converted folder
# Computed, not measured: 3.1 GB for weights in half precision, 0.9 GB for activations, 0.9 GB for the 8-bit
# caches of one viewer and one clip at 384 x 384 with one step, and some for CUDA itself.
GPU_BYTES = 5 * 2**30
TOO_LARGE = "The full one does not fit into the GPU's memory."
Report = Callable[[str], None]


def load(
    model: str = "auto",
    device: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    style: str | None = None,
    loras: Sequence[tuple[str, float]] = (),
    styles: dict[str, Style] | None = None,
    checkpoints: str | Path = CHECKPOINTS,
    sources: Sources = PUBLISHED,
    eager: bool = False,
    compiled: bool = True,
    safety_checker: bool | str | None = None,
    report: Report = lambda line: None,
) -> Live2DiffPipeline:
    """Load a model.

    Args:
        model: "nano", the model shipped with this package; "live2diff", the published one, assembled from
            `sources`; a folder written by `convert` or `save_pretrained`, or a Hub repository with one;
            "auto" for the published one if it is available and there is a GPU with enough memory, else nano.
            The pipeline's `about` says which it is and why.
        device: "cpu", "cuda" or "mps"; by default the fastest that works.
        dtype: by default float16, on a CPU float32.
        style: the default style of streams.
        loras: files or Hub names `owner/name/file` with their scales, for every style.
        styles: more presets, as `read_styles` returns.
        checkpoints: the folder with the weight files of styles.
        sources: where the parts of the published model are.
        eager: whether to use PyTorch's own kernels only.
        compiled: whether to compile the blocks of the networks on a CUDA GPU, and to compute some in 8-bit
            floats, where that makes frames faster.
        safety_checker: whether a content filter checks the results, or its weights as a folder or Hub name;
            by default it does for the full model on a Space.
        report: called with a line of text at each step.

    Raises:
        ValueError: there is no such model, a part of it does not fit, or the device does not work; the
            message says which.
        OSError: the model cannot be read or downloaded.
        torch.OutOfMemoryError: a model other than "auto" does not fit into memory.
    """
    device, problem = (device, "") if device else best_device()
    check_device(device)
    if problem:
        report(problem)
    options: dict[str, Any] = dict(device=device, dtype=dtype, style=style, loras=loras, styles=styles or {})
    options |= dict(checkpoints=checkpoints, sources=sources, eager=eager, compiled=compiled)
    options |= dict(safety_checker=safety_checker)
    if model != "auto":
        return assemble(model, f"Model: {model}.", report=report, **options)
    name, about = choose_model(device, sources, report, problem)
    try:
        return assemble(name, about, report=report, **options)
    except RuntimeError as error:
        if name == "nano" or not is_out_of_memory(error):
            raise
    release_memory()
    report(f"{TOO_LARGE} Continuing with nano.")
    return assemble("nano", f"Model: nano, the small one. {TOO_LARGE}", report=report, **options)


def assemble(
    model: str,
    about: str,
    *,
    device: str,
    dtype: torch.dtype | None,
    style: str | None,
    loras: Sequence[tuple[str, float]],
    styles: dict[str, Style],
    checkpoints: str | Path,
    sources: Sources,
    eager: bool,
    compiled: bool,
    safety_checker: bool | str | None,
    report: Report,
) -> Live2DiffPipeline:
    """Build the pipeline of a model; arguments as for `load`."""
    folder = model_folder(model, sources, report)
    report(f"Reading {model}")
    pipeline = read_pipeline(folder, device, dtype, report)
    pipeline.about = about
    add_content_filter(pipeline, safety_checker, report)
    add_styles(pipeline, folder, styles, loras, checkpoints, report)
    pipeline.default_style = style
    if style:
        report("Applying the style")
    pipeline.activate_style(style)
    if not eager:
        accelerate(pipeline, folder, compiled, report)
    return pipeline


def read_pipeline(folder: Path, device: str, dtype: torch.dtype | None, report: Report) -> Live2DiffPipeline:
    """Read the pipeline in `folder` and move it to `device`, without styles or a faster runtime yet."""
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    options = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
    with reading(folder):
        pipeline = Live2DiffPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.config["few_step_lora"]:
        check_gpu_memory(device)
    report(f"Moving the weights to {device}")
    pipeline.to(device)
    if torch.device(device).type == "mps":
        spare_memory(pipeline.unet)
    to_channels_last(pipeline.vae, pipeline.unet, pipeline.depth_estimator)
    return pipeline


def add_content_filter(
    pipeline: Live2DiffPipeline, safety_checker: bool | str | None, report: Report
) -> None:
    """Add a content filter if `safety_checker` asks for it; see `load`."""
    if safety_checker is None:
        safety_checker = bool(pipeline.config["few_step_lora"] and os.environ.get("SPACE_ID"))
    if safety_checker:
        from .streaming.content_filter import ABOUT, CHECKER, load_content_filter

        report("Loading the content filter")
        name = safety_checker if isinstance(safety_checker, str) else CHECKER
        pipeline.content_filter = load_content_filter(pipeline.unet.device, pipeline.unet.dtype, name)
        pipeline.about += ABOUT


def add_styles(
    pipeline: Live2DiffPipeline,
    folder: Path,
    styles: dict[str, Style],
    loras: Sequence[tuple[str, float]],
    checkpoints: str | Path,
    report: Report,
) -> None:
    """Add the weight swapper to a pipeline read from `folder`, and the presets whose files are available."""
    few_step = pipeline.config["few_step_lora"]
    if few_step or loras:
        always = [*loras, *([(str(folder / few_step), 1.0)] if few_step else [])]
        locate = partial(find, checkpoints=checkpoints)
        pipeline.weight_swapper = WeightSwapper(parts_of(pipeline), folder, locate, always)

    def missing(style: Style) -> list[str]:
        return [n for n in style.files if not is_hub_name(n) and find_local(n, checkpoints) is None]

    pipeline.styles = {
        name: style
        for name, style in (STYLES | styles).items()
        if not style.has_weights or (few_step and not missing(style))
    }
    for name in sorted(styles.keys() - pipeline.styles.keys()):
        lacks = ", ".join(missing(styles[name])) or "the full model"
        report(f"The style {name!r} is not available: it needs {lacks}.")


def accelerate(pipeline: Live2DiffPipeline, folder: Path, compiled: bool, report: Report) -> None:
    """Add a runtime faster than PyTorch's own kernels to a pipeline read from `folder`, if there is one."""
    ranges, device = folder / RANGES, pipeline.unet.device.type
    if device == "cuda":
        from .runtime import trial

        trial.accelerate(pipeline, compiled, report)
        release_memory()  # of the trial
    # OpenVINO's graphs contain the weights, so these must not change.
    elif (
        ranges.is_file()
        and (device, pipeline.unet.dtype, pipeline.weight_swapper) == ("cpu", torch.float32, None)
        and platform.machine() in ("x86_64", "AMD64")
        and find_spec("openvino") is not None
    ):
        from .runtime import openvino

        try:
            openvino.accelerate(pipeline, json.loads(ranges.read_text()), report=report)
        except OSError as error:  # the disk is full or read-only
            report(f"Continuing with PyTorch's own kernels, which are slower: {error}")


def model_folder(model: str, sources: Sources, report: Report) -> Path:
    """Return the folder of a model by its name; download and convert the model if necessary."""
    if model == "nano":
        return NANO
    if model == "live2diff":  # also where a folder has this name, such as this package's
        folder = converted_folder(sources)
        if not (folder / "model_index.json").is_file():
            try:
                convert(folder, sources, report=report)
            except (OSError, ValueError):
                if not (folder / "model_index.json").is_file():  # else another process has written it
                    raise
        return folder
    if not Path(model).expanduser().is_dir() and not is_hub_name(model):
        raise ValueError(
            f"There is no model {model!r}: give 'nano', 'live2diff', a folder or a Hub name, 'owner/name'."
        )
    folder = find(model)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"The folder {str(folder)!r} holds no model: it has no model_index.json.")
    return folder


def load_base(
    base: str | Path, depth_estimator: str | Path = Sources.depth, **added: Any
) -> Live2DiffPipeline:
    """Load Stable Diffusion 1.5, or a model like it, as a pipeline; arguments as for `load_components`."""
    return Live2DiffPipeline(**load_components(base, depth_estimator, **added))


def convert(
    out: str | Path,
    sources: Sources = PUBLISHED,
    dtype: torch.dtype = torch.float16,
    report: Report = lambda line: None,
) -> None:
    """Assemble the published model and write it to the folder `out` as safetensors, whole or not at all.

    The few-step LoRA stays a separate file, as it is also added to the weights of styles.

    Raises:
        ValueError: a part does not fit (the message names it), or `out` exists and is not empty.
        OSError: a part cannot be read or downloaded, or the disk is full.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists already: name a new folder.")
    paths = {}
    for field in fields(sources):
        name = getattr(sources, field.name)
        if name:
            report(f"Fetching {name}")
            paths[field.name] = find(name)
    report("Assembling the parts")
    motion, few_step_lora = paths["motion"], paths["few_step_lora"]
    pipeline = load_base(
        paths["base"], paths["depth"], added=read_published(motion), motion=motion, vae=paths.get("vae")
    )
    read_lora(few_step_lora, parts_of(pipeline))  # fail now rather than when it is used
    pipeline.register_to_config(few_step_lora=FEW_STEP_LORA)
    report(f"Writing {out}")
    modules = [module for module in pipeline.components.values() if isinstance(module, nn.Module)]
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    with new_folder(out, 1.1 * dtype.itemsize * parameters) as folder, quiet():
        pipeline.to(dtype)
        pipeline.save_pretrained(folder)
        lora = {name: tensor.contiguous() for name, tensor in read_tensors(few_step_lora).items()}
        save_file(lora, folder / FEW_STEP_LORA)


def choose_model(device: str, sources: Sources, report: Report, problem: str = "") -> tuple[str, str]:
    """Return the model to load for "auto", and why; `problem` is what keeps a GPU from being used."""
    if torch.device(device).type != "cuda":
        if problem:
            return "nano", f"Model: nano, the small one. {problem}"
        return "nano", "Model: nano, the small one, as there is no CUDA GPU here for the full one."
    try:
        check_gpu_memory(device)
        model_folder("live2diff", sources, report)
    except (OSError, ValueError) as error:
        return "nano", f"Model: nano, the small one. The full one is not available: {error}"
    return "live2diff", "Model: Live2Diff, the full one."


def check_gpu_memory(device: str) -> None:
    """Raise `ValueError` if `device` is a CUDA GPU with too little free memory for the full model."""
    if torch.device(device).type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0]
    if free < GPU_BYTES:
        raise ValueError(
            f"The GPU has {free / 2**30:.1f} GiB of free memory, and the full model needs about "
            f"{GPU_BYTES / 2**30:.0f}. Close other programs that use it, or choose --model nano."
        )


def run(options: argparse.Namespace) -> None:
    """Run the command `convert`."""
    sources = Sources(**{field.name: getattr(options, field.name) for field in fields(Sources)})
    dtype = torch.float32 if options.full_precision else torch.float16
    convert(options.out, sources, dtype, report=partial(print, file=sys.stderr, flush=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, as `run_main`."""
    parser = argparse.ArgumentParser(prog="python -m live2diff.loading")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("convert", help="write the published model as a folder of safetensors")
    command.add_argument("out", metavar="OUT", help="a new folder, for --model")
    for field in fields(Sources):
        flag = "--" + field.name.replace("_", "-")
        command.add_argument(flag, default=field.default, help="a Hub name, a folder or a file (%(default)s)")
    command.add_argument("--full-precision", action="store_true", help="float32: twice the size")
    return run_main(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())

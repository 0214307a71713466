"""From a name or a folder to a pipeline.

    python -m live2diff.weights convert OUT [--base ...] [--motion ...] [--few-step-lora ...] [--vae ...]

The published weights lie in five places and partly in a pickle. They are put together once, into a folder of
safetensors that `Live2DiffPipeline.from_pretrained` reads, and that is what is loaded from then on.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from .pipeline import Live2DiffPipeline
from .styles import STYLES, Style
from .weights.convert import PUBLISHED, Report, Sources, convert, converted_folder, reading
from .weights.hub import CHECKPOINTS, find, is_hub_name
from .weights.swap import WeightSwapper, parts_of

NANO = Path(__file__).parent / "nano"
RANGES = "activation_ranges.json"  # of a model that is small enough for a CPU: see `runtime.accelerate`
# Computed, not measured: 3.1 GB of weights in half precision, 4.6 GB for one viewer's cache at 512 x 512
# with the default 3 steps, and some air.
GPU_BYTES = 9 * 2**30


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
    safety_checker: bool | str | None = None,
    report: Report = lambda line: None,
) -> Live2DiffPipeline:
    """Load a model.

    Args:
        model: "nano", the model shipped with this package; "live2diff", the published one, put together from
            `sources`; a folder written by `convert` or `save_pretrained`; the name of a repository on the
            Hugging Face Hub that holds such a folder; "auto" for the published one if it can be had and there
            is a GPU with room for it, else nano. The pipeline's `about` says which it is and why.
        device: "cpu", "cuda", "mps"; by default the fastest there is.
        dtype: precision; by default float16, on a CPU float32.
        style: the style of streams that name none.
        loras: files or Hub names `owner/name/file`, and weights, that go with every style.
        styles: more presets, as `read_styles` gives.
        checkpoints: the folder where the files that styles name are looked for.
        eager: leave everything to PyTorch's own kernels, as they are.
        safety_checker: whether a content filter looks at what goes out, or its weights by a folder or Hub
            name; by default it does for the full model on a Space.
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
    dtype = dtype or (torch.float32 if cpu else torch.float16)
    with reading(folder):
        pipeline = Live2DiffPipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype
        )
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.config.few_step_lora:
        check_room(device)
    report(f"Moving the weights to {device}")
    pipeline.to(device)
    for module in (pipeline.vae, pipeline.unet, pipeline.depth_estimator):
        module.to(memory_format=torch.channels_last)
    pipeline.about = about or f"Model: {model}."
    if safety_checker is None:
        safety_checker = bool(pipeline.config.few_step_lora and os.environ.get("SPACE_ID"))
    if safety_checker:
        give_content_filter(pipeline, safety_checker, report)
    pipeline.default_style = style
    give_styles(pipeline, folder, styles or {}, loras, checkpoints, report)
    if style:
        report("Putting on the style")
    pipeline.activate_style(style)
    if not eager:
        give_runtime(pipeline, folder, report)
    return pipeline


def give_content_filter(pipeline: Live2DiffPipeline, safety_checker: bool | str, report: Report) -> None:
    """Have what goes out looked at, by the checker in a folder or of a Hub name, or by the usual one."""
    from .streaming.content_filter import ABOUT, CHECKER, load_content_filter

    report("Loading the content filter")
    name = safety_checker if isinstance(safety_checker, str) else CHECKER
    pipeline.content_filter = load_content_filter(pipeline.unet.device, pipeline.unet.dtype, name)
    pipeline.about += ABOUT


def give_runtime(pipeline: Live2DiffPipeline, folder: Path, report: Report) -> None:
    """Have a pipeline read from `folder` computed faster than by PyTorch's own kernels, if there is a way."""
    ranges = folder / RANGES
    if pipeline.unet.device.type == "cuda":
        from .runtime import cuda_graphs

        cuda_graphs.accelerate(pipeline, report=report)
    elif ranges.is_file() and can_be_compiled(pipeline):
        from .runtime.openvino import accelerate

        try:
            accelerate(pipeline, json.loads(ranges.read_text()), report=report)
        except OSError as error:  # a disk that is full or may not be written to
            report(f"Going on with PyTorch's own kernels, which are slower: {error}")


def can_be_compiled(pipeline: Live2DiffPipeline) -> bool:
    """Whether `runtime` is for this model: in full precision on a PC's processor, with weights that stay."""
    on_cpu = pipeline.unet.device.type == "cpu" and pipeline.unet.dtype == torch.float32
    has_library = find_spec("openvino") is not None and platform.machine() in ("x86_64", "AMD64")
    return on_cpu and has_library and pipeline.weight_swapper is None


def give_styles(
    pipeline: Live2DiffPipeline,
    folder: Path,
    styles: dict[str, Style],
    loras: Sequence[tuple[str, float]],
    checkpoints: str | Path,
    report: Report,
) -> None:
    """Tell a pipeline read from `folder` which styles it can wear, the presets and `styles`, and who changes
    its weights for them."""
    few_step = pipeline.config.few_step_lora
    if few_step or loras:
        always = [*loras, *([(str(folder / few_step), 1.0)] if few_step else [])]
        locate = partial(find, checkpoints=checkpoints)
        pipeline.weight_swapper = WeightSwapper(parts_of(pipeline), folder, locate, always)
    pipeline.styles = {
        name: style
        for name, style in (STYLES | styles).items()
        if not style.has_weights or (few_step and not missing(style, checkpoints))
    }
    for name in sorted(styles.keys() - pipeline.styles.keys()):
        lacks = ", ".join(missing(styles[name], checkpoints)) or "the full model"
        report(f"The style {name!r} is left out, as it needs what is not there: {lacks}")


def folder_of(model: str, sources: Sources, report: Report) -> Path:
    """The folder that a model's name stands for, downloaded and converted if need be."""
    if model == "nano":
        return NANO
    if model == "live2diff":  # even where there is a folder of this name, such as this package's
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


def missing(style: Style, checkpoints: str | Path) -> list[str]:
    """The weights of a style that are neither on the disk nor have a Hub name."""
    places = Path(), Path(checkpoints)
    return [n for n in style.files if not is_hub_name(n) and not any((p / n).exists() for p in places)]


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

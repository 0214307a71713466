"""From a name or a folder to a pipeline."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from .pipeline import Live2DiffPipeline
from .sampler import build_scheduler
from .unet import StreamUNet

NANO = Path(__file__).parent / "nano"
DEPTH_ESTIMATOR = "Intel/dpt-hybrid-midas"


def load(model: str = "auto", device: str | None = None) -> Live2DiffPipeline:
    """Load a model.

    Args:
        model: "nano", the model shipped with this package; a folder written by `save_pretrained`; the name of
            a repository on the Hugging Face Hub that holds such a folder; "auto" for nano.
        device: "cpu", "cuda", "mps"; by default the fastest there is.

    Raises:
        ValueError: there is no such model.
        OSError: it cannot be read or downloaded.
    """
    if model in ("auto", "nano"):
        source: str | Path = NANO
    elif Path(model).is_dir():
        source = Path(model)
    elif model == "live2diff":
        raise ValueError("The published Live2Diff weights cannot be loaded yet; use the model 'nano'.")
    elif model.count("/") == 1 and not model.startswith((".", "/", "~")):
        source = model
    else:
        raise ValueError(
            f"There is no model {model!r}: give 'nano', a folder, or a Hub name like 'owner/name'."
        )
    if isinstance(source, Path) and not (source / "model_index.json").is_file():
        raise ValueError(f"The folder {str(source)!r} holds no model: it has no model_index.json.")
    local = isinstance(source, Path)
    with quiet() if local else nullcontext():  # a download shows its progress
        pipeline = Live2DiffPipeline.from_pretrained(
            source, local_files_only=local, use_safetensors=True, dtype=torch.float32
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device or best_device())
    for module in (pipeline.vae, pipeline.unet, pipeline.depth_estimator):
        module.to(memory_format=torch.channels_last)
    return pipeline


def load_base(base: str, depth_estimator: str = DEPTH_ESTIMATOR) -> Live2DiffPipeline:
    """Stable Diffusion 1.5, or a model like it, as a pipeline whose motion modules and depth mapping are
    untrained: as yet they change nothing.

    Args:
        base: a folder in diffusers' layout, or the name of such a repository on the Hugging Face Hub.
        depth_estimator: a folder or the Hub name of a DPT.

    Raises:
        ValueError: it is no such model; for a UNet, the message names the parameters that do not fit.
        OSError: a part cannot be read or downloaded.
    """
    for source in (base, depth_estimator):
        if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
            raise ValueError(f"There is no model {source!r}: give a folder, or a Hub name like 'owner/name'.")
    local = Path(base).is_dir() and Path(depth_estimator).is_dir()
    with quiet() if local else nullcontext():
        stock, found = UNet2DConditionModel.from_pretrained(
            base, subfolder="unet", dtype=torch.float32, output_loading_info=True
        )
        check_names(found["missing_keys"], "lacks", base)
        check_names(found["unexpected_keys"], "has, unknown here,", base)
        return Live2DiffPipeline(
            vae=AutoencoderKL.from_pretrained(base, subfolder="vae", dtype=torch.float32),
            text_encoder=CLIPTextModel.from_pretrained(base, subfolder="text_encoder", dtype=torch.float32),
            tokenizer=CLIPTokenizer.from_pretrained(base, subfolder="tokenizer"),
            unet=with_motion(stock),
            scheduler=build_scheduler(),
            depth_estimator=DPTForDepthEstimation.from_pretrained(depth_estimator, dtype=torch.float32),
        )


def with_motion(stock: UNet2DConditionModel) -> StreamUNet:
    """A `StreamUNet` of the very weights of a stock UNet, with untrained motion modules and depth mapping."""
    with torch.device("meta"):  # an outline, which costs neither memory nor time
        unet = StreamUNet.from_config(stock.config)
    unet.load_state_dict(stock.state_dict(), strict=False, assign=True)
    unet.add_motion()
    return unet.eval()


def is_added(name: str) -> bool:
    """Whether a parameter of this name is one that the base lacks: of motion modules or depth mapping."""
    return ".motion_modules." in name or name.startswith("flow_conv_in.")


def added_weights(unet: StreamUNet) -> dict[str, torch.nn.Parameter]:
    """The parameters of motion modules and depth mapping, by their names in the published checkpoints."""
    return {name: parameter for name, parameter in unet.named_parameters() if is_added(name)}


def load_added(unet: StreamUNet, file: str | Path) -> None:
    """Fill motion modules and depth mapping from a safetensors file that holds these and nothing else.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape; the message names it.
        OSError: the file cannot be read.
    """
    try:
        mine, given = added_weights(unet), load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from None
    check_names(mine.keys() - given.keys(), "lacks", file)
    check_names(given.keys() - mine.keys(), "has, unknown here,", file)
    for name, parameter in mine.items():
        if parameter.shape != given[name].shape:
            shapes = f"{list(given[name].shape)}, and {list(parameter.shape)} is wanted"
            raise ValueError(f"{name} in {file} has the shape {shapes}: it belongs to another model.")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(given[name])


def check_names(wrong: Iterable[str], what: str, source: str | Path) -> None:
    """Raises `ValueError` if there are any wrong names, with the first ones."""
    names = sorted(wrong)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{source} {what} {', '.join(names[:3])}{more}: it is no model of this kind.")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries from printing bars and notes about a few small files."""
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

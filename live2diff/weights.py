"""From a name or a folder to a pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import diffusers
import torch
import transformers

from .pipeline import Live2DiffPipeline

NANO = Path(__file__).parent / "nano"


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

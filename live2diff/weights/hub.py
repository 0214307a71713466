"""Find weights by name: on disk first, then on the Hugging Face Hub or in its cache.

Every error has a message that says what to do.
"""

import errno
import re
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx or httpx2, by the release
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

CHECKPOINTS = "models"  # the default folder for weight files named without a path
FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(/[^/\\]+)*")
PARTS = ("unet", "text_encoder", "vae")
UNUSED = ["safety_checker/*", "feature_extractor/*"]
CONFIGS = ["*.json", "*/*.json", "tokenizer/*.txt"]
# Full precision only: repositories often contain the same weights three times.
SAFETENSORS = ["*model.safetensors", "*_lora.safetensors"]
PICKLES = ["*model.bin"]

# For each error of huggingface_hub: the error to raise instead, and its message.
PROBLEMS = (
    (
        GatedRepoError,
        OSError,
        "{repository} is gated: accept its terms on its page, then log in with `hf auth login`.",
    ),
    (RepositoryNotFoundError, ValueError, "The Hub has no public repository {repository!r}: check the name."),
    (
        (LocalEntryNotFoundError, OfflineModeIsEnabled),
        OSError,
        "{name} is not on this machine, and the Hub cannot be reached, or has no weights for it in full "
        "precision. Connect to the network, or name a folder or file that holds it.",
    ),
    (EntryNotFoundError, ValueError, "{repository} on the Hub has no file {file!r}."),
    (HfHubHTTPError, OSError, "The Hub refused {repository}: {reason} Try again later."),
    (HTTPError, OSError, "The connection to the Hub broke off while fetching {name} ({reason}). Try again."),
)


def is_hub_name(name: str) -> bool:
    """Return whether `name` is like `owner/name` or `owner/name/file.ckpt`, unlike `folder/file.ckpt`."""
    is_file = name.endswith(FILE_ENDINGS)
    return HUB_NAME.fullmatch(name) is not None and (not is_file or name.count("/") > 1)


def find_local(name: str, checkpoints: str | Path = CHECKPOINTS) -> Path | None:
    """Return the path of a local file or folder, as named or in `checkpoints`; None if there is none."""
    candidates = (Path(name).expanduser(), Path(checkpoints) / name)
    return next((path for path in candidates if path.exists()), None)


def find(name: str, checkpoints: str | Path = CHECKPOINTS) -> Path:
    """Return the path of the weights called `name`; download them if necessary.

    `name` is a path, a file in the folder `checkpoints`, a Hub repository `owner/name` in diffusers' or
    transformers' layout, or a file `owner/name/file.safetensors` in one.

    Raises:
        ValueError: `name` is none of these, or is not on the Hub.
        OSError: the weights cannot be downloaded, or the disk is full.
    """
    path = find_local(name, checkpoints)
    if path is not None:
        return path
    if not is_hub_name(name):
        if name.endswith(FILE_ENDINGS):
            raise ValueError(
                f"There is no file {name!r}, neither here nor in the folder {str(checkpoints)!r}."
            )
        raise ValueError(
            f"There is no model {name!r}: give a folder, a file or a Hub name like 'owner/name'."
        )
    owner, repository, *inside = name.split("/")
    repository, file = f"{owner}/{repository}", "/".join(inside)
    try:
        return download(repository, file)
    except (OSError, EntryNotFoundError, HTTPError) as error:
        reason = str(error).partition("\n")[0]
        for kind, raised, message in PROBLEMS:
            if isinstance(error, kind):
                text = message.format(name=name, repository=repository, file=file, reason=reason)
                raise raised(text) from None
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = f"The disk is full: {name} could not be stored. Free some space, or set HF_HOME elsewhere."
            raise OSError(errno.ENOSPC, text) from None
        raise


def download(repository: str, file: str = "") -> Path:
    """Download one file of a repository, or its configuration and weights; return the path in the cache."""
    if file:
        return Path(hf_hub_download(repository, file))
    for weights in (SAFETENSORS, PICKLES):
        folder = Path(snapshot_download(repository, allow_patterns=CONFIGS + weights, ignore_patterns=UNUSED))
        if is_complete(folder):
            return folder
    raise LocalEntryNotFoundError(f"{repository}: its weights are not in the cache")


def is_complete(folder: Path) -> bool:
    """Return whether each part of the model in `folder` has weights; without parts, `folder` itself."""
    parts = [folder / part for part in PARTS if (folder / part).is_dir()] or [folder]
    return all(any(file.suffix in (".safetensors", ".bin") for file in part.iterdir()) for part in parts)

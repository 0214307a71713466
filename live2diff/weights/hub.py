"""Finding weights by name: on the disk first, then on the Hugging Face Hub, which keeps what it gave in its
cache. Whatever goes wrong becomes a message that says what to do."""

import errno
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

CHECKPOINTS = "models"  # where files without a folder are looked for, unless another folder is given
FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin")
PARTS = ("unet", "text_encoder", "vae")
UNUSED = ("safety_checker/*", "feature_extractor/*")
CONFIGS = ("*.json", "*/*.json", "tokenizer/*.txt")
# Full precision alone: the repositories often hold the same weights three times.
SAFETENSORS = ("*model.safetensors", "*_lora.safetensors")
PICKLES = ("*model.bin",)


def is_hub_name(name: str) -> bool:
    """Whether it reads like `owner/name`, or `owner/name/file.safetensors`."""
    parts = name.split("/")
    return len(parts) >= 2 and all(parts) and not name.startswith((".", "~")) and "\\" not in name


def find(name: str, checkpoints: str | Path = CHECKPOINTS) -> Path:
    """The file or folder that `name` stands for: a path, a file in the folder `checkpoints`, a Hub repository
    `owner/name` in diffusers' or transformers' layout, or a file `owner/name/file.safetensors` in one.

    Raises:
        ValueError: it is none of these, or the Hub has no such thing.
        OSError: it cannot be downloaded, or there is no room for it.
    """
    for place in (Path(name).expanduser(), Path(checkpoints) / name):
        if place.exists():
            return place
    is_file = name.endswith(FILE_ENDINGS)
    if not is_hub_name(name) or (name.count("/") == 1 and is_file):
        if is_file:
            raise ValueError(
                f"There is no file {name!r}, neither here nor in the folder {str(checkpoints)!r}."
            )
        raise ValueError(
            f"There is no model {name!r}: give a folder, a file or a Hub name like 'owner/name'."
        )
    owner, repository, *inside = name.split("/")
    repository = f"{owner}/{repository}"
    try:
        if inside:
            return Path(hf_hub_download(repository, "/".join(inside)))
        return download(repository)
    except GatedRepoError:
        raise OSError(
            f"{repository} is gated: accept its terms on its page, then log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(f"The Hub has no public repository {repository!r}: check the name.") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise OSError(
            f"{name} is not on this machine, and the Hub cannot be reached, or has no weights for it in full "
            "precision. Connect to the network, or name a folder or file that holds it."
        ) from None
    except EntryNotFoundError:
        raise ValueError(f"{repository} on the Hub has no file {'/'.join(inside)!r}.") from None
    except HfHubHTTPError as error:
        raise OSError(
            f"The Hub refused {repository}: {str(error).splitlines()[0]} Try again later."
        ) from None
    except HTTPError as error:
        raise OSError(
            f"The connection to the Hub broke off while fetching {name} ({str(error).splitlines()[0]}). "
            "Do the same again."
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC,
                f"The disk is full: {name} could not be stored. Free some room, or set "
                "HF_HOME to a folder on another disk.",
            ) from None
        raise


def download(repository: str) -> Path:
    """A repository's configuration and weights, as safetensors if it has them, in the Hub's cache."""
    folder = Path(
        snapshot_download(repository, allow_patterns=[*CONFIGS, *SAFETENSORS], ignore_patterns=UNUSED)
    )
    if not complete(folder):
        folder = Path(
            snapshot_download(repository, allow_patterns=[*CONFIGS, *PICKLES], ignore_patterns=UNUSED)
        )
    if not complete(folder):
        raise LocalEntryNotFoundError(f"{repository}: its weights are not in the cache")
    return folder


def complete(folder: Path, endings: Sequence[str] = (".safetensors", ".bin")) -> bool:
    """Whether every part of the model in `folder` has weights; a model of one part has them at the top."""
    parts = [folder / part for part in PARTS if (folder / part).is_dir()] or [folder]
    return all(any(file.suffix in endings for file in part.iterdir()) for part in parts)

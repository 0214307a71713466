"""Find a device that works by running a tiny matrix product on it, and explain why others do not.

`torch.cuda.is_available()` is not enough: it is true for a card that is too old for this build of torch or
has failed, and false for a card that only lacks a driver or another build of torch.
"""

import gc
import os
import shutil
import subprocess
from dataclasses import dataclass

import torch

from ..errors import is_out_of_memory

QUERY = ["--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
SMI_SECONDS = 20.0
INSTALL = "pip install --force-reinstall torch=={} --index-url https://download.pytorch.org/whl/{}"
DRIVER, OLD_DRIVER = 580, 525  # oldest drivers for builds of torch with CUDA 13 and with CUDA 12.6
OLDEST, NEWEST_OF_OLD_BUILD = (7, 5), (9, 0)  # compute capabilities: lowest of CUDA 13, highest of CUDA 12.6
KINDS = ("cpu", "cuda", "mps")
SIDE = 8  # of the matrices in the tiny product


class DeviceError(ValueError):
    """A device cannot be used; the message says why, and what to do."""


class NoSuchDevice(DeviceError):
    """This machine has no such device."""


@dataclass(frozen=True)
class Card:
    """An NVIDIA card as reported by its driver."""

    name: str
    driver: str
    capability: tuple[int, int]

    @property
    def driver_major(self) -> int:
        """The driver's major version; 0 if it is unknown."""
        major = self.driver.split(".")[0]
        return int(major) if major.isdecimal() else 0

    def advice(self) -> str:
        """Say which driver or build of torch this card needs."""
        version = torch.__version__.split("+")[0]
        old_build = INSTALL.format(version, "cu126")
        if self.capability < OLDEST:
            is_new = self.driver_major >= OLD_DRIVER
            driver = "" if is_new else f"Update its driver to {OLD_DRIVER} or newer. "
            return f"{driver}Install torch's build for older cards: {old_build}"
        if self.driver_major >= DRIVER:
            return f"Install torch's build for it: {INSTALL.format(version, 'cu130')}"
        also = f", or install torch's build for older drivers: {old_build}"
        has_old_build = self.capability <= NEWEST_OF_OLD_BUILD and self.driver_major >= OLD_DRIVER
        return f"Update its driver, {self.driver}, to {DRIVER} or newer{also if has_old_build else ''}"


def find_card() -> Card | None:
    """Return the first card that `nvidia-smi` lists, None if there is no card or no driver."""
    program = shutil.which("nvidia-smi")
    if program is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):  # hidden on purpose
        return None
    try:
        done = subprocess.run(
            [program, *QUERY], capture_output=True, text=True, timeout=SMI_SECONDS, check=True
        )
        name, driver, capability = done.stdout.splitlines()[0].split(",")
        major, minor = capability.split(".")
        return Card(name.strip(), driver.strip(), (int(major), int(minor)))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def run_tiny_product(device: str | torch.device) -> None:
    """Multiply two small matrices in half precision on a device and check the result.

    Raises:
        RuntimeError: the product failed or is wrong.
    """
    ones = torch.ones(SIDE, SIDE, dtype=torch.float16, device=device)
    total = (ones @ ones).sum().item()
    if total != SIDE**3:
        raise RuntimeError(f"the product of two matrices came out as {total}, not {SIDE**3}")


def check_device(device: str | torch.device) -> None:
    """Check that a device works.

    Raises:
        DeviceError: it does not; the message says why, and what to do.
    """
    kind, index = parse_device(device)
    if kind == "cuda" and not torch.cuda.is_available():
        raise missing_cuda(find_card())
    if kind == "cuda" and index is not None and index != (current := torch.cuda.current_device()):
        raise DeviceError(
            f"The device cuda:{index} is not cuda:{current}, on which CUDA graphs are captured here. "
            f"Set CUDA_VISIBLE_DEVICES={index} and choose the device 'cuda'."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise NoSuchDevice("There is no Apple GPU here that torch can use (MPS): choose another device.")
    try:
        run_tiny_product(device)
    except RuntimeError as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        if is_out_of_memory(error):
            raise DeviceError("The GPU's memory is full. Close other programs that use it.") from None
        if kind == "cuda" and (card := find_card()) is not None and not is_built_for(card.capability):
            major, minor = card.capability
            raise DeviceError(
                f"This torch build has no kernels for the {card.name} (compute capability {major}.{minor}), "
                f"only for {', '.join(torch.cuda.get_arch_list())}. {card.advice()}"
            ) from None
        raise DeviceError(
            f"The device {device} is there but does not compute: {first_line}. Restart the machine; if that "
            "does not help, look for messages of its driver (dmesg | grep -i xid)."
        ) from None


def parse_device(device: str | torch.device) -> tuple[str, int | None]:
    """Return the kind of a device and its index, None if it has none.

    Raises:
        DeviceError: there is no such kind, or models do not run on it.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError:
        parsed = None
    if parsed is None or parsed.type not in KINDS:
        raise DeviceError(f"There is no device {str(device)!r}: give 'cpu', 'cuda' or 'mps'.")
    return parsed.type, parsed.index


def missing_cuda(card: Card | None) -> DeviceError:
    """Return an error that says why torch finds no CUDA GPU although the driver reports `card`, if any."""
    if card is None:
        return NoSuchDevice("There is no CUDA GPU here that torch can use.")
    build = torch.version.cuda
    if build is None:
        problem = f"This machine has an {card.name}, but this build of torch is without CUDA"
    elif card.driver_major < (DRIVER if int(build.split(".")[0]) >= 13 else OLD_DRIVER):
        problem = f"The driver of the {card.name} is too old for this build of torch (CUDA {build})"
    else:
        return DeviceError(
            f"torch does not find the {card.name} that nvidia-smi lists. Restart the machine; in a "
            "container, look whether the GPU is passed on (docker run --gpus all)."
        )
    return DeviceError(f"{problem}. {card.advice()}")


def is_built_for(capability: tuple[int, int]) -> bool:
    """Return whether this build of torch has kernels for a card of this compute capability."""
    for name in torch.cuda.get_arch_list():  # sm_86 runs on 8.6 to 8.9; compute_86 from 8.6 on
        kind, _, digits = name.rstrip("af").partition("_")
        built = int(digits[:-1]), int(digits[-1])
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def best_device() -> tuple[str, str]:
    """Return the fastest kind of device that works, and why a GPU that is present does not, or ""."""
    problems = []
    for device in ("cuda", "mps"):
        try:
            check_device(device)
            return device, ""
        except NoSuchDevice:
            continue
        except DeviceError as error:
            problems.append(str(error))
    return "cpu", " ".join(problems)


def is_lost(device: torch.device) -> bool:
    """Return whether a device no longer works: some errors of CUDA are permanent for the process."""
    if device.type == "cpu":
        return False
    try:
        run_tiny_product(device)
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False


def free_bytes(device: torch.device) -> int | None:
    """Return the free bytes of a GPU's memory, None for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def release_memory() -> None:
    """Return unused memory to the device; call it outside of `except`, where a traceback keeps tensors."""
    gc.collect()
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()

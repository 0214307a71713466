"""A device is used if it computes; for each way to fail there is a message that says what to do."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from live2diff.errors import StreamOutOfMemory, is_out_of_memory
from live2diff.loading import choose_model
from live2diff.runtime import device
from live2diff.runtime.device import (
    Card,
    DeviceError,
    NoSuchDevice,
    best_device,
    check_device,
    find_card,
    is_lost,
    run_tiny_product,
)
from live2diff.weights.convert import PUBLISHED

GTX = Card("NVIDIA GeForce GTX 1080", "550.90", (6, 1))
RTX = Card("NVIDIA GeForce RTX 3060", "550.90", (8, 6))
BLACKWELL = Card("NVIDIA GeForce RTX 5070", "565.57", (12, 0))
READY = Card("NVIDIA GeForce RTX 3060", "581.10", (8, 6))


@pytest.fixture
def machine(monkeypatch):
    """Describe a machine: the card that its driver lists, and what torch says and does there."""

    def describe(card=None, available=False, cuda="13.0", arch=(), error=None):
        monkeypatch.setattr(device, "find_card", lambda: card)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(arch))

        def product(_: object) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(device, "run_tiny_product", product)

    return describe


CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
NO_KERNEL = RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")
FAILURES = [
    ({"card": READY, "cuda": None}, ["without CUDA", "whl/cu130"]),
    ({"card": RTX, "cuda": None}, ["without CUDA", "Update its driver, 550.90, to 580", "whl/cu126"]),
    ({"card": RTX}, ["driver of the NVIDIA GeForce RTX 3060 is too old", "CUDA 13.0", "to 580", "whl/cu126"]),
    ({"card": GTX, "cuda": None}, ["without CUDA", "whl/cu126"]),
    ({"card": READY}, ["does not find the NVIDIA GeForce RTX 3060", "--gpus all"]),
    ({"card": RTX, "cuda": "12.6"}, ["does not find"]),
    (
        {"card": GTX, "available": True, "arch": CU130, "error": NO_KERNEL},
        ["GTX 1080 (compute capability 6.1), only for sm_75, sm_80", "whl/cu126"],
    ),
    (
        {"card": READY, "available": True, "arch": CU130, "error": RuntimeError("CUDA error: Xid\nmore")},
        ["cuda is there but does not compute: CUDA error: Xid. Restart"],
    ),
    (
        {"card": READY, "available": True, "error": torch.OutOfMemoryError("CUDA out of memory.")},
        ["memory is full"],
    ),
]


@pytest.mark.parametrize(("state", "words"), FAILURES)
def test_each_failure_has_its_message_and_the_cpu_is_used_with_it(machine, state, words):
    machine(**state)
    with pytest.raises(DeviceError) as error:
        check_device("cuda")
    assert not isinstance(error.value, NoSuchDevice) and "\n" not in str(error.value)
    for part in words:
        assert part in str(error.value)
    assert best_device() == ("cpu", str(error.value))


def test_no_older_build_is_advised_for_a_card_that_it_does_not_support(machine):
    machine(card=BLACKWELL)
    with pytest.raises(DeviceError, match=r"to 580 or newer$"):
        check_device("cuda")


def test_a_card_that_computes_is_used_and_no_card_is_not_a_failure(machine):
    machine(card=READY, available=True)
    assert best_device() == ("cuda", "")
    machine()
    with pytest.raises(NoSuchDevice, match="no CUDA GPU"):
        check_device("cuda")
    assert best_device() == ("cpu", "")


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "meta", "xpu"])
def test_a_device_of_another_kind_is_refused_by_name(name):
    with pytest.raises(DeviceError, match=f"There is no device {name!r}: give 'cpu', 'cuda' or 'mps'"):
        check_device(name)


def test_another_gpu_than_the_present_one_is_chosen_by_the_environment(machine, monkeypatch):
    machine(card=READY, available=True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    check_device("cuda:0")
    with pytest.raises(DeviceError, match=r"cuda:1 is not cuda:0.*CUDA_VISIBLE_DEVICES=1 "):
        check_device("cuda:1")


def test_the_page_says_why_the_gpu_that_is_there_is_not_used():
    _, about = choose_model("cpu", PUBLISHED, print, "The driver is too old.")
    assert about == "Model: nano, the small one. The driver is too old."
    assert "no CUDA GPU here" in choose_model("cpu", PUBLISHED, print)[1]


@pytest.mark.parametrize(
    ("arch", "capability", "fits"),
    [
        ("sm_86", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_90", (12, 0), False),
        ("compute_90", (12, 0), True),
        ("sm_120", (12, 1), True),
        ("sm_75", (6, 1), False),
    ],
)
def test_kernels_run_on_later_cards_of_their_generation(monkeypatch, arch, capability, fits):
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [arch])
    assert device.is_built_for(capability) == fits


@pytest.mark.parametrize(
    ("printed", "card"),
    [
        (
            "NVIDIA H200, 580.159.03, 9.0\nNVIDIA H200, 580.159.03, 9.0\n",
            Card("NVIDIA H200", "580.159.03", (9, 0)),
        ),
        ("", None),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", None),
        ("Tesla K80, 470.1, [N/A]\n", None),
    ],
)
def test_cards_are_read_from_nvidia_smi(monkeypatch, printed, card):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=printed))
    assert find_card() == card
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_card() is None, "it is hidden on purpose"


def test_the_result_of_the_product_is_checked(monkeypatch):
    run_tiny_product("cpu")
    check_device("cpu")
    monkeypatch.setattr(torch, "ones", lambda *size, **options: torch.zeros(*size, **options))
    with pytest.raises(RuntimeError, match=r"came out as 0\.0, not 512"):
        run_tiny_product("cpu")


def test_a_device_is_lost_when_the_product_fails_too_but_not_when_memory_is_full(monkeypatch):
    cuda = torch.device("cuda")

    def fail(error: RuntimeError) -> None:
        def product(_: object) -> None:
            raise error

        monkeypatch.setattr(device, "run_tiny_product", product)

    fail(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    assert is_lost(cuda) and not is_lost(torch.device("cpu"))
    fail(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_lost(cuda)
    monkeypatch.setattr(device, "run_tiny_product", lambda _: None)
    assert not is_lost(cuda)


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB, max allowed: 9.07 GB)."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (StreamOutOfMemory(), False),  # it is one already
        (ValueError("MPS backend out of memory"), False),
    ],
)
def test_out_of_memory_of_every_device_is_recognised(error, is_full):
    assert is_out_of_memory(error) == is_full

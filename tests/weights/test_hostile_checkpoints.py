"""Untrusted checkpoints and LoRAs, truncated, invalid or damaged, are read or refused by name."""

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from live2diff.weights.checkpoints import read_tensors
from live2diff.weights.lora import read_lora


def invalid_safetensors() -> dict[str, bytes]:
    """Return files with headers that do not fit their data."""

    def file(header: object, data: bytes = bytes(64), length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def tensor(kind: str, shape: list[int], begin: int, end: int) -> dict:
        return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}

    return {
        "longer-header-than-file": file({}, length=2**40),
        "endless-header": file({}, length=2**64 - 1),
        "no-json": file(b"{" * 5000),
        "no-object": file([1, 2, 3]),
        "400-gigabytes": file({"w": tensor("F32", [100_000, 1_000_000], 0, 400_000_000_000)}),
        "shape-that-overflows": file({"w": tensor("F32", [2**32, 2**32, 4], 0, 64)}),
        "more-shape-than-data": file({"w": tensor("F32", [1000], 0, 64)}),
        "negative-offset": file({"w": tensor("F32", [16], -64, 0)}),
        "beyond-the-end": file({"w": tensor("F32", [16], 64, 128)}),
        "one-over-the-other": file({"a": tensor("F32", [16], 0, 64), "b": tensor("F32", [16], 0, 64)}),
        "unknown-type": file({"w": tensor("F1000", [16], 0, 64)}),
        "nothing": b"",
        "seven-bytes": bytes(7),
    }


@pytest.mark.parametrize("name", invalid_safetensors())
def test_a_checkpoint_with_an_invalid_header_is_refused_by_name(tmp_path, name):
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(invalid_safetensors()[name])
    with pytest.raises(ValueError, match=name):
        read_tensors(path)


def damaged_checkpoints(folder: Path, count: int, seed: int) -> Iterator[Path]:
    dice = random.Random(seed)
    tensors = {f"layer.{number}.weight": torch.ones(8, 8) * number for number in range(5)}
    torch.save({"state_dict": tensors}, folder / "zip.ckpt")
    torch.save({"state_dict": tensors}, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "new.safetensors")
    for number in range(count):
        good = folder / dice.choice(["zip.ckpt", "old.ckpt", "new.safetensors"])
        data = bytearray(good.read_bytes())
        for _ in range(dice.choice([1, 3, 20])):
            at = dice.randrange(len(data))
            match dice.randrange(3):
                case 0:
                    data[at] ^= 1 << dice.randrange(8)
                case 1:
                    data[at] = dice.randrange(256)
                case 2:
                    del data[at : at + dice.randrange(1, 30)]
        path = folder / f"damaged-{seed}-{number}-{good.name}"
        path.write_bytes(data)
        yield path


def read_all(paths: Iterator[Path]) -> dict[str, int]:
    """Return how many could be read and how many were refused; fail for anything else."""
    counts = {"read": 0, "refused": 0}
    for path in paths:
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in read_tensors(path).values())
            counts["read"] += 1
        except (ValueError, OSError) as error:
            assert path.name in str(error), error
            counts["refused"] += 1
    return counts


def test_a_damaged_checkpoint_is_read_or_refused_by_name(tmp_path):
    assert sum(read_all(damaged_checkpoints(tmp_path, 60, seed=0)).values()) == 60


@pytest.mark.long
def test_three_thousand_damaged_checkpoints_are_read_or_refused_by_name(tmp_path):
    print(read_all(damaged_checkpoints(tmp_path, 3000, seed=1)))


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("down", "up", "alpha", "words"),
    [
        ((4, 32), (16, 8), 4.0, "made for another model"),  # ranks that differ
        ((4, 16), (16,), 4.0, "made for another model"),
        ((16,), (16, 4), 4.0, "made for another model"),
        ((), (), 4.0, "made for another model"),
        ((0, 16), (16, 0), 4.0, "rank"),
        ((4, 16), (16, 4), (1.0, 2.0), "alpha"),
        ((4, 16), (16, 4), float("nan"), "alpha"),
        ((4, 16), (16, 4), float("inf"), "alpha"),
        ((4, 16, 3, 3), (16, 4, 1, 1), 4.0, "made for another model"),
    ],
)
def test_a_lora_of_a_wrong_rank_shape_or_alpha_is_refused(tiny_pipeline, tmp_path, down, up, alpha, words):
    path = tmp_path / "style.safetensors"
    factors = {"down.weight": torch.ones(down), "up.weight": torch.ones(up), "alpha": torch.tensor(alpha)}
    prefix = "lora_unet_" + ATTENTION.replace(".", "_")
    save_file({f"{prefix}.{'lora_' * (name != 'alpha')}{name}": part for name, part in factors.items()}, path)
    with pytest.raises(ValueError, match=words):
        read_lora(path, {"unet": tiny_pipeline.unet})


def test_a_lora_with_nan_or_infinity_is_refused(tiny_pipeline, tmp_path):
    path = tmp_path / "style.safetensors"
    prefix = "lora_unet_" + ATTENTION.replace(".", "_")
    for bad in (float("nan"), float("inf")):
        down, up = torch.full((4, 16), bad), torch.ones(16, 4)
        save_file({f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}, path)
        with pytest.raises(ValueError, match="NaN or infinity"):
            read_lora(path, {"unet": tiny_pipeline.unet})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16], ids=str)
def test_a_lora_may_be_of_fewer_bits(tiny_pipeline, tmp_path, dtype):
    path, prefix = tmp_path / "style.safetensors", "lora_unet_" + ATTENTION.replace(".", "_")
    down, up = torch.ones(4, 16), torch.ones(16, 4)
    factors = {f"{prefix}.lora_down.weight": down.to(dtype), f"{prefix}.lora_up.weight": up.to(dtype)}
    save_file(factors, path)
    (change,) = read_lora(path, {"unet": tiny_pipeline.unet}).values()
    assert torch.equal(change.delta((16, 16), torch.device("cpu")), up @ down)
    save_file({name: torch.full_like(part, float("nan")) for name, part in factors.items()}, path)
    with pytest.raises(ValueError, match="NaN or infinity"):
        read_lora(path, {"unet": tiny_pipeline.unet})


def test_a_lora_that_expands_from_a_few_bytes_is_refused_before_it_is_read(tiny_pipeline, tmp_path):
    path, prefix, rank = tmp_path / "style.pt", "lora_unet_" + ATTENTION.replace(".", "_"), 2**50
    one = torch.ones(1, 1)  # and not 64 petabytes
    parts = {"lora_down.weight": one.expand(rank, 16), "lora_up.weight": one.expand(16, rank)}
    torch.save({f"{prefix}.{name}": part for name, part in parts.items()}, path)
    with pytest.raises(ValueError, match=f"by matrices of rank {rank}; more than 16 is of no use"):
        read_lora(path, {"unet": tiny_pipeline.unet})


@pytest.mark.parametrize("content", [{0: torch.ones(2)}, {"a": torch.ones(2), 1: torch.ones(2)}], ids=str)
def test_tensors_without_names_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "numbered.pt")
    with pytest.raises(ValueError, match=r"numbered\.pt has a tensor under [01], which is not a name"):
        read_tensors(tmp_path / "numbered.pt")

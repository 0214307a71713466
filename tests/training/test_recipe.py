"""The whole recipe, two steps a stage, to a model that loads and streams."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from helpers.material import write_material

import live2diff
from live2diff.loading import NANO
from live2diff.model.vae import decode, encode
from live2diff.training import photographs, recipe
from live2diff.training.__main__ import build_parser
from live2diff.training.clips import sample_clip, sample_styled, through_camera
from live2diff.training.recipe import train_nano
from live2diff.training.targets import PAINTED, TARGETS
from live2diff.training.text import SYNONYMS, build_tokenizer
from live2diff.training.vae import build_vae, equalise_phases, initialise_with_principal_components, to_tensor


def test_a_clip_is_a_function_of_its_seed_and_moves():
    (first, depth), (again, _) = (sample_clip(np.random.default_rng(3), 64, 4) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 64, 64, 3) and first.dtype == np.uint8
    assert depth.shape == (4, 64, 64) and 0 <= depth.min() and depth.max() <= 1
    assert (first[0] != first[3]).mean() > 0.1


def test_the_tokenizer_is_the_same_after_every_start_and_knows_each_style_s_words_whole(tmp_path):
    first, other = (build_tokenizer(tmp_path / name) for name in ("first", "other"))
    assert first.get_vocab() == other.get_vocab() == build_tokenizer(tmp_path / "first").get_vocab()
    words = " ".join(phrase for phrases in SYNONYMS.values() for phrase in phrases).split()
    assert all(len(first(word).input_ids) == 3 for word in words)  # between its two marks
    assert len(first("zeppelin").input_ids) > 3  # others fall apart, and none is lost
    (tmp_path / "first" / "merges.txt").write_text("#version: 0.2\n")
    assert len(build_tokenizer(tmp_path / "first")("pencil").input_ids) > 3  # one that is there is kept


def test_every_style_has_a_target_and_a_phrase_in_its_own_words():
    presets = {name: style for name, style in live2diff.STYLES.items() if not style.has_weights}
    assert set(TARGETS) == set(SYNONYMS) >= set(presets)
    for name, style in presets.items():
        assert any(phrase in style.prompt("") for phrase in SYNONYMS[name])


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = write_material(tmp_path_factory.mktemp("training") / "material")
        patch.setattr(photographs, "material", folder)
        yield folder


def test_the_camera_s_noise_is_new_in_each_frame_and_the_target_knows_none_of_it(material):
    clip = np.repeat(sample_clip(np.random.default_rng(3), 64, 1)[0], 12, axis=0)
    seen = [through_camera(np.random.default_rng(seed), clip) for seed in range(8)]
    noisy = [(frames[0] != frames[1]).mean() for frames in seen]
    assert sum(share > 0.2 for share in noisy) >= 4
    samples = [sample for seed in range(12) for sample in sample_styled(np.random.default_rng(seed), 1, 64)]
    assert any((sample["clean"] != sample["camera"]).any() for sample in samples)
    words = " ".join(sample["prompt"] for sample in samples)
    assert sum(any(phrase in words for phrase in phrases) for phrases in SYNONYMS.values()) > 4


def test_each_painted_style_is_another_one_of_the_painter(material):
    image = np.full((40, 30, 3), 200, np.uint8)
    for style, number in PAINTED.items():
        expected = np.full_like(image, round(200 * (1 - number / 52)))
        np.testing.assert_allclose(TARGETS[style](image), expected, atol=1)


def test_neither_noise_nor_a_mesh_is_painted(material):
    random = np.random.default_rng(0)
    grain = cv2.GaussianBlur(random.normal(0, 1, (64, 64, 3)), (0, 0), 1)  # coarser than the mesh
    noisy = np.rint(128 + 5 * grain / grain.std()).astype(np.uint8)
    mesh = np.zeros((64, 64, 3), np.uint8)
    mesh[::2] = 200  # edges that smoothing keeps
    for image in (noisy, mesh):
        assert TARGETS["ink"](image).std() < 0.4 * image.std()


@torch.no_grad()
def test_plain_areas_have_no_pattern_once_the_phases_are_equal():
    """Those of the shipped decoder are; an untrained one shows what that changes."""
    torch.manual_seed(0)
    untrained, shipped = build_vae(), AutoencoderTiny.from_pretrained(NANO / "vae", torch_dtype=torch.float32)
    latents = torch.randn(1, 32, 1, 1).expand(-1, -1, 9, 9)

    def pattern(vae: AutoencoderTiny) -> float:
        return decode(vae, latents)[..., 32:-32, 32:-32].std(dim=(-1, -2)).max().item()

    before = pattern(untrained)
    equalise_phases(untrained)
    assert pattern(untrained) < 1e-4 < before / 10
    assert pattern(shipped) < 2e-3  # in half precision


def test_the_vae_starts_with_the_principal_components_of_patches(material):
    torch.manual_seed(0)
    vae = build_vae()
    clip, _ = sample_clip(np.random.default_rng(2), 64, 8)
    images = to_tensor(np.stack([*clip, *(target(frame) for target in TARGETS.values() for frame in clip)]))
    initialise_with_principal_components(vae, images)
    with torch.no_grad():
        latents = encode(vae, images)
    assert latents.shape == (len(images), 32, 8, 8)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(32), atol=0.25, rtol=0)


def test_material_without_one_of_the_teachers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "material", None)
    folder = write_material(tmp_path / "material")
    (folder / "teachers" / "selfie_segmentation.xml").unlink()
    with pytest.raises(ValueError, match=r"selfie_segmentation.* is missing .*training\.fetch"):
        next(train_nano(tmp_path / "work", tmp_path / "out", material=folder, scale=1e-6))
    assert not (tmp_path / "work").exists() and not (tmp_path / "out").exists()


def test_the_default_folder_of_the_result_is_not_the_shipped_model(capsys):
    arguments = build_parser().parse_args(["nano", "--material", "material"])
    assert arguments.out == Path("my-nano")
    with pytest.raises(SystemExit, match=r"^0$"):
        build_parser().parse_args(["nano", "--help"])
    assert "folder of the finished model (default: my-nano)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_recipe_trains_saves_and_resumes(tmp_path, material, monkeypatch):
    def train(name: str) -> list:
        return list(train_nano(tmp_path / "work", tmp_path / name, material=material, scale=1e-6))

    steps = train("model")
    assert [(stage, step) for stage, step, _ in steps] == [
        (stage, step) for stage in ("depth", "vae", "image", "motion") for step in (0, 1)
    ]
    assert all(np.isfinite(list(losses.values())).all() for _, _, losses in steps)
    assert (tmp_path / "work" / "previews" / "motion-000002.png").stat().st_size > 1000
    pipeline = live2diff.load(str(tmp_path / "model"), device="cpu", eager=True)
    stream = pipeline.stream(style="oil", size=64)
    frames = [np.full((64, 64, 3), 100, np.uint8)] * 9
    assert len([out for frame in frames for out in stream.push(frame)] + stream.flush()) == 9
    # All checkpoints are there: nothing is left to do, and the result is the same; ranges take long.
    monkeypatch.setattr(recipe, "measure_ranges", lambda *_: {})
    assert train("again") == []
    for file in (tmp_path / "model").glob("*/*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path / "model")).read_bytes()

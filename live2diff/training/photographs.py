"""Sample views of freely licensed photographs, the texture of all clips."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

# Photographs in the wheels of scikit-image and scikit-learn, with the weight of each: people, animals and
# rooms are used more often than textures. All are credited in `nano/PHOTOGRAPHS.md`.
PHOTOGRAPHS = {
    "astronaut": 4,
    "brick": 0.5,
    "camera": 2,
    "chelsea": 3,
    "coffee": 3,
    "grass": 0.5,
    "gravel": 0.5,
    "hubble_deep_field": 0.5,
    "rocket": 2,
    "china": 4,
    "flower": 3,
}
material: Path | None = None  # folder of photographs and teachers, as `fetch.py` writes it


def bundled(name: str) -> np.ndarray:
    """Load a photograph of scikit-image or scikit-learn (`tests/requirements.txt`) as RGB."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    is_sample = name in ("china", "flower")
    image = load_sample_image(f"{name}.jpg") if is_sample else getattr(skimage.data, name)()
    return np.ascontiguousarray(np.dstack([image] * 3)[..., :3])  # grey images have one channel


@lru_cache(maxsize=2)
def photographs(material: Path | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """Load the photographs, uint8 `[height, width, 3]` RGB, with the probability of each.

    The images of `material` are used three times as often as all others together.

    Raises:
        ValueError: A file of the folder is not an image.
    """
    images = [bundled(name) for name in PHOTOGRAPHS]
    chances = np.array(list(PHOTOGRAPHS.values())) / sum(PHOTOGRAPHS.values())
    files = sorted((material / "photographs").glob("*.[jp][pn]g")) if material else []
    for file in files:
        image = cv2.imread(str(file), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise ValueError(f"{file.name} cannot be read as an image; remove it from {file.parent.name}.")
        images.append(image)
    if files:
        chances = np.concatenate([chances / 4, np.full(len(files), 0.75 / len(files))])
    return images, chances


def recolour(random: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Change hue, saturation, gain and gamma of a whole image; uint8 in and out."""
    if random.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.int16)
        hsv[..., 0] = (hsv[..., 0] + random.integers(0, 180)) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * random.uniform(0.3, 1.6), 0, 255)
        image = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    curve = np.linspace(0, 1, 256) ** np.exp(random.normal(0, 0.35)) * random.uniform(0.6, 1.25)
    return cv2.LUT(image, np.clip(curve * 255 + random.uniform(-25, 25), 0, 255).astype(np.uint8))


def view_of(random: np.random.Generator, side: int) -> np.ndarray:
    """Return a recoloured square part of a photograph, float32 `[side, side, 3]`."""
    images, chances = photographs(material)
    image = images[random.choice(len(images), p=chances)]
    part = int(min(image.shape[:2]) * random.uniform(0.5, 1))
    top, left = (random.integers(0, length - part + 1) for length in image.shape[:2])
    view = cv2.resize(image[top : top + part, left : left + part], (side, side), interpolation=cv2.INTER_AREA)
    return recolour(random, view[:, ::-1] if random.random() < 0.5 else view).astype(np.float32)


def portrait(side: int) -> np.ndarray:
    """Return a photographed face, uint8 `[side, side, 3]`."""
    return cv2.resize(bundled("astronaut")[66:178, 178:270], (side, side))

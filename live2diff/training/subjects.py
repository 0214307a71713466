"""Cut the subjects out of the photographs: people, animals and things in the foreground."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np

from .photographs import photographs, recolour
from .teachers import mask_subject

SMALLEST, SUREST = 0.05, 0.85  # minimum share of the photograph, and minimum mean of the mask


@cache
def subjects(material: Path | None) -> list[np.ndarray]:
    """Return the largest subject of each photograph that has one, uint8 `[side, side, 4]`: RGB, opacity.

    Without material there are none.
    """
    found = []
    for image in photographs(material)[0] if material else []:
        mask = mask_subject(image)
        _, parts, statistics, _ = cv2.connectedComponentsWithStats((mask > 0.5).astype(np.uint8))
        areas = statistics[1:, cv2.CC_STAT_AREA]
        inside = parts == 1 + np.argmax(areas) if len(areas) else np.zeros(mask.shape, bool)
        if inside.mean() > SMALLEST and mask[inside].mean() > SUREST:
            y, x = np.where(inside)
            opacity = (255 * mask * inside).astype(np.uint8)
            part = np.dstack([image, opacity])[y.min() : y.max() + 1, x.min() : x.max() + 1]
            height, width = part.shape[:2]
            square = np.zeros((max(height, width), max(height, width), 4), np.uint8)
            top, left = (len(square) - height) // 2, (len(square) - width) // 2
            square[top : top + height, left : left + width] = part
            found.append(square)
    return found


def recoloured(random: np.random.Generator, image: np.ndarray, side: int) -> np.ndarray:
    """Change the colours of a subject and mirror it half of the time; float32 `[side, side, 4]`."""
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    image = np.ascontiguousarray(image[:, ::-1] if random.random() < 0.5 else image)
    return np.dstack([recolour(random, image[..., :3]), image[..., 3]]).astype(np.float32)

"""Measures decoding, resizing and cutting of photographs on one core: `python -m tests.benchmarks.decoding`.

Each pipeline decodes a JPEG, resizes it with an antialiased filter to SOLO's size for it and cuts it into patches. The
pipelines take turns within one run, and the fastest of their turns counts, so that ratios hold on a busy machine too.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.images.decoding import verify
from solo.data.images.geometry import resized
from solo.data.images.patches import decode_patches
from tests.data.images.files import jpeg

SIZES = ((500, 375), (640, 480), (1280, 960), (4000, 3000))
PATCH = 32
SECONDS = 2.0  # for each pipeline and size

Size = tuple[int, int]


def pillow(data: bytes, size: Size) -> np.ndarray:
    """Decodes and resizes as all published processors do."""
    image = PillowImage.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image if image.size == size else image.resize(size, PillowImage.Resampling.BILINEAR))


def pillow_draft(data: bytes, size: Size) -> np.ndarray:
    """Lets Pillow decode at a scale."""
    image = PillowImage.open(io.BytesIO(data))
    image.draft("RGB", size)
    image = image.convert("RGB")
    return np.asarray(image if image.size == size else image.resize(size, PillowImage.Resampling.BILINEAR))


def area(data: bytes, size: Size) -> np.ndarray:
    """simplejpeg, then OpenCV's mean over areas."""
    pixels = simplejpeg.decode_jpeg(data)
    return pixels if pixels.shape[1::-1] == size else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def scaled_area(data: bytes, size: Size) -> np.ndarray:
    """The same with simplejpeg's own choice of scale."""
    pixels = simplejpeg.decode_jpeg(data, min_width=size[0], min_height=size[1])
    return pixels if pixels.shape[1::-1] == size else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def scaled_torch(data: bytes, size: Size) -> np.ndarray:
    """simplejpeg at a scale of 1/8, 1/4 or 1/2 if that is enough, then PyTorch's antialiased filter."""
    width, height = simplejpeg.decode_jpeg_header(data)[1::-1]
    eighths = next((n for n in (1, 2, 4, 8) if width * n >= 8 * size[0] and height * n >= 8 * size[1]), 8)
    pixels = simplejpeg.decode_jpeg(data, min_width=-(-width * eighths // 8), min_height=-(-height * eighths // 8))
    if pixels.shape[1::-1] == size:
        return pixels
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    found = torch.nn.functional.interpolate(batch, size[::-1], mode="bilinear", antialias=True)
    return found[0].permute(1, 2, 0).numpy()


def patchified(pipeline: Callable[[bytes, Size], np.ndarray]) -> Callable[[bytes, Size], np.ndarray]:
    """Returns a pipeline that ends in patches, uint8 [n, 3 * PATCH * PATCH]."""

    def cut(data: bytes, size: Size) -> np.ndarray:
        blocks = pipeline(data, size).reshape(size[1] // PATCH, PATCH, size[0] // PATCH, PATCH, 3)
        return blocks.transpose(0, 2, 4, 1, 3).reshape(-1, 3 * PATCH * PATCH)

    return cut


def ours(decoder: str) -> Callable[[bytes, Size], np.ndarray]:
    """Returns this package's pipeline."""
    config = ImageConfig(decoder=decoder, patch_size=PATCH)
    return lambda data, size: decode_patches(data, config).pixels


RIVALS = {
    "Pillow, draft": pillow_draft,
    "simplejpeg, area": area,
    "scaled, area": scaled_area,
    "scaled, torch": scaled_torch,
}


def main() -> None:
    """Prints milliseconds for each size and pipeline, and what the issue asks for as ratios."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for width, height in SIZES:
        files = [jpeg(width, height, quality, seed) for seed, quality in enumerate((85, 90, 92))]
        size = tuple(int(side) for side in resized(np.asarray(width), np.asarray(height), ImageConfig()))
        pipelines = {"Pillow": patchified(pillow), **{name: patchified(rival) for name, rival in RIVALS.items()}}
        pipelines |= {"ours, pillow": ours("pillow"), "ours, fast": ours("fast")}
        pipelines["verify"] = lambda data, size: verify(data)
        least = _least(pipelines, files, size)
        print(f"{width} x {height} to {size[0]} x {size[1]}, milliseconds")
        for name, seconds in least.items():
            ratio, off = least["Pillow"] / seconds, _off(name, pipelines, files, size)
            print(f"  {name:17} {1000 * seconds:7.2f}   {ratio:5.2f} times Pillow{off}")
        found, fastest = least["ours, fast"], min(least[name] for name in (*RIVALS, "Pillow"))
        print(f"  ours, fast: {fastest / found:.0%} of the fastest other one, {1 / found:.0f} images a second")
        sys.stdout.flush()


def _least(pipelines: dict[str, Callable], files: list[bytes], size: Size) -> dict[str, float]:
    """Returns for each pipeline the sum over files of its fastest turn, divided by the number of files."""
    best = {name: [np.inf] * len(files) for name in pipelines}
    ends = time.perf_counter() + SECONDS * len(pipelines)
    while time.perf_counter() < ends:
        for number, data in enumerate(files):
            for name, pipeline in pipelines.items():
                started = time.perf_counter()
                pipeline(data, size)
                best[name][number] = min(best[name][number], time.perf_counter() - started)
    return {name: sum(times) / len(times) for name, times in best.items()}


def _off(name: str, pipelines: dict[str, Callable], files: list[bytes], size: Size) -> str:
    if name == "verify":
        return ""
    exact, found = (pipelines[key](files[0], size).astype(int) for key in ("Pillow", name))
    return f", {np.abs(exact - found).mean():.2f} of 255 off"


if __name__ == "__main__":
    main()

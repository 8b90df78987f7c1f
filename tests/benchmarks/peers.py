"""Compares the input pipeline with what people use now, on the same photographs, in turns on the same cores.

Run as `taskset -c 0 python -m tests.benchmarks.peers [--photographs N]`; it needs the `test` extra. Every pipeline
reads captioned JPEG photographs, decodes and resizes them as SOLO does (patches of 32, longest side 640), tokenizes the
captions unless they were when prepared, and yields packed rows of about 2,048 slots:

solo         `Loader` over prepared data; Pillow decodes, as in the others
solo, fast   the same with `image.decoder: fast`
webdataset   WebDataset over tar shards, PyTorch's DataLoader, documents packed in the order of a shuffle buffer
datasets     Hugging Face datasets over parquet, streamed, PyTorch's DataLoader, packed alike
grain        Grain's MapDataset over the prepared records, with its first-fit packing
energon      Megatron-Energon over the tar shards, packed as WebDataset's; only if it is installed

It prints photographs a second, the share of a row's slots that is filled, and the seconds until the first row when a
run resumes in the middle of the data.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from solo.config import Config, ImageConfig, load_config
from solo.data.images.patches import decode_patches
from solo.data.planning.stage_plan import StagePlan
from solo.data.rows.loader import Loader
from solo.data.store.prepare import Prepared, prepare

SLOTS = 2048
ROUNDS = 3
CAPTION = "a photograph of number {number} with trees, water and a road under a cloudy sky in the evening"
IMAGE = ImageConfig(patch_size=32, max_side=640)

Row = tuple[int, float]  # photographs, and the share of the row's slots that is filled


def photograph(number: int) -> bytes:
    """Returns a JPEG of 640 x 480 pixels that is as hard to decode as a photograph."""
    random = np.random.default_rng(number)
    coarse = PillowImage.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((640, 480), PillowImage.Resampling.BICUBIC), np.int16)
    grain = random.normal(0, 12, (480, 640, 1)).astype(np.int16)
    buffer = io.BytesIO()
    PillowImage.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write(folder: Path, count: int) -> None:
    """Writes the photographs as tar shards, as parquet, and as a folder with a LLaVA list."""
    import json

    import datasets
    import webdataset

    (folder / "images").mkdir()
    chats, rows = [], []
    with webdataset.ShardWriter(str(folder / "shard-%03d.tar"), maxcount=max(count // 8, 1), verbose=0) as tar:
        for number in range(count):
            data, caption = photograph(number), CAPTION.format(number=number)
            tar.write({"__key__": f"{number:06d}", "jpg": data, "txt": caption})
            (folder / "images" / f"{number:06d}.jpg").write_bytes(data)
            chats.append(
                {"image": f"{number:06d}.jpg", "conversations": [{"from": "gpt", "value": f"<image>\n{caption}"}]}
            )
            rows.append({"image": {"bytes": data, "path": None}, "text": caption})
    (folder / "chats.json").write_text(json.dumps(chats))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "photographs.parquet")


def config_of(folder: Path) -> Config:
    """Returns a config of one source and one stage."""
    (folder / "config.yaml").write_text(
        f"""
name: peers
data:
  folder: {folder}/prepared
  tokenizer: {{vocab_size: 320}}
  sources: {{photographs: {{reader: llava, options: {{path: {folder}/chats.json, images: {folder}/images}}}}}}
image: {{patch_size: 32, max_side: 640}}
model: {{width: 16, layers: 1, heads: 2, kv_heads: 2, ffn_width: 16}}
stages:
  - {{name: only, mixture: {{photographs: 1.0}}, steps: 100000, batch_rows: 1, row_slots: {SLOTS}, slot_multiple: 8,
     optimizer: {{learning_rate: 0.001}}}}
"""
    )
    return load_config(folder / "config.yaml")


class Encoder:
    """Turns an encoded photograph and a caption into numbers of patches and text tokens, having computed both."""

    def __init__(self, prepared: Prepared) -> None:
        self.tokenizer = prepared.tokenizer

    def __call__(self, data: bytes, caption: str) -> dict[str, np.ndarray]:
        cut = decode_patches(data, IMAGE)
        rows = int(cut.grid.rows)
        # Delimiters and row tokens, as solo counts them: <s>, <vision>, rows - 1, </vision>, the caption, </s>.
        text = np.asarray([1, 2, *[3] * (rows - 1), 4, *self.tokenizer.encode(caption), 5], np.int32)
        return {"patches": cut.pixels, "text": text}


def packed_greedily(documents: Iterator[dict[str, np.ndarray]]) -> Iterator[Row]:
    """Packs documents in their order into rows of one capacity, as multimodal loaders do; never splits one."""
    count = used = 0
    held: list[np.ndarray] = []
    for document in documents:
        size = len(document["patches"]) + len(document["text"])
        if used + size > SLOTS:
            np.concatenate(held)
            yield count, used / SLOTS
            count, used, held = 0, 0, []
        count, used = count + 1, used + size
        held.append(document["patches"])


def solo_rows(prepared: Prepared, config: Config, start: float) -> Iterator[Row]:
    """Yields the rows of solo's loader from a fraction of an epoch on."""
    stage, sources = config.stages[0], prepared.sources
    plan = StagePlan(stage, {name: source.index for name, source in sources.items()}, config.image, config.data, 0)
    step = int(start * len(sources["photographs"]) / plan.statistics(0, 8).documents[0] * 8)
    with Loader(plan, sources, prepared.tokenizer, config.image, config.data, start_step=step) as loader:
        for number, _batch in enumerate(loader, start=step):
            found = plan.statistics(number, number + 1)
            yield found.documents[0], found.fill


def webdataset_rows(folder: Path, encoder: Encoder, skip: int) -> Iterator[Row]:
    """Yields rows of WebDataset. It resumes by reading and dropping what was read before."""
    import webdataset
    from torch.utils.data import DataLoader

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    found = webdataset.WebDataset(shards, shardshuffle=False).slice(skip, None).shuffle(256)
    dataset = found.map(lambda sample: encoder(sample["jpg"], sample["txt"].decode()))
    return packed_greedily(iter(DataLoader(dataset, batch_size=None, num_workers=0)))


def datasets_rows(folder: Path, encoder: Encoder, skip: int) -> Iterator[Row]:
    """Yields rows of Hugging Face datasets, streamed, with its own way to skip."""
    import datasets
    from torch.utils.data import DataLoader

    found = datasets.load_dataset(
        "parquet", data_files=str(folder / "photographs.parquet"), split="train", streaming=True
    )
    found = found.cast_column("image", datasets.Image(decode=False)).skip(skip).shuffle(buffer_size=256, seed=0)
    dataset = found.map(lambda row: encoder(row["image"]["bytes"], row["text"]), remove_columns=["image"])
    return packed_greedily(iter(DataLoader(dataset.with_format("numpy"), batch_size=None, num_workers=0)))


def grain_rows(prepared: Prepared, encoder: Encoder, skip: int) -> Iterator[Row]:
    """Yields rows of Grain's first-fit packing over random access to the same records."""
    import grain
    from grain.experimental import FirstFitPackIterDataset

    source = prepared.sources["photographs"]

    def document(number: int) -> dict[str, np.ndarray]:
        record = source.read(int(number))
        found = encoder(record.images()[0].data, CAPTION.format(number=number))
        return {
            "slots": np.zeros(len(found["patches"]) + len(found["text"]), np.int8),
            "patches": found["patches"][:, 0],
        }

    numbers = grain.MapDataset.range(len(source)).shuffle(seed=0).repeat()[skip:].map(document)
    packed = FirstFitPackIterDataset(
        numbers.to_iter_dataset(),
        length_struct={"slots": SLOTS, "patches": SLOTS},
        num_packing_bins=32,
        shuffle_bins=False,
    )
    for row in packed:
        segments = row["slots_segment_ids"] if isinstance(row, dict) else row[0]["slots_segment_ids"]
        yield int(segments.max()), float((segments > 0).mean())


def energon_loader(folder: Path) -> Any:
    """Returns Energon's loader of encoded photographs and captions; prepares the shards the first time."""
    import yaml
    from megatron import energon
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    class Raw(energon.DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None

        def encode_sample(self, sample: Any) -> Any:
            return sample

    if not (folder / ".nv-meta" / "dataset.yaml").exists():
        names = sorted(path.name for path in folder.glob("*.tar"))
        WebdatasetPreparator.prepare_dataset(folder, names, split_parts_ratio=[("train", 1.0)], workers=1)
        fields = {"image": "jpg", "caption": "txt"}
        kind = {"__module__": "megatron.energon", "__class__": "CaptioningWebdataset", "field_map": fields}
        (folder / ".nv-meta" / "dataset.yaml").write_text(yaml.safe_dump(kind))
    alone = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    options = {"batch_size": None, "shuffle_buffer_size": 256, "max_samples_per_sequence": 100}
    dataset = energon.get_train_dataset(folder, worker_config=alone, task_encoder=Raw(), **options)
    return energon.get_savable_loader(dataset)


def energon_rows(folder: Path, encoder: Encoder, state: Any = None) -> Iterator[Row]:
    """Yields rows of Energon, from a state that it saved."""
    loader = energon_loader(folder)
    if state is not None:
        loader.restore_state_rank(state)
    return packed_greedily(encoder(sample.image, sample.caption.decode()) for sample in loader)


def measure(rows: Iterator[Row], photographs: int) -> tuple[float, float]:
    """Returns photographs a second from the start on, and the mean fill of the rows."""
    started = time.perf_counter()
    found: list[Row] = []
    while sum(count for count, _ in found) < photographs:
        found.append(next(rows))
    took = time.perf_counter() - started
    return sum(count for count, _ in found) / took, statistics.mean(fill for _, fill in found)


def main(count: int) -> None:
    """Measures all pipelines in turns, and prints medians."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, count)
        config = config_of(folder)
        fast = config.model_copy(update={"image": config.image.model_copy(update={"decoder": "fast"})})
        prepared = prepare(config)
        encoder = Encoder(prepared)
        pipelines: dict[str, Callable[[float], Iterator[Row]]] = {
            "solo": lambda start: solo_rows(prepared, config, start),
            "solo, fast": lambda start: solo_rows(prepared, fast, start),
            "webdataset": lambda start: webdataset_rows(folder, encoder, int(start * count)),
            "datasets": lambda start: datasets_rows(folder, encoder, int(start * count)),
            "grain": lambda start: grain_rows(prepared, encoder, int(start * count)),
        }
        if find_spec("megatron.energon") if find_spec("megatron") else None:
            loader = energon_loader(folder)
            for _ in zip(range(count // 2), loader, strict=False):
                pass
            state = loader.save_state_rank()
            pipelines["energon"] = lambda start: energon_rows(folder, encoder, state if start else None)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
        resumed: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(ROUNDS):
            for name, make in pipelines.items():
                found[name].append(measure(make(0.0), int(0.9 * count)))
                started = time.perf_counter()
                next(make(0.5))
                resumed[name].append(time.perf_counter() - started)
        base = statistics.median(rate for rate, _ in found["solo"])
        for name in pipelines:
            rate = statistics.median(rate for rate, _ in found[name])
            print(
                f"{name:11} {rate:5.0f} photographs/s ({rate / base:.2f} of solo), fill {found[name][0][1]:.1%}, "
                f"first row after resuming at {count // 2:,}: {statistics.median(resumed[name]):.2f} s"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--photographs", type=int, default=1500)
    main(parser.parse_args().photographs)

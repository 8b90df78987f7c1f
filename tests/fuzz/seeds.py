"""Small valid sources of every reader, made by the libraries of their formats, and how the fuzzer may change them."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image as PillowImage

from tests.data.readers.pictures import BLUE, RED

FOLDER = "{folder}"  # stands for the folder of the source in its options
URI = "data:image/png;base64," + base64.b64encode(RED.data).decode()
SAID = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "Because."}]
ASKED = [{"role": "user", "content": "<image>Why?"}, {"role": "assistant", "content": "So."}]
IMAGE = {"bytes": RED.data, "path": None}
PICTURES = {"red.png": RED.data, "blue.png": BLUE.data, "sub/red.png": RED.data}


@dataclass(frozen=True)
class Seed:
    """A source.

    reader   its name
    options  sets of options of which one is taken
    files    contents by path
    main     files that are changed more often than the others
    """

    reader: str
    options: tuple[dict[str, Any], ...]
    files: dict[str, bytes]
    main: tuple[str, ...]


def lines(*values: Any) -> bytes:
    """Returns JSON lines."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def at(name: str = "") -> str:
    """Returns a path in the folder of the source, for its options."""
    return f"{FOLDER}/{name}" if name else FOLDER


CONVERSATIONS = [
    {"id": "a", "image": "red.png", "conversations": SAID},
    {
        "id": 2,
        "image": ["red.png", "sub/red.png"],
        "conversations": [{"from": "human", "value": "<image><image>?"}, SAID[1]],
    },
    {"conversations": [{"from": "system", "value": "Be brief."}, *SAID], "images": ["blue.png"], "source": "web"},
    {
        "id": "d",
        "conversations": [{"from": "human", "value": "Text alone"}, {"from": "gpt", "value": "é漢 \U0001f600"}],
    },
    {
        "id": "e",
        "system": "Short.",
        "conversations": [{"from": "gpt", "value": "A", "weight": 0}, {"from": "gpt", "value": "B"}],
    },
    {"id": "f", "image": "sub/red.png", "width": 3, "conversations": SAID},
]
MESSAGES = [
    {"messages": ASKED, "images": ["red.png"]},
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": URI}}, {"type": "text", "text": "Why?"}],
            },
            ASKED[1],
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "blue.png"}, "Why?"]}, ASKED[1]]},
    {"query": "<image>What?", "response": "This.", "history": [["A?", "B."]], "images": ["red.png"]},
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes.", "loss": True}]},
    {
        "image": {"<image_00>": "red.png", "<image_01>": "blue.png"},
        "conversations": [{"role": "user", "content": "<image_01> or <image_00>?"}, ASKED[1]],
    },
]
SOLO = [
    [
        {
            "role": "assistant",
            "content": [{"type": "image_url", "image_url": {"url": URI}}, {"type": "text", "text": "A wall."}],
        }
    ],
    {"role": "assistant", "content": "A text."},
    {"conversations": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, ASKED[1]]},
]
OBELICS = {
    "texts": ["Flour.", None, "Bread."],
    "images": [None, "red.png", None],
    "metadata": "[]",
    "url": "http://x.org",
}
MMC4 = {
    "text_list": ["Flour.", "Bread."],
    "image_info": [
        {"image_name": "red.png", "matched_text_index": 1, "matched_sim": 0.3, "raw_url": "http://x.org/red.png"}
    ],
    "similarity_matrix": [[0.1, 0.3]],
}
MOSCAR = {
    "text": [{"text_idx": "#0", "text": "Flour."}, {"text_idx": "#2", "text": "Bread."}],
    "images": [{"img_idx": "#1", "url": "http://x.org/red.png", "path": "red.png"}],
    "metadata": [{"node_order": "txt_#0|img_#1|txt_#2", "url": "http://x.org"}],
}
COCO = {
    "images": [
        {"id": 9, "file_name": "red.png", "width": 3},
        {"id": 25, "file_name": "blue.png"},
        {"id": 30, "file_name": "sub/red.png"},
    ],
    "annotations": [
        {"image_id": 25, "id": 1, "caption": "A sea."},
        {"image_id": 9, "id": 2, "caption": "A wall."},
        {"image_id": 9, "id": 3, "caption": "Red."},
    ],
}
KARPATHY = {
    "images": [
        {
            "filepath": "sub",
            "filename": "red.png",
            "split": "train",
            "cocoid": 1,
            "sentences": [{"raw": "one"}, {"raw": "two"}],
        },
        {"filename": "blue.png", "split": "val", "cocoid": 2, "sentences": [{"raw": "three"}]},
    ]
}
PAIRS = [{"image": "red.png", "caption": "A wall."}, {"image": "blue.png", "caption": ["A sea.", "Blue."], "id": 4}]
QUESTIONS = {
    "data_subtype": "train2014",
    "questions": [
        {"image_id": 9, "question": "Red?", "question_id": 1},
        {"image_id": 25, "question": "Blue?", "question_id": 2},
    ],
}
ANSWERS = {
    "annotations": [
        {"question_id": 1, "answers": [{"answer": "yes"}, {"answer": "wall"}], "multiple_choice_answer": "yes"},
        {"question_id": 2, "answers": [{"answer": "sea"}]},
    ]
}
QUESTION_LINES = [
    {"question": "Red?", "answer": "yes", "image": "red.png", "id": "q1"},
    {"question": "Blue?", "answers": ["sea", "sea", "sky"], "image_id": "blue.png", "questionId": 7},
]
GQA = {
    "07": {"question": "Red?", "answer": "yes", "imageId": "red"},
    "08": {"question": "Blue?", "answer": "no", "imageId": "blue"},
}
GENOME = [{"id": 1, "qas": [{"qa_id": 3, "image_id": "red.png", "question": "Red?", "answer": "Yes."}]}]
FRAMES = [
    {"id": "v", "frames": ["red.png", "blue.png", "sub/red.png"], "times": [0.0, 0.5, 1.5], "text": "A video."},
    {"id": 3, "video": "sub", "fps": 2, "caption": "Another."},
    {
        "frames": ["red.png", "blue.png"],
        "timestamps": [1, 2],
        "conversations": [{"from": "human", "value": "<video>What?"}, SAID[1]],
    },
]


def archive(*samples: dict[str, Any], **options: Any) -> bytes:
    """Returns a tar shard, written by the library webdataset."""
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0, **options) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:04d}"} | sample)
    return buffer.getvalue()


def parquet(rows: list[dict[str, Any]], features: datasets.Features | None = None) -> bytes:
    """Returns a parquet file, written by the library datasets."""
    buffer = io.BytesIO()
    datasets.Dataset.from_list(rows, features=features).to_parquet(buffer, batch_size=2)
    return buffer.getvalue()


def table(rows: list[dict[str, Any]], **options: Any) -> bytes:
    """Returns a parquet file, written by pyarrow."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=2, **options)
    return buffer.getvalue()


def arrow(rows: list[dict[str, Any]], stream: bool) -> bytes:
    """Returns an Arrow file or stream, as the library datasets saves it."""
    buffer = io.BytesIO()
    found = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(buffer, found.schema) as writer:
        writer.write_table(found, max_chunksize=2)
    return buffer.getvalue()


def csv_text(*rows: list[str]) -> bytes:
    """Returns a CSV file."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


@contextmanager
def written(build: Callable[[Path], None]) -> Iterator[dict[str, bytes]]:
    """Gives the files that a library writes to a folder."""
    folder = Path(tempfile.mkdtemp())
    try:
        build(folder)
        yield files_of(folder)
    finally:
        shutil.rmtree(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns the contents of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _tfds(folder: Path) -> None:
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "caption": tfds.features.Text(),
        "texts": tfds.features.Sequence(tfds.features.Text()),
        "pixels": tfds.features.Tensor(shape=(2, 3, 3), dtype=np.uint8),
    }

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for number in range(4):
                example = {"image": io.BytesIO(RED.data), "label": number % 2, "caption": f"number {number}"}
                yield number, example | {"texts": ["a", "b"], "pixels": np.full((2, 3, 3), number, np.uint8)}

    builder = Tiny(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))


def tfds_seed() -> Seed:
    """Returns a dataset of TFDS, which takes seconds to import and to build."""
    with written(_tfds) as files:
        files = {name.removeprefix("tiny/1.0.0/"): data for name, data in files.items()}
    choices = [{"text": "label"}, {"text": "caption"}, {"text": "texts"}, {"image": "pixels"}]
    return Seed("tfds", tuple({"path": at()} | choice for choice in choices), files, tuple(files))


def all_seeds() -> dict[str, Seed]:
    """Returns every source except that of TFDS, by name."""
    photo = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    labelled = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    captions = [{"image": IMAGE, "caption": f"number {number}"} for number in range(5)]
    turns = [
        {"images": [IMAGE, IMAGE], "texts": [{"user": "<image><image>?", "assistant": "So."}], "relevance_ratings": [4]}
    ] * 3
    plain = [{"text": f"Text {number}."} for number in range(5)]
    here = {"images": FOLDER}
    shard = [
        {"png": RED.data, "txt": "A wall."},
        {"png": BLUE.data, "json": {"conversations": SAID}},
        {"png": RED.data, "caption": "Red."},
    ]

    def saved(folder: Path) -> None:
        datasets.DatasetDict({"train": datasets.Dataset.from_list(captions, features=photo)}).save_to_disk(str(folder))

    with written(saved) as saved_files:
        pass
    seeds = {
        "llava-json": (
            "llava",
            [{"path": at("a.json"), **here}],
            {"a.json": json.dumps(CONVERSATIONS, indent=1).encode()},
        ),
        "llava-lines": (
            "llava",
            [{"path": at("a.jsonl"), **here}, {"path": at("*.jsonl"), **here, "train_on_inputs": True}],
            {"a.jsonl": lines(*CONVERSATIONS)},
        ),
        "messages": ("messages", [{"path": at("a.jsonl"), **here}], {"a.jsonl": lines(*MESSAGES)}),
        "solo": ("solo", [{"path": at("a.jsonl"), **here}], {"a.jsonl": lines(*SOLO)}),
        "text-lines": (
            "text",
            [{"path": at("*.txt"), "document": kind} for kind in ("file", "line", "paragraph")],
            {"a.txt": "One.\nTwo é.\n\nThree.\r\n\n\nFour\n".encode(), "b.txt": b"Alone", "c.txt": b"x\n" * 50},
        ),
        "text-json": (
            "text",
            [{"path": at("a.jsonl")}, {"path": at("a.jsonl"), "field": "body"}],
            {"a.jsonl": lines(*plain, {"text": "x", "body": "y"})},
        ),
        "text-table": ("text", [{"path": at("a.parquet")}], {"a.parquet": table(plain)}),
        "webdataset": (
            "webdataset",
            [
                {"path": at("*.tar")},
                {"path": FOLDER},
                {"path": at("a.tar"), "image": "*png", "text": "txt"},
                {"path": at("a.tar"), "json_key": "caption"},
            ],
            {"a.tar": archive(*shard), "b.tar": archive({"png": RED.data, "json": {"caption": "A."}})},
        ),
        "parquet-captions": ("parquet", [{"path": at("a.parquet")}], {"a.parquet": parquet(captions, photo)}),
        "parquet-labels": (
            "parquet",
            [{"path": FOLDER}],
            {"train-00000-of-00001.parquet": parquet([{"image": IMAGE, "label": n % 2} for n in range(4)], labelled)},
        ),
        "parquet-turns": (
            "parquet",
            [
                {"path": at("a.parquet"), **choice}
                for choice in ({}, {"min_ratings": {"relevance": 3}}, {"text": "texts", "image": "images"})
            ],
            {"a.parquet": table(turns, compression="zstd")},
        ),
        "parquet-messages": (
            "parquet",
            [{"path": at("*.parquet"), **here}],
            {
                "a.parquet": table([{"image": "red.png", "messages": json.dumps(ASKED), "id": n} for n in range(3)]),
                "b.parquet": table([{"messages": ASKED, "image": IMAGE}] * 3),
            },
        ),
        "arrow-file": ("parquet", [{"path": at("a.arrow")}], {"a.arrow": arrow(captions, False)}),
        "arrow-stream": ("parquet", [{"path": at("a.arrow")}], {"a.arrow": arrow(captions, True)}),
        "parquet-saved": ("parquet", [{"path": FOLDER}, {"path": FOLDER, "split": "train"}], saved_files),
        "interleaved": (
            "interleaved",
            [
                {"path": at("a.jsonl"), **here, "missing": missing, "urls": at("urls.json")}
                for missing in ("refuse", "drop")
            ]
            + [{"path": at("a.jsonl"), **here, "min_similarity": 0.2}],
            {
                "a.jsonl": lines(OBELICS, MMC4, MOSCAR, MMC4),
                "urls.json": json.dumps({"http://x.org/red.png": "red.png"}).encode(),
            },
        ),
        "interleaved-table": (
            "interleaved",
            [{"path": at("a.parquet")}],
            {"a.parquet": table([{"texts": ["a", None], "images": [None, IMAGE], "metadata": "x"}] * 3)},
        ),
        "interleaved-archive": (
            "interleaved",
            [{"path": at("a.tar"), **here}],
            {"a.tar": archive({"json": MMC4}, {"json": OBELICS, "txt": "x"})},
        ),
        "folder": (
            "folder",
            [
                {"path": at("top")},
                {"path": at("top"), "form": "question"},
                {"path": at("top"), "names": at("names.txt")},
                {"path": at("top"), "names": at("names.json")},
            ],
            {
                "top/tabby_cat/1.png": RED.data,
                "top/tabby_cat/deep/2.png": BLUE.data,
                "top/n01443537/10.png": RED.data,
                "names.txt": b"tabby_cat\tcat\nn01443537 goldfish\n",
                "names.json": json.dumps({"tabby_cat": ["cat"], "n01443537": "goldfish"}).encode(),
            },
        ),
        "imagefolder-lines": (
            "imagefolder",
            [{"path": FOLDER, "captions": captions} for captions in ("each", "all", "first")],
            {
                "metadata.jsonl": lines(
                    {"file_name": "red.png", "text": "A wall."},
                    {"file_names": ["blue.png", "sub/red.png"], "text": ["A.", "B."]},
                )
            },
        ),
        "imagefolder-csv": (
            "imagefolder",
            [{"path": FOLDER}],
            {
                "metadata.csv": csv_text(
                    ["file_name", "text"], ["red.png", "A wall."], ["blue.png", 'A "sea",\nwide.'], ["sub/red.png", "é"]
                )
            },
        ),
        "imagefolder-table": (
            "imagefolder",
            [{"path": FOLDER}],
            {"metadata.parquet": table([{"file_name": name, "text": "A."} for name in PICTURES])},
        ),
        "imagefolder-beside": (
            "imagefolder",
            [{"path": FOLDER, "beside": ".txt"}],
            {"red.txt": b"A wall.", "blue.txt": b"A sea.\n", "sub/red.txt": "é".encode()},
        ),
        "coco": (
            "coco",
            [{"path": at("a.json"), **here, "captions": kind} for kind in ("each", "all")],
            {"a.json": json.dumps(COCO).encode()},
        ),
        "coco-karpathy": (
            "coco",
            [{"path": at("a.json"), **here, "split": "train,val"}, {"path": at("a.json"), **here}],
            {"a.json": json.dumps(KARPATHY).encode()},
        ),
        "coco-pairs": ("coco", [{"path": at("a.jsonl"), **here}], {"a.jsonl": lines(*PAIRS)}),
        "vqa": (
            "vqa",
            [
                {"path": at("q.json"), "annotations": at("a.json"), **here, **choice}
                for choice in (
                    {},
                    {"image_name": "red.png"},
                    {"image_name": "{image_id:012d}.jpg"},
                    {"per": "image", "answers": "all"},
                )
            ],
            {
                "q.json": json.dumps(QUESTIONS).encode(),
                "a.json": json.dumps(ANSWERS).encode(),
                "COCO_train2014_000000000009.jpg": RED.data,
                "25.jpg": BLUE.data,
            },
        ),
        "vqa-lines": (
            "vqa",
            [{"path": at("q.jsonl"), **here}, {"path": at("q.jsonl"), **here, "per": "image"}],
            {"q.jsonl": lines(*QUESTION_LINES)},
        ),
        "vqa-gqa": ("vqa", [{"path": at("q.json"), **here}], {"q.json": json.dumps(GQA).encode()}),
        "vqa-genome": ("vqa", [{"path": at("q.json"), **here}], {"q.json": json.dumps(GENOME).encode()}),
        "frames-lines": (
            "frames",
            [
                {"path": at("a.jsonl"), **here, **choice}
                for choice in (
                    {},
                    {"fps": 1.0},
                    {"before_frame": "{time:.1f}s ", "source_fps": 2.0},
                    {"frames": 2, "fps": 30.0},
                )
            ],
            {"a.jsonl": lines(*FRAMES)},
        ),
        "frames-folder": (
            "frames",
            [{"path": at("top")}, {"path": at("top"), "fps": 1.0, "source_fps": 3.0, "frames": 1}],
            {
                "top/v/1.png": RED.data,
                "top/v/2.png": BLUE.data,
                "top/v.txt": b"A video.",
                "top/w/10.png": RED.data,
                "top/w/w.txt": b"Another.",
            },
        ),
    }
    found = {}
    for name, (reader, options, files) in seeds.items():
        found[name] = Seed(reader, tuple(options), PICTURES | files, tuple(files))
    for name in [name for name in found if name not in ("interleaved-archive",)]:
        seed = found[name]
        paths = tuple({"path": option["path"]} for option in seed.options[:1])
        found[f"auto-{name}"] = Seed("auto", paths, seed.files, seed.main)
    return found


def image_seeds() -> dict[str, list[bytes]]:
    """Returns valid image files by format, written by Pillow."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (24, 33, 4), dtype=np.uint8)
    smooth = PillowImage.fromarray(pixels).resize((47, 31), PillowImage.Resampling.BICUBIC)
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    variants: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "JPEG": [
            ("RGB", {}),
            ("L", {}),
            ("CMYK", {}),
            ("RGB", {"progressive": True}),
            ("RGB", {"exif": exif, "restart_marker_blocks": 1}),
        ],
        "PNG": [("RGB", {}), ("RGBA", {}), ("P", {}), ("1", {}), ("I;16", {}), ("LA", {"exif": exif})],
        "WEBP": [("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"exif": exif})],
        "GIF": [("P", {}), ("RGBA", {"save_all": True, "append_images": [smooth.rotate(90)]})],
        "BMP": [("RGB", {}), ("P", {}), ("1", {})],
        "TIFF": [
            ("RGB", {}),
            ("RGBA", {"compression": "tiff_lzw"}),
            ("L", {"compression": "tiff_adobe_deflate"}),
            ("F", {}),
            ("CMYK", {}),
            ("1", {"compression": "group4"}),
            ("RGB", {"compression": "jpeg"}),
        ],
        "AVIF": [("RGB", {}), ("RGBA", {})],
        "PPM": [("RGB", {}), ("L", {}), ("1", {})],
        "JPEG2000": [("RGB", {}), ("L", {})],
        "DIB": [("RGB", {})],
        "QOI": [("RGB", {}), ("RGBA", {})],
        "PCX": [("RGB", {}), ("P", {})],
        "SGI": [("RGB", {}), ("L", {})],
        "DDS": [("RGB", {}), ("RGBA", {})],
        "TGA": [("RGB", {}), ("RGB", {"compression": "tga_rle"})],
    }
    found: dict[str, list[bytes]] = {}
    for kind, made in variants.items():
        for mode, options in made:
            buffer = io.BytesIO()
            source = smooth.convert("RGB") if mode not in ("RGBA", "LA") else smooth
            image = (
                PillowImage.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 256)
                if mode == "I;16"
                else source.convert(mode)
            )
            image.save(buffer, kind, **options)
            found.setdefault(kind, []).append(buffer.getvalue())
    return found

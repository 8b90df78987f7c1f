"""Renders the data of a run as one self-contained HTML file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import solo
from solo.config import Config, StageConfig, dump_config
from solo.data.images.geometry import too_thin
from solo.data.inspection.packed_row import COLOURS, Row, packed_row
from solo.data.inspection.samples import Sample, sample
from solo.data.planning.permutation import permute
from solo.data.planning.row_shape import record_needs
from solo.data.planning.stage_plan import Chunk, StagePlan
from solo.data.rows.loader import RowSource, read_document
from solo.data.store.part import PartManifest
from solo.data.store.part_files import reason_kind
from solo.data.store.prepare import Prepared
from solo.data.store.source import PreparedSource
from solo.data.store.summary import left_aside
from solo.files import read_json_lines

_PLANNED_ROWS = 4096  # rows of a stage to plan for its figures
_WINDOWS = 24
_WEIGHT_STEPS = 200  # number of steps at which changing weights are drawn
_LEFT_OUT_SHOWN = 3


@dataclass(frozen=True)
class LeftOut:
    """The examples of a source that were left out by one filter or for one reason: their number and the first few."""

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class SourceView:
    """What a page shows of one source."""

    name: str
    reader: str
    options: str
    figures: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    quarantined: tuple[LeftOut, ...]
    filtered: tuple[LeftOut, ...]
    histograms: Markup
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Use:
    """How a stage uses a source: its weight over the steps, its share of the documents, its passes in the stage."""

    name: str
    weight: str
    documents: str
    repeats: str
    notes: str


@dataclass(frozen=True)
class StageView:
    """What a page shows of one stage."""

    name: str
    facts: str
    fill: tuple[tuple[str, float], ...]
    uses: tuple[Use, ...]
    shares: Markup
    row: Row


def render(config: Config, prepared: Prepared, samples: int = 3, step: int = 0) -> str:
    """Returns the page. The same arguments always give the same text.

    Args:
        config: the run; without stages, only its sources are shown.
        prepared: its data.
        samples: number of documents to show from each source, chosen at random with a fixed seed.
        step: for each stage, the step whose first row is shown; the last step if the stage is shorter.
    """
    source = files("solo.data.inspection").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        name=config.name,
        folder=config.data.folder,
        vocabulary=prepared.tokenizer.vocab_size,
        sources=[_source(name, config, prepared, samples) for name in config.data.sources],
        stages=[_stage(stage, config, prepared, step) for stage in config.stages],
        colours=COLOURS,
        config=dump_config(config),
        version=solo.__version__,
    )


def _source(name: str, config: Config, prepared: Prepared, samples: int) -> SourceView:
    from solo.data.inspection.figures import histograms  # Matplotlib takes half a second

    source, settings = prepared.sources[name], config.data.sources[name]
    made, index = source.description, source.index
    patches, text, learned = index.counts(config.image).sum(axis=0).tolist()
    sizes = index.image_sizes(config.image.exif)
    figures = (
        ("records", f"{len(source):,}"),
        ("images", f"{made.images:,}"),
        ("patches", f"{patches:,}"),
        ("text tokens", f"{text:,}"),
        ("learned", f"{learned:,}"),
        ("quarantined", f"{made.quarantined:,}"),
        ("filtered", f"{sum(made.filtered.values()):,}"),
    )
    notes = tuple(_notes(name, source, int(too_thin(sizes[:, 0], sizes[:, 1], config.image).sum())))
    count = min(samples, len(source))
    chosen = np.sort(permute(np.arange(count), len(source), key=0)).tolist() if count else []
    return SourceView(
        name,
        settings.reader,
        json.dumps(settings.options, ensure_ascii=False),
        figures,
        notes,
        quarantined(source),
        filtered(source),
        histograms(name, index, config.image),
        tuple(_sample(source, number, config, prepared) for number in chosen),
    )


def _notes(name: str, source: PreparedSource, thin: int) -> Iterator[str]:
    made = source.description
    if thin:
        yield f"{thin:,} images are so thin that resizing leaves one row of patches."
    if made.unknown_tokens:
        yield f"{made.unknown_tokens:,} text tokens stand for characters that the tokenizer lacks."
    parts = (PartManifest.read(source.folder / "parts", part.name) for part in made.parts)
    for line in left_aside(name, [part for part in parts if part]):
        yield line.strip() + "."


def quarantined(source: PreparedSource) -> tuple[LeftOut, ...]:
    """Returns the reasons why examples of a source cannot be used, most frequent first."""
    counts, examples = _grouped(source.folder / "quarantine.jsonl", lambda line: reason_kind(str(line["reason"]))[:160])
    return tuple(LeftOut(kind, count, tuple(examples[kind])) for kind, count in counts.most_common())


def filtered(source: PreparedSource) -> tuple[LeftOut, ...]:
    """Returns the settings that left out records of a source, most frequent first, with examples of the records."""
    _, examples = _grouped(source.folder / "filtered.jsonl", lambda line: str(line["filter"]))
    counts = Counter(source.description.filtered)
    return tuple(LeftOut(key, count, tuple(examples.get(key, ()))) for key, count in counts.most_common() if count)


def _grouped(path: Path, kind_of: Callable[[Mapping[str, Any]], str]) -> tuple[Counter[str], dict[str, list[str]]]:
    """Counts the lines of a file by kind. Also returns descriptions of the first few lines of each kind."""
    counts, examples = Counter[str](), dict[str, list[str]]()
    for line in read_json_lines(path)[0]:
        kind = kind_of(line)
        counts[kind] += 1
        if counts[kind] <= _LEFT_OUT_SHOWN:
            examples.setdefault(kind, []).append(_where(line))
    return counts, examples


def _where(line: Mapping[str, Any]) -> str:
    place = f"{line['file']}:{line['line']}" if line.get("line") else line.get("file") or ""
    return " ".join(filter(None, [str(line["id"]), f"({place})" if place else "", f"- {line['reason']}"]))[:300]


def _sample(source: PreparedSource, number: int, config: Config, prepared: Prepared) -> Sample:
    patches, text, targets = record_needs(source.index.select(range(number, number + 1)), config.image)[0].tolist()
    whole = Chunk(0, number, 0, patches + text, patches + text, (patches, text, targets))
    document = read_document(source, whole, prepared.tokenizer, config.image)
    return sample(source.id(number), document, prepared.tokenizer, config.image)


def _stage(stage: StageConfig, config: Config, prepared: Prepared, step: int) -> StageView:
    sources = {name: prepared.sources[name] for name in stage.sources}
    image = config.image_in(stage)
    plan = StagePlan(stage, {name: source.index for name, source in sources.items()}, image, config.data, config.seed)
    planned = max(1, min(plan.num_steps, -(-_PLANNED_ROWS // stage.batch_rows)))
    edges = np.unique(np.linspace(0, planned, min(_WINDOWS, planned) + 1).astype(int)).tolist()
    windows = [plan.statistics(start, stop) for start, stop in pairwise(edges)]
    drawn = np.asarray([window.documents for window in windows], float)
    total, useful = drawn.sum(axis=0), np.sum([window.useful for window in windows], axis=0)
    rows = sum(window.rows for window in windows)
    slots = (plan.shape.patch_slots, plan.shape.text_slots, plan.shape.target_slots)
    fill = tuple(
        (region, used / (rows * count))
        for region, used, count in zip(("patch", "text", "target"), useful.tolist(), slots, strict=True)
        if count
    )
    return StageView(
        stage.name,
        f"{plan.num_steps:,} steps of {stage.batch_rows:,} rows; {slots[0]:,} patch, {slots[1]:,} text and"
        f" {slots[2]:,} target slots in each"
        + ("; weights move on a line between their steps" if stage.mixture_between == "linear" else "")
        + ("; weights are learned" if stage.mixture_learning else "")
        + (f"; figures of the first {planned:,} steps" if planned < plan.num_steps else ""),
        fill,
        tuple(_uses(stage, plan, total, planned)),
        _shares(plan, edges, drawn),
        _row(plan, sources, config, prepared, min(step, plan.num_steps - 1)),
    )


def _shares(plan: StagePlan, edges: list[int], drawn: np.ndarray) -> Markup:
    """Draws the shares in the planned steps, or, if weights change later, the shares by weight in the whole stage."""
    from solo.data.inspection.figures import shares

    title = "share of documents"
    if plan.weight_steps and edges[-1] < plan.num_steps:
        title = "share of documents, from the weights"
        edges = np.unique(np.linspace(0, plan.num_steps, min(_WEIGHT_STEPS, plan.num_steps) + 1).astype(int)).tolist()
        drawn = np.asarray([list(plan.shares(step).values()) for step in edges[:-1]])
    drawn = drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1e-9)
    return shares(plan.stage.name, title, edges, dict(zip(plan.stage.sources, drawn.T, strict=True)))


def _uses(stage: StageConfig, plan: StagePlan, drawn: np.ndarray, planned: int) -> Sequence[Use]:
    found = []
    for name, count in zip(stage.sources, drawn, strict=True):
        chunks = plan.chunks[name]
        notes = [f"{chunks.split:,} documents cut to fit a row"] if chunks.split else []
        notes += [f"{number:,} left out: {reason}" for reason, number in chunks.dropped.items()]
        # If the whole stage was planned, the count is exact; the estimate assumes full rows.
        passes = count / len(chunks) if planned == plan.num_steps else plan.expected_passes[name]
        share = f"{count / max(drawn.sum(), 1):.1%}"
        found.append(Use(name, _weight(stage, name), share, f"{passes:,.3g}", "; ".join(notes)))
    return found


def _weight(stage: StageConfig, name: str) -> str:
    """Describes the weight of a source, and the steps at which it changes."""
    points = {0: stage.mixture.get(name, 0.0)}
    for entries in (stage.mixture_schedule, stage.mixture_changes):
        points |= {step: entry[name] for step, entry in entries.items() if name in entry}
    first, *later = [(step, f"{points[step]:g}") for step in sorted(points)]
    return " → ".join([first[1], *(f"{weight} at step {step:,}" for step, weight in later)])


def _row(plan: StagePlan, sources: Mapping[str, PreparedSource], config: Config, prepared: Prepared, step: int) -> Row:
    image = config.image_in(plan.stage)
    rows = RowSource(
        plan, sources, prepared.tokenizer, image, range(plan.stage.batch_rows), step, sequence=config.sequence
    )
    chunks = plan.row(step, 0)
    names = list(sources)
    documents = [read_document(sources[names[chunk.source]], chunk, prepared.tokenizer, image) for chunk in chunks]
    return packed_row(rows[0], documents, chunks, names, plan.shape, prepared.tokenizer, image)

"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import solo
from solo.scaling.laws.predict import FAR, Prediction
from solo.scaling.laws.result import Answer, Study
from solo.scaling.laws.table import Table
from solo.scaling.report import figures
from solo.scaling.report.terminal import cross_check, figure, fit_in_words, span

_MOST_ROWS = 60


@dataclass(frozen=True)
class Picture:
    """A figure with its heading and what to look for in it."""

    title: str
    note: str
    svg: Markup


def render(table: Table, studies: Sequence[Study], command: str) -> str:
    """The report's HTML.

    Args:
        table: what was read.
        studies: what came of it.
        command: that made the report.
    """
    source = files("solo.scaling.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        path=table.path,
        table=table,
        facts=_facts(table, studies),
        studies=[_study(place, found) for place, found in enumerate(studies, start=1)],
        command=command,
        version=solo.__version__,
        most_rows=_MOST_ROWS,
    )


def _facts(table: Table, studies: Sequence[Study]) -> list[tuple[str, str]]:
    facts = [("rows read", f"{table.read:,}"), ("to fit", f"{len(table.rows):,}")]
    if table.set_aside:
        facts.append(("set aside", f"{len(table.set_aside):,}"))
    if studies:
        runs = studies[0].runs
        facts += [
            ("compute, FLOPs", f"{runs.flops.min():.2g} to {runs.flops.max():.2g}"),
            ("active parameters", f"{figures.large(runs.n.min())} to {figures.large(runs.n.max())}"),
            ("tokens per parameter", f"{(runs.d / runs.n).min():.3g} to {(runs.d / runs.n).max():.3g}"),
        ]
    return facts


def _study(place: int, found: Study) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "anchor": f"law-{place}",
        "title": found.title,
        "formula": found.question.law.formula,
        "refused": found.refused,
        "set_aside": found.set_aside,
        "runs": len(found.runs),
    }
    answer = found.answer
    if answer is None:
        return shown
    return shown | {
        "lead": fit_in_words(found, answer),
        "notes": answer.notes,
        "coefficients": list(_coefficients(answer)),
        "with_dropped": answer.with_dropped is not None,
        "hold_out": _hold_out(answer),
        "hold_out_refused": answer.hold_out_refused,
        "ladder": answer.ladder,
        "cross_checks": [cross_check(check) for check in answer.cross_checks],
        "predictions": [_prediction(prediction) for prediction in answer.predictions],
        "far": FAR,
        "downstream": _downstream(answer),
        "downstream_refused": answer.downstream_refused,
        "pictures": list(_pictures(f"law{place}", found, answer)),
    }


def _coefficients(answer: Answer) -> Iterator[dict[str, str]]:
    spread, dropped = answer.intervals(), answer.with_dropped or {}
    meaning = {"a": "N grows as C^a", "b": "D grows as C^b", "E": "floor, nats"}
    for name, value in answer.values().items():
        ends = spread[name]
        yield {
            "name": name,
            "meaning": meaning.get(name, ""),
            "value": figure(value, *ends["80"]),
            "80": span(value, ends["80"]),
            "95": span(value, ends["95"]),
            "dropped": figure(dropped[name]) if name in dropped else "",
        }


def _hold_out(answer: Answer) -> dict[str, Any] | None:
    held = answer.hold_out
    if held is None:
        return None
    sizes = abs(held.errors)
    rows = [
        {
            "id": held.runs.id[place],
            "flops": f"{held.runs.flops[place]:.3g}",
            "n": figures.large(held.runs.n[place]),
            "d": figures.large(held.runs.d[place]),
            "predicted": f"{held.predicted[place]:.4f}",
            "80": " to ".join(f"{float(end[place]):.4f}" for end in held.intervals[80]),
            "actual": f"{held.runs.loss[place]:.4f}",
            "error": f"{held.errors[place]:+.2%}",
        }
        for place in range(len(held.runs))
    ]
    lead = (
        f"The law fitted to the {held.fitted} cheaper runs predicts the {len(rows)} most expensive, of up to"
        f" {held.extrapolation:.3g} times their compute: mean error {sizes.mean():.2%}, largest {sizes.max():.2%};"
        f" {held.within(80)} of {len(rows)} lie in their 80% interval and {held.within(95)} in that of 95%."
    )
    if held.shared_trunks:
        lead += f" {held.shared_trunks} of them share a trunk with runs that were fitted, and are not wholly new."
    return {"lead": lead, "rows": rows, "notes": held.notes}


def _prediction(prediction: Prediction) -> dict[str, Any]:
    ends = {name: levels["80"] for name, levels in prediction.intervals.items()}
    shown: dict[str, Any] = {
        "flops": f"{prediction.flops:.3g}",
        "extrapolation": f"{prediction.extrapolation:.3g}",
        "far": prediction.far,
        "loss": figure(prediction.loss, *ends["loss"]),
        "loss_80": span(prediction.loss, ends["loss"]),
        "n": "",
        "n_80": "",
        "d": "",
        "d_80": "",
    }
    for name in ("n", "d"):
        value = getattr(prediction, name)
        if value is not None:
            shown[name] = figures.large(float(figure(value, *ends[name])))
            shown[f"{name}_80"] = " to ".join(figures.large(end) for end in ends[name])
    return shown


def _downstream(answer: Answer) -> dict[str, Any] | None:
    task = answer.downstream
    if task is None:
        return None
    return {
        "column": task.column,
        "lead": f"Fitted to the {task.used} runs above chance; {task.at_chance} at chance are left out.",
        "laws": [
            {
                "form": law.form,
                "with": ", ".join(f"{name} {value:.4g}" for name, value in law.coefficients.items()),
                "error": f"{(law.squares / task.used) ** 0.5:.2%}",
            }
            for law in task.laws
        ],
        "predictions": [
            {"flops": f"{flops:.3g}", "score": f"{score:.3f}", "80": f"{low:.3f} to {high:.3f}"}
            for flops, (score, low, high) in task.predictions.items()
        ],
    }


def _pictures(name: str, found: Study, answer: Answer) -> Iterator[Picture]:
    fitted, draws = answer.fit, answer.bootstrap
    made = (
        (
            "Equal compute",
            "Each colour is a budget. Parabolas are a cross-check: biased by the width and centre of their grids.",
            figures.isoflop_figure(f"{name}a", fitted),
        ),
        (
            "Loss against compute",
            "The law's best loss, which a run reaches only with the best size for its compute.",
            figures.compute_figure(f"{name}b", fitted, draws),
        ),
        (
            "The best size and tokens",
            "Bands of 80% and 95%. Right of the dashed line nothing was measured.",
            figures.optimum_figure(f"{name}c", answer),
        ),
        (
            "Sizes and tokens",
            "Lines of equal loss, the runs, and how far each lies above the law.",
            figures.contour_figure(f"{name}d", fitted, answer.hold_out),
        ),
        (
            "Errors of the law",
            "They should show neither slope nor bend. The band is the scatter.",
            figures.residual_figure(f"{name}e", fitted),
        ),
        (
            "Draws of the bootstrap",
            "Long and thin means that one coefficient can stand in for another: trust the law more than its numbers.",
            figures.bootstrap_figure(f"{name}f", fitted, draws),
        ),
    )
    yield from (Picture(title, note, svg) for title, note, svg in made if svg is not None)
    if answer.downstream is not None:
        svg = figures.score_figure(f"{name}g", fitted, answer.downstream, found.question.score_is_error)
        yield Picture(answer.downstream.column, "The score against the loss.", svg)

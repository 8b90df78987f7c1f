"""Describes each part of a result once: its values for JSON, and its text for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from solo.scaling.laws.hold_out import HoldOut
from solo.scaling.laws.optimum import NEAR
from solo.scaling.laws.predict import FAR, Prediction
from solo.scaling.laws.result import Analysis, FitResult
from solo.scaling.laws.runs import Runs
from solo.scaling.laws.simulate import JUDGED, Simulated, SimulateSpec
from solo.scaling.laws.table import SetAside, Table, count
from solo.scaling.report.numbers import figure, large, span

_MEANING = {"a": "N ~ C^a", "b": "D ~ C^b", "E": "floor, nats"}


@dataclass(frozen=True)
class Section:
    """One part of a result.

    values      entries of the JSON object
    lead        sentence before the table
    columns     headings of the table
    rows        cells of the table; a row that is shorter than the headings ends in a remark
    notes       sentences after the table
    answers     sentences that answer the question, before everything else
    warnings    sentences that must not be overlooked
    brief       whether the lead is enough where space is short
    """

    title: str
    values: dict[str, Any] = field(default_factory=dict)
    lead: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    brief: bool = False
    answers: tuple[str, ...] = ()


def describe_table(table: Table, runs: Runs | None = None) -> Section:
    """Describes the input table, and the range of some of its runs; each row is a name and a value."""
    rows = [("rows read", f"{table.read:,}"), ("to fit", f"{len(table.rows):,}")]
    if table.set_aside:
        rows.append(("set aside", f"{len(table.set_aside):,}"))
    if runs is not None:
        ratio = runs.d / runs.n
        rows += [
            ("compute, FLOPs", f"{runs.flops.min():.2g} to {runs.flops.max():.2g}"),
            ("active parameters", f"{large(runs.n.min())} to {large(runs.n.max())}"),
            ("tokens per parameter", f"{ratio.min():.3g} to {ratio.max():.3g}"),
        ]
    values = {
        "path": table.path,
        "sha256": table.sha256,
        "rows": table.read,
        "chosen": len(table.rows) + len(table.set_aside),
        "set_aside": _plain(table.set_aside),
    }
    lead = f"{table.path}: {table.read} rows, {len(table.rows)} to fit, sha256 {table.sha256}"
    return Section("Data", {"data": values}, lead, rows=tuple(rows))


def describe_set_aside(items: Sequence[SetAside], title: str = "Not in this fit") -> Section:
    """Describes the rows that were not fitted."""
    rows = tuple((item.id, item.reason) for item in items)
    lead = f"Set aside: {count(items)}" if items else ""
    return Section(title, {"set_aside": _plain(items)}, lead, ("Run", "Reason") if rows else (), rows, brief=True)


def describe(result: FitResult) -> list[Section]:
    """Describes all results for one loss."""
    analysis, aside = result.analysis, describe_set_aside(result.set_aside)
    if analysis is None:
        return [_head(result), aside]
    parts = [_law(result, analysis), _hold_out(analysis), _ladder(analysis), _predictions(analysis)]
    parts += [_flat(analysis), _served(analysis)]
    return [_head(result), *parts, _cross_checks(analysis), _downstream(analysis), aside]


def describe_simulation(spec: SimulateSpec, found: Simulated) -> Section:
    """Describes the results of a simulated design."""
    labels = {"n": "N at the target", "d": "D at the target", "loss": "loss at the target"}
    rows = []
    for name, value in found.truth.items():
        ends = found.intervals[name]
        relative = " to ".join(f"{end / value - 1:+.1%}" for end in ends["80"])
        cells = figure(value, *ends["80"]), span(value, ends["80"]), span(value, ends["95"]), relative
        rows.append((labels.get(name, name), *cells))
    return Section(
        "Simulation",
        lead=(
            f"{found.runs} runs ({found.clusters} independent), {found.flops:.3g} FLOPs in total, law {spec.law!r},"
            f" noise {spec.noise:.2%}, {found.datasets} data sets; {found.extrapolation:.3g} x beyond the largest run"
        ),
        columns=("", "Truth", "80% of the fits", "95% of the fits", "80%, relative"),
        rows=tuple(rows),
        warnings=tuple(
            f"Refused in {times} of the first {min(found.datasets, JUDGED)} data sets: {reason}"
            for reason, times in found.refused.items()
        ),
    )


def _head(result: FitResult) -> Section:
    runs = result.runs
    values = {
        "loss": result.loss,
        "group": result.group,
        "law": result.spec.law.name,
        "formula": result.spec.law.formula,
        "refused": result.refused,
        "runs": len(runs),
        "clusters": runs.clusters,
        "compute": [float(runs.flops.min()), float(runs.flops.max())],
        "flops_per_parameter_and_token": runs.flops_factor,
        "seed_noise": result.seed_noise,
    }
    return Section("", values, warnings=(f"Refused: {result.refused}",) if result.refused else ())


def _law(result: FitResult, analysis: Analysis) -> Section:
    fitted, draws, runs, spec = analysis.fit, analysis.bootstrap, result.runs, result.spec
    found, spread = analysis.values(), analysis.intervals()
    values = {
        "coefficients": fitted.coefficients,
        "objective": {
            "value": fitted.objective,
            "name": spec.objective.name,
            "overestimates": spec.objective.overestimates,
            "is": spec.objective.text,
        },
        "scatter": fitted.scatter,
        "starts": {"tried": fitted.starts, "agreeing": fitted.agreeing},
        "condition": fitted.condition,
        "exponents": {name: value for name, value in found.items() if name not in fitted.coefficients},
        "intervals": spread,
        "bootstrap": {
            "draws": len(draws),
            "clusters": draws.clusters,
            "redrawn": draws.redrawn,
            "seed": spec.seed,
        },
        "beside": analysis.beside,
        "notes": list(analysis.notes),
    }
    unit = "runs" if draws.clusters == len(runs) else "independent trainings"
    lead = (
        f"{len(runs)} runs of {runs.flops.min():.2g} to {runs.flops.max():.2g} FLOPs. {fitted.agreeing} of"
        f" {fitted.starts} starting points led to this minimum, objective {fitted.objective:.6g}. Intervals:"
        f" {len(draws):,} resamplings of {draws.clusters} {unit}. Runs scatter about the law by {fitted.scatter:.2%}."
    )
    if result.seed_noise is not None:
        lead += f" Repeated runs differ by {result.seed_noise:.2%}."
    rows = []
    for name, value in found.items():
        ends = spread[name]
        label = f"{name}  ({_MEANING[name]})" if name in _MEANING else name
        cells = [label, figure(value, *ends["80"]), span(value, ends["80"]), span(value, ends["95"])]
        cells += [figure(other[name]) if name in other else "" for other in analysis.beside.values()]
        rows.append(tuple(cells))
    columns = ("Coefficient", "Fit", "80%", "95%", *analysis.beside)
    return Section("", values, lead, columns, tuple(rows), warnings=analysis.notes)


def _hold_out(analysis: Analysis) -> Section:
    held = analysis.hold_out
    if held is None:
        refused = analysis.hold_out_refused
        return Section("Hold-out", {"hold_out": {"refused": refused}}, warnings=(f"Hold-out not possible: {refused}",))
    runs, sizes, rows = held.runs, np.abs(held.errors), _hold_out_rows(held)
    values = {
        "fitted": len(held.fit.runs),
        "held_out": len(runs),
        "mean_error": float(sizes.mean()),
        "largest_error": float(sizes.max()),
        "bias": float(held.errors.mean()),
        "within": {str(level): held.within(level) for level in held.intervals},
        "extrapolation": held.extrapolation,
        "shared_stable_runs": held.shared_stable_runs,
        "coefficients": held.fit.coefficients,
        "notes": list(held.notes),
        "runs": rows,
    }
    lead = (
        f"{values['fitted']} cheaper runs predict the {len(runs)} most expensive, of up to {held.extrapolation:.3g} x"
        f" their compute: mean error {sizes.mean():.2%}, largest {sizes.max():.2%}; {held.within(80)} of {len(runs)}"
        f" lie within their 80% interval, {held.within(95)} within that of 95%."
    )
    if held.shared_stable_runs:
        lead += f" {held.shared_stable_runs} share a stable run with fitted runs, and are not independent of them."
    cells = tuple(
        (
            row["id"],
            large(row["n"]),
            large(row["d"]),
            f"{row['flops']:.3g}",
            f"{row['predicted']:.4f}",
            "{:.4f} to {:.4f}".format(*row["intervals"]["80"]),
            f"{row['actual']:.4f}",
            f"{row['error']:+.2%}",
        )
        for row in rows
    )
    columns = ("Run", "N", "D", "FLOPs", "Predicted", "80%", "Actual", "Error")
    notes = tuple(f"Fit of the cheaper runs: {note}" for note in held.notes)
    return Section("Hold-out", {"hold_out": values}, lead, columns, cells, notes)


def _hold_out_rows(held: HoldOut) -> list[dict[str, Any]]:
    runs = held.runs
    return [
        {
            "id": runs.id[place],
            "n": float(runs.n[place]),
            "d": float(runs.d[place]),
            "flops": float(runs.flops[place]),
            "predicted": float(held.predicted[place]),
            "actual": float(runs.loss[place]),
            "error": float(held.errors[place]),
            "intervals": {str(level): [float(end[place]) for end in ends] for level, ends in held.intervals.items()},
        }
        for place in range(len(runs))
    ]


def _ladder(analysis: Analysis) -> Section:
    rows = []
    for cut in analysis.ladder:
        row = [f"{cut.flops:.3g}", str(cut.fitted), str(cut.held_out)]
        if cut.mean_error is None or cut.largest_error is None:
            rows.append((*row, f"refused: {cut.refused}"))
        else:
            rows.append((*row, f"{cut.extrapolation:.3g} x", f"{cut.mean_error:.2%}", f"{cut.largest_error:.2%}"))
    return Section(
        "Hold-outs with lower cuts",
        {"hold_out_ladder": _plain(analysis.ladder)},
        lead="Runs below each cut predict all others.",
        columns=("Cut, FLOPs", "Fitted", "Predicted", "Reach", "Mean error", "Largest"),
        rows=tuple(rows),
    )


def _predictions(analysis: Analysis) -> Section:
    found = analysis.predictions
    values = [{**asdict(each), "far": each.far} for each in found]
    columns = ("FLOPs", "x largest run", "N", "80%", "D", "80%", "Loss", "80%")
    lead = f"A single run scatters by {analysis.fit.scatter:.2%} about the predicted loss." if found else ""
    warnings = []
    for where, far in (
        (f"beyond {FAR:g} x the largest run", [each for each in found if each.far and each.extrapolation > 1]),
        (f"below 1/{FAR:g} of the smallest run", [each for each in found if each.far and each.smallest > 1]),
    ):
        if far:
            warnings.append(
                f"WARNING: {', '.join(f'{each.flops:.3g}' for each in far)} FLOPs is {where}, where the form of the law"
                " is a guess that the intervals do not cover. Do not rely on it"
            )
    rows = tuple(_prediction_row(each) for each in found)
    return Section("Predictions", {"predictions": values}, lead, columns, rows, warnings=tuple(warnings))


def _prediction_row(prediction: Prediction) -> tuple[str, ...]:
    cells = [f"{prediction.flops:.3g}", f"{prediction.extrapolation:.3g}"]
    for name in ("n", "d"):
        value = getattr(prediction, name)
        if value is None:
            cells += ["", ""]
        else:
            ends = prediction.intervals[name]["80"]
            cells += [large(float(figure(value, *ends))), " to ".join(large(float(figure(end, *ends))) for end in ends)]
    ends = prediction.intervals["loss"]["80"]
    return (*cells, figure(prediction.loss, *ends), span(prediction.loss, ends))


def _flat(analysis: Analysis) -> Section:
    rows, names = [], dict[str, None]()
    for each in analysis.predictions:
        if each.flat is not None:
            names |= dict.fromkeys(each.flat.given_up)
    for each in analysis.predictions:
        if each.flat is not None:
            (low, (lowest, _)), (high, (_, highest)) = each.flat.smallest, each.flat.largest
            cells = [f"{each.flops:.3g}", f"{large(low)} to {large(high)}", f"{large(lowest)} to {large(highest)}"]
            for name in names:
                _, lost, (least, most) = each.flat.given_up[name]
                cells.append(f"{lost:.2%} ({100 * least:.2f} to {100 * most:.2f})")
            rows.append(tuple(cells))
    columns = ("FLOPs", f"N within {NEAR:.1%}", "80%", *(name.capitalize() for name in names))
    lead = (
        f"The optimum is flat. Sizes with a loss within {NEAR:.1%} of the best, with the outer ends of their 80%"
        " intervals, and the loss that other sizes give up at the same compute, with 80% intervals."
    )
    return Section("Other sizes", {}, lead, columns, tuple(rows)) if rows else Section("Other sizes")


def _served(analysis: Analysis) -> Section:
    rows, tokens = [], 0.0
    for each in analysis.predictions:
        if each.served is not None:
            tokens, found = each.served.tokens, each.served
            cells = [f"{each.flops:.3g}"]
            for name in ("n", "d"):
                low, high = found.intervals[name]
                cells += [large(found.values[name]), f"{large(low)} to {large(high)}"]
            cells.append(f"{found.values['training']:.3g}")
            ends = found.intervals["saved"]
            cells += [f"{found.values['saved']:.1%}", f"{ends[0]:.1%} to {ends[1]:.1%}"]
            rows.append(tuple(cells))
    lead = (
        f"The run with the same loss that costs least in total if {large(tokens)} tokens are served after training, a"
        " third of the compute of a training token each. What it saves is relative to the optimum without serving."
    )
    columns = ("FLOPs", "N", "80%", "D", "80%", "Training FLOPs", "Total saved", "80%")
    return Section("With serving", {}, lead if rows else "", columns if rows else (), tuple(rows))


def _cross_checks(analysis: Analysis) -> Section:
    notes = []
    for check in analysis.cross_checks:
        if check.refused:
            notes.append(f"{check.name}: none; {check.refused}")
        else:
            bias = "unknown" if check.bias is None else f"{check.bias:+.1%}"
            notes.append(
                f"{check.name}: a {check.exponent:.2f} from {len(check.optima)} optima; the size at the largest compute"
                f" differs by {check.difference:+.1%} from the law's; the method's own bias on these runs is {bias}"
            )
    values = [{**vars(check), "difference": check.difference} for check in analysis.cross_checks]
    return Section("Cross-checks", {"cross_checks": values}, notes=tuple(notes))


def _downstream(analysis: Analysis) -> Section:
    task = analysis.downstream
    if task is None:
        refused = analysis.downstream_refused
        warnings = (f"Score refused: {refused}",) if refused else ()
        return Section("Score", {"downstream": {"refused": refused} if refused else None}, warnings=warnings)
    predictions = [
        {"flops": flops, "score": score, "interval_80": [low, high]}
        for flops, (score, low, high) in task.predictions.items()
    ]
    values = {
        "column": task.column,
        "runs": task.used,
        "at_chance": task.at_chance,
        "laws": [vars(law) for law in task.laws],
        "predictions": predictions,
    }
    rows = [
        (
            law.form,
            ", ".join(f"{name} {value:.4g}" for name, value in law.coefficients.items()),
            f"{(law.squares / task.used) ** 0.5:.2%}",
        )
        for law in task.laws
    ]
    rows += [
        (f"score at {flops:.3g} FLOPs", f"{low:.3f} to {high:.3f} (80%)", f"{score:.3f}")
        for flops, (score, low, high) in task.predictions.items()
    ]
    lead = f"Fitted to the {task.used} runs above chance; {task.at_chance} at chance are left out."
    columns = ("Form", "Coefficients, or 80%", "Error, or score")
    return Section(task.column, {"downstream": values}, lead, columns, tuple(rows))


def _plain(items: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(vars(item)) for item in items]

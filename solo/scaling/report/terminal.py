"""Studies on the terminal."""

from __future__ import annotations

from math import floor, log10

from rich.console import Console
from rich.table import Table as Grid

from solo.scaling.laws.cross_check import CrossCheck
from solo.scaling.laws.predict import FAR, Prediction
from solo.scaling.laws.result import Answer, Study
from solo.scaling.laws.simulate import JUDGED, Simulated, SimulateSpec
from solo.scaling.laws.table import Table, count

_BIG = 1e5


def figure(value: float, low: float | None = None, high: float | None = None) -> str:
    """A number with as many digits as its interval supports; four where there is none.

    Those of half the interval's width: two where it begins with 1, 2 or 3, else one.
    """
    digits = 4
    if low is not None and high is not None and high > low and value:
        width = (high - low) / 2
        place = floor(log10(width))
        digits = min(max(floor(log10(abs(value))) - place + 1 + (width / 10.0**place < 3.5), 1), 6)
    if value == 0 or not abs(value) < float("inf"):
        return f"{value:g}"
    if abs(value) >= _BIG or abs(value) < 1e-3:
        return f"{value:.{max(digits - 1, 1)}e}".replace("e+", "e")
    decimals = max(digits - 1 - floor(log10(abs(value))), 0)
    return f"{value:.{decimals}f}"


def span(value: float, ends: tuple[float, float]) -> str:
    """An interval with the digits of its value."""
    return f"{_like(ends[0], value, ends)} to {_like(ends[1], value, ends)}"


def _like(end: float, value: float, ends: tuple[float, float]) -> str:
    shown = figure(value, *ends)
    if "e" in shown or abs(end) >= _BIG:
        return figure(end, *ends)
    return f"{end:.{len(shown.partition('.')[2])}f}"


def print_table(table: Table, console: Console) -> None:
    """What was read and what was set aside."""
    console.print(f"{table.path}: {table.read} rows, {len(table.rows)} to fit, sha256 {table.sha256[:16]}")
    if table.set_aside:
        console.print(f"set aside: {count(table.set_aside)}", markup=False)


def print_study(found: Study, console: Console) -> None:
    """The law, its intervals, its hold-out, its cross-checks and its predictions."""
    console.print(f"\n[bold]{found.title}[/bold]  {found.question.law.formula}")
    if found.set_aside:
        console.print(f"set aside: {count(found.set_aside)}", markup=False)
    answer = found.answer
    if answer is None:
        console.print(f"REFUSED: {found.refused}", markup=False)
        return
    console.print(fit_in_words(found, answer))
    grid = _grid("", "fit", "80%", "95%", *(["with the dropped"] if answer.with_dropped else []))
    spread, dropped = answer.intervals(), answer.with_dropped or {}
    for name, value in answer.values().items():
        label = {"a": "a  (N ~ C^a)", "b": "b  (D ~ C^b)"}.get(name, name)
        ends = spread[name]
        other = [figure(dropped[name]) if name in dropped else ""] if dropped else []
        grid.add_row(label, figure(value, *ends["80"]), span(value, ends["80"]), span(value, ends["95"]), *other)
    console.print(grid)
    _print_hold_out(answer, console)
    for check in answer.cross_checks:
        console.print(cross_check(check), markup=False)
    for prediction in answer.predictions:
        console.print(_prediction(prediction), markup=False)
    _print_downstream(answer, console)
    for note in answer.notes:
        console.print(f"note: {note}", markup=False)


def fit_in_words(found: Study, answer: Answer) -> str:
    """How a law was come by."""
    fitted, draws, runs = answer.fit, answer.bootstrap, found.runs
    unit = "runs" if draws.clusters == len(runs) else "trunks"
    text = (
        f"{len(runs)} runs of {runs.flops.min():.2g} to {runs.flops.max():.2g} FLOPs. {fitted.agreeing} of"
        f" {fitted.starts} starting points led to this minimum, objective {fitted.objective:.6g}. Intervals:"
        f" {len(draws):,} resamplings of {draws.clusters} {unit}. Runs scatter about the law by {fitted.scatter:.2%}."
    )
    return text if found.seed_noise is None else f"{text} Repeated runs differ by {found.seed_noise:.2%}."


def print_simulated(spec: SimulateSpec, found: Simulated, console: Console) -> None:
    """What a design would buy."""
    console.print(
        f"{found.runs} runs ({found.trunks} trunks), {found.flops:.3g} FLOPs in all, law {spec.law!r}, noise"
        f" {spec.noise:.2%}, {found.datasets} data sets; {found.extrapolation:.3g} x beyond the largest run"
    )
    grid = _grid("", "truth", "80% of the fits", "95% of the fits", "80%, relative")
    labels = {"n": "N at the target", "d": "D at the target", "loss": "loss at the target"}
    for name, value in found.truth.items():
        ends = found.intervals[name]
        low, high = (f"{end / value - 1:+.1%}" for end in ends["80"])
        grid.add_row(
            labels.get(name, name),
            figure(value, *ends["80"]),
            span(value, ends["80"]),
            span(value, ends["95"]),
            f"{low} to {high}",
        )
    console.print(grid)
    for reason, times in found.refused.items():
        console.print(
            f"refused in {times} of the first {min(found.datasets, JUDGED)} data sets: {reason}", markup=False
        )


def _print_hold_out(answer: Answer, console: Console) -> None:
    held = answer.hold_out
    if held is None:
        console.print(f"HOLD-OUT not possible: {answer.hold_out_refused}", markup=False)
        return
    sizes = abs(held.errors)
    siblings = f"; {held.shared_trunks} share a trunk with fitted runs" if held.shared_trunks else ""
    console.print(
        f"hold-out: {held.fitted} runs predict {len(held.runs)} of up to {held.extrapolation:.3g} x their compute;"
        f" mean error {sizes.mean():.2%}, largest {sizes.max():.2%}; {held.within(80)} of {len(held.runs)} within 80%"
        + siblings
    )
    grid = _grid("run", "FLOPs", "predicted", "80%", "actual", "error")
    for place in list(range(len(held.runs)))[:12]:
        low, high = (float(end[place]) for end in held.intervals[80])
        grid.add_row(
            held.runs.id[place],
            f"{held.runs.flops[place]:.3g}",
            f"{held.predicted[place]:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{held.runs.loss[place]:.4f}",
            f"{held.errors[place]:+.2%}",
        )
    console.print(grid)
    if len(held.runs) > 12:
        console.print(f"... and {len(held.runs) - 12} more, in the JSON and the report")


def cross_check(check: CrossCheck) -> str:
    """A cross-check in a sentence."""
    if check.refused:
        return f"{check.name}: none; {check.refused}"
    bias = "unknown" if check.bias is None else f"{check.bias:+.1%}"
    return (
        f"{check.name}: a {check.exponent:.2f} from {len(check.optima)} optima; size at the largest compute"
        f" {check.difference:+.1%} from the law's, of which its own bias on these runs is {bias}"
    )


def _prediction(prediction: Prediction) -> str:
    ends = {name: levels["80"] for name, levels in prediction.intervals.items()}
    parts = [f"at {prediction.flops:.3g} FLOPs ({prediction.extrapolation:.3g} x the largest run):"]
    if prediction.n is not None and prediction.d is not None:
        parts.append(
            f"N {figure(prediction.n, *ends['n'])} ({span(prediction.n, ends['n'])}),"
            f" D {figure(prediction.d, *ends['d'])} ({span(prediction.d, ends['d'])}),"
        )
    parts.append(
        f"loss {figure(prediction.loss, *ends['loss'])} ({span(prediction.loss, ends['loss'])}), 80%; one run besides"
        f" scatters by {prediction.scatter:.2%}"
    )
    if prediction.far:
        parts.append(
            f"\nWARNING: beyond {FAR:g} x the largest run, the form of the law is a guess: do not build on this"
        )
    return " ".join(parts)


def _print_downstream(answer: Answer, console: Console) -> None:
    task = answer.downstream
    if answer.downstream_refused:
        console.print(f"score refused: {answer.downstream_refused}", markup=False)
    if task is None:
        return
    for law in task.laws:
        values = ", ".join(f"{name} {value:.4g}" for name, value in law.coefficients.items())
        error = (law.squares / task.used) ** 0.5
        console.print(f"{task.column}, {law.form}: {values}; off by {error:.2%} in {task.used} runs", markup=False)
    for flops, (score, low, high) in task.predictions.items():
        console.print(f"{task.column} at {flops:.3g} FLOPs: {score:.3f} ({low:.3f} to {high:.3f}, 80%)", markup=False)


def _grid(*titles: str) -> Grid:
    grid = Grid(titles[0], box=None, header_style="bold", pad_edge=False)
    for title in titles[1:]:
        grid.add_column(title, justify="right")
    return grid

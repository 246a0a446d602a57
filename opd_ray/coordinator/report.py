"""What a run leaves for people: plots, a closing table, a response with its kept tokens marked."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from opd_ray.coordinator.metrics import StepSnapshot
from opd_ray.output.figure_file import write_figure
from opd_ray.output.progress import is_told
from opd_ray.whole_file import write_whole

_COLOURS = {"Q1": "#d62728", "Q2": "#ff7f0e", "Q3": "#9467bd", "Q4": "#1f77b4"}
_MOST_POINTS = 20_000
# Characters of a prompt that are shown, its last ones: with tools it may have tens of thousands.
_MOST_OF_PROMPT = 1500
# Of marked_response: tokens that are trained on, those of the student that are not, all others.
_KEPT, _DROPPED, _OTHERS = "bold reverse", "dim", "italic cyan"


def closing_table(
    rows: Sequence[dict[str, float]],
    teacher: Mapping[str, float],
    peak_memory_bytes: Mapping[str, int],
) -> Table:
    """Before, after and teacher, then the run's totals.

    Args:
        rows: of ``metrics.jsonl``.
        teacher: its ``eval/...`` figures; empty where it was not asked.
        peak_memory_bytes: by process.
    """
    evaluations = [row for row in rows if any(name.startswith("eval/") for name in row)]
    steps = [row for row in rows if "train/loss" in row]
    table = Table(title="on-policy distillation, held-out figures", title_justify="left")
    table.add_column("figure", overflow="fold")
    for column in ("student before", "student after", "teacher"):
        table.add_column(column, justify="right")
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        for name in sorted(n for n in last if n.startswith("eval/") and is_told(n)):
            table.add_row(
                name.removeprefix("eval/"),
                _number(first.get(name)),
                _number(last[name]),
                _number(teacher.get(name)),
            )
        table.add_section()
    seen = sum(row["rollout/tokens"] for row in steps)
    trained = sum(row["train/kept_tokens"] for row in steps)
    table.add_row("tokens written and judged", "", f"{seen:,.0f}", "")
    share = f" ({trained / seen:.0%})" if seen else ""
    table.add_row("tokens trained on", "", f"{trained:,.0f}{share}", "")
    for stage in ("rollout_and_teacher", "train", "step"):
        seconds = sum(row[f"seconds/{stage}"] for row in steps)
        if seconds:
            table.add_row(f"tokens/s, {stage.replace('_', ' ')}", "", f"{seen / seconds:,.0f}", "")
    step_seconds = sum(row["seconds/step"] for row in steps)
    if step_seconds:
        idle = sum(row["seconds/idle"] for row in steps) / step_seconds
        table.add_row("time in which no stage worked", "", f"{idle:.1%}", "")
    _add_rows_of_environments(table, steps)
    _add_teacher_rows(table, steps)
    table.add_section()
    for process, peak in peak_memory_bytes.items():
        table.add_row(f"peak memory, {process}", "", f"{peak / 2**30:.2f} GiB", "")
    return table


def marked_response(snapshot: StepSnapshot, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The first response of a step that counts: kept tokens in brackets, dropped ones dim.

    What the student did not write itself stands in double angles. A long prompt is cut in front.
    """
    rollouts = [scored.rollout for scored in snapshot.scored]
    first = next((i for i, one in enumerate(rollouts) if one.response_mask.any()), 0)
    rollout = rollouts[first]
    start = sum(len(one.response_ids) for one in rollouts[:first])
    kept = snapshot.selection.weights_N[start : start + len(rollout.response_ids)] > 0
    text = Text()
    prompt = tokenizer.decode(rollout.prompt_ids.tolist(), skip_special_tokens=True)
    if (left_out := len(prompt) - _MOST_OF_PROMPT) > 0:
        text.append(f"({left_out:,} characters of the prompt are left out)\n", style=_DROPPED)
    text.append(prompt[-_MOST_OF_PROMPT:])
    tokens = zip(rollout.response_ids.tolist(), rollout.response_mask, kept, strict=True)
    for written, run in groupby(tokens, key=lambda token: bool(token[1])):
        if not written:
            text.append(f"<<{tokenizer.decode([token for token, *_ in run])}>>", style=_OTHERS)
            continue
        for token, _, keep in run:
            piece = tokenizer.decode([token]).replace("\n", "\\n\n")
            text.append(f"[{piece}]" if keep else piece, style=_KEPT if keep else _DROPPED)
    return text


class _Terminal(Console):
    """Standard output. A run is not over, as rich has it, where nobody reads that any more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def print_report(
    table: Table,
    response: Text | None,
    outputs: dict[str, Path],
    path: Path,
    notes: Sequence[str] = (),
) -> None:
    """The report on the terminal, and as plain text in ``path``; ``outputs`` says what is where.

    ``notes`` are what is wrong with the figures of the table.
    """

    def print_on(console: Console) -> None:
        console.print(table)
        for note in notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        if response is not None:
            others = any(span.style == _OTHERS for span in response.spans)
            console.print(
                "one response of the last step, kept tokens in [brackets]"
                f"{', what the student did not write in <<angles>>' if others else ''}:",
                markup=False,
            )
            console.print(response)
        for name, place in {**outputs, "this report": path}.items():
            console.print(f"{name}: {place}", markup=False, highlight=False, soft_wrap=True)

    file = io.StringIO()
    print_on(Console(file=file, width=120))
    try:
        write_whole(path, file.getvalue())
    finally:
        # Also where the report's disk is full; that of the terminal's log may be as well.
        with suppress(OSError):
            print_on(_Terminal())


def plot_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Held-out accuracy and KL, training loss and kept share over the steps, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    names = {name for row in rows for name in row}
    accuracies = sorted(
        n
        for n in names
        if n.startswith("eval/") and ("/accuracy" in n or "/mean@" in n) and not n.endswith("_se")
    )
    panels = {
        "held-out accuracy": accuracies,
        "held-out divergence, nats": ["eval/kl", "eval/reverse_kl"],
        "training loss, nats a kept token": ["train/loss"],
        "student entropy and kept share": ["scores/entropy_mean", "tip/kept_fraction"],
    }
    for axis, (title, wanted) in zip(axes.flat, panels.items(), strict=True):
        for name in wanted:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axis.plot(
                    *zip(*points, strict=True), marker="." if len(points) < 30 else "", label=name
                )
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    write_figure(figure, path)


def plot_quadrants(snapshot: StepSnapshot, divergence: str, path: Path) -> None:
    """Entropy against divergence of the last step's tokens, coloured by quadrant, as a PNG.

    ``divergence`` names the score that the quadrants were cut by. Kept tokens are filled, others
    are rings. Cuts are lines where one holds for all tokens, as when scores are normalised over the
    batch.
    """
    from matplotlib.figure import Figure

    report = snapshot.selection.quadrants
    if report is None:
        return
    tokens = snapshot.scores.student_tokens()
    h_N = tokens.get("entropy", "the report") / np.log(tokens.vocab_size)
    divergence_N = tokens.get(divergence, "the report")
    kept_N = snapshot.selection.weights_N[snapshot.scores.response_mask_N] > 0
    shown = np.linspace(0, len(h_N) - 1, min(len(h_N), _MOST_POINTS)).astype(int)
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axis = figure.subplots()
    for number, (name, quadrant) in enumerate(report.quadrants.items()):
        at = shown[report.index_M[shown] == number]
        share = f"{name}: {quadrant.share:.0%} of the tokens"
        kept = "" if quadrant.kept_share is None else f", {quadrant.kept_share:.0%} of them kept"
        filled: dict[str, Any] = {
            "s": 8,
            "alpha": 0.5,
            "color": _COLOURS[name],
            "label": share + kept,
        }
        rings: dict[str, Any] = {
            "s": 8,
            "facecolors": "none",
            "edgecolors": _COLOURS[name],
            "linewidths": 0.3,
        }
        for chosen, style in ((at[kept_N[at]], filled), (at[~kept_N[at]], rings)):
            axis.scatter(h_N[chosen], divergence_N[chosen], **style)
    for cut, draw in (
        (raw_cut(h_N, report.index_M < 2), axis.axvline),
        (raw_cut(divergence_N, report.index_M % 2 == 0), axis.axhline),
    ):
        if cut is not None:
            draw(cut, color="black", linewidth=0.8, linestyle="--")
    axis.set_xlabel("h = entropy / ln V of the student")
    axis.set_ylabel(f"{divergence.replace('_', ' ')}, nats")
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set_ylim(bottom=0)
    axis.set_title("the last step's tokens; filled: kept; dashed: the quadrants' cuts", fontsize=10)
    axis.legend(fontsize=8)
    write_figure(figure, path)


def raw_cut(values_M: np.ndarray, high_M: np.ndarray) -> float | None:
    """The value between those of low and of high tokens; None where none lies between them."""
    if high_M.all() or not high_M.any():
        return None
    highest_low, lowest_high = values_M[~high_M].max(), values_M[high_M].min()
    return float((highest_low + lowest_high) / 2) if highest_low <= lowest_high else None


def _add_rows_of_environments(table: Table, steps: Sequence[dict[str, float]]) -> None:
    """What rollouts that act did, a rollout, over all steps that had any."""
    rows = [row for row in steps if "rollout/turns_mean" in row]
    if not rows:
        return

    def mean(name: str) -> float:
        return float(np.mean([row.get(name, 0.0) for row in rows]))

    table.add_section()
    table.add_row("turns a rollout", "", f"{mean('rollout/turns_mean'):.1f}", "")
    calls = mean("tools/calls_per_rollout")
    table.add_row("tool calls a rollout", "", f"{calls:.1f}", "")
    if calls:
        kinds = ("parse_error", "unknown", "failed", "timeout")
        wrong = sum(mean(f"tools/{kind}_per_rollout") for kind in kinds)
        table.add_row("tool calls with an error", "", f"{wrong / calls:.1%}", "")
    seconds = mean("tools/seconds_per_rollout")
    table.add_row("seconds in tools a rollout", "", f"{seconds:.2f}", "")
    table.add_row("rollouts that came to a limit", "", f"{mean('rollout/truncated'):.1%}", "")


def _add_teacher_rows(table: Table, steps: Sequence[dict[str, float]]) -> None:
    """What the teacher did over the steps; a run begun before these were counted has none."""
    rows = [row for row in steps if "teacher/tokens_per_second" in row]
    if not rows:
        return

    def mean(name: str) -> float:
        return float(np.mean([row[f"teacher/{name}"] for row in rows]))

    seconds = np.array([row["seconds/step"] for row in rows])
    alone = seconds @ [row["teacher/bottleneck_share"] for row in rows]
    table.add_section()
    table.add_row("teacher tokens/s while working", "", f"{mean('tokens_per_second'):,.0f}", "")
    share = f"{alone / seconds.sum():.1%}" if seconds.any() else ""
    table.add_row("waiting for the teacher alone", "", share, "")
    sent, whole = mean("signal_bytes"), mean("signal_bytes_all_rows")
    if whole:
        text = f"{sent / 2**20:,.2f} MiB of {whole / 2**20:,.2f}"
        table.add_row("signal a step, kept of all", "", text, "")
    if seen := mean("exact_scoring_bytes"):
        table.add_row("signal a step, exact scores", "", f"{seen / 2**20:,.2f} MiB", "")
    if retries := sum(row["teacher/retries"] for row in rows):
        table.add_row("asked again, a teacher died", "", f"{retries:,.0f}", "")
    if rewritten := sum(row.get("rollout/rewritten", 0.0) for row in rows):
        table.add_row("written again, an actor died", "", f"{rewritten:,.0f}", "")
    if retries := sum(row["teacher/request_retries"] for row in rows):
        table.add_row("sent again to the server", "", f"{retries:,.0f}", "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

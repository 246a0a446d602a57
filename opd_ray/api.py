"""Training and evaluating from Python: the same runs as those of the command line.

The process is the caller's: no signal handler is set, nothing ends it, whatever goes wrong is an
exception of :mod:`opd_ray.errors`, and a Ray to which it is connected is used and left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from opd_ray.config.schema import Config
from opd_ray.errors import INTERRUPTED, OutputFolderError
from opd_ray.evaluation.folder import EvaluationFolder
from opd_ray.evaluation.results import TaskResult, read_results
from opd_ray.output.folder import OutputFolder
from opd_ray.output.meant import meant_model
from opd_ray.output.sinks import read_jsonl


@dataclass(frozen=True)
class RunPaths:
    """Where a run keeps what; a file that it has not written yet is not there."""

    folder: Path
    config: Path  # YAML, with every key
    metrics: Path  # JSONL
    tensorboard: Path
    checkpoints: Path
    plots: Path
    report: Path  # text
    report_page: Path  # HTML
    export: Path  # the student that came out of it, a Hugging Face folder

    @classmethod
    def of(cls, folder: str | PathLike[str]) -> RunPaths:
        """Those of the run whose ``run.output_dir`` is ``folder``."""
        output = OutputFolder(Path(folder))
        return cls(
            output.path,
            output.config,
            output.metrics,
            output.tensorboard,
            output.checkpoints,
            output.plots,
            output.report,
            output.report_page,
            output.export,
        )


@dataclass(frozen=True)
class RunResult:
    """What a run has measured and where it keeps everything."""

    paths: RunPaths
    # One a step, in order, each with "step" and the figures of that step by name (docs/metrics.md);
    # a figure that is not measured at every step is missing in the others.
    rows: list[dict[str, float]]

    @property
    def steps(self) -> int:
        """Optimizer steps whose figures are there."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def figures(self) -> dict[str, float]:
        """The newest value of every figure, by name."""
        found: dict[str, float] = {}
        for row in self.rows:
            found |= row
        found.pop("step", None)
        return found

    @property
    def before(self) -> dict[str, float]:
        """The held-out figures (``eval/...``) of the first evaluation: before training."""
        evaluations = (
            {name: value for name, value in row.items() if name.startswith("eval/")}
            for row in self.rows
        )
        return next((figures for figures in evaluations if figures), {})


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation has measured, and everything that was answered."""

    folder: Path
    figures: dict[str, float]  # "eval/TASK/mean@16" and so on (docs/metrics.md)
    rows: list[dict[str, Any]]  # one a response: task, problem, response, correct, tokens, ...


def train(config: Config) -> RunResult:
    """Train as ``config`` says, to the end; a run that is in its folder already goes on.

    A KeyboardInterrupt (Ctrl-C, the stop button of a notebook) that finds it waiting, as nearly all
    do, lets the step end, writes a checkpoint and is raised then; a second one is raised at once.
    The same call goes on from there.

    Raises:
        OpdError: bad input, before any model is loaded, or the reason why it could not go on.
        KeyboardInterrupt: it was stopped.
    """
    from opd_ray.coordinator.run import train as run

    if run(config, owns_process=False) == INTERRUPTED:
        raise KeyboardInterrupt(f"stopped; the same call goes on from {config.run.output_dir}")
    return read_run(config.run.output_dir)


def read_run(folder: str | PathLike[str]) -> RunResult:
    """What the run in ``folder`` has measured so far; it may be at work, stopped or finished.

    Raises:
        OutputFolderError: there is no run.
        RunError: its metrics cannot be read.
    """
    paths = RunPaths.of(folder)
    if not paths.config.is_file():
        raise OutputFolderError(
            f"{paths.folder} is no run's folder: it has no config.yaml; give the run.output_dir "
            "of a run"
        )
    return RunResult(paths, read_jsonl(paths.metrics) if paths.metrics.is_file() else [])


def evaluate(
    config: Config,
    model: str | PathLike[str] | None = None,
    *,
    out: str | PathLike[str] | None = None,
) -> EvaluationResult:
    """Ask a model the problems of ``config.eval.tasks``, with rollout actors alone.

    What ``out`` has already is not asked again.

    Args:
        config: its tasks, how the model's tokens are sampled, how many actors write.
        model: a model folder, a hub name, or the folder of a run, whose exported student is meant;
            None: ``config.student``.
        out: where responses and results are kept; None: ``outputs/eval/MODEL``, by the last part of
            the model's path.

    Raises:
        OpdError: bad input, before any model is loaded, or the reason why it could not go on.
    """
    from opd_ray.evaluation.run import evaluate as run

    if model is not None:
        config = replace(config, student=replace(config.student, path=meant_model(str(model))))
    folder = Path(out) if out is not None else default_folder(str(model or config.student.path))
    run(config, folder, owns_process=False)
    kept = EvaluationFolder(folder)
    results = read_results(kept)
    figures = {name: value for result in results for name, value in result.figures.items()}
    return EvaluationResult(folder, figures, [*_responses(kept, results)])


def default_folder(model: str) -> Path:
    """Where an evaluation keeps its responses and results unless it is told otherwise."""
    return Path("outputs/eval") / Path(model).resolve().name


def _responses(folder: EvaluationFolder, results: list[TaskResult]) -> Iterator[dict[str, Any]]:
    """One row a response, with what it was asked."""
    for result in results:
        mode = "sampled" if result.samples else "greedy"
        for record in folder.records(result.name, mode).values():
            of_problem = {"task": result.name, "mode": mode, "problem": record.id}
            for number in range(len(record.responses)):
                yield {
                    **of_problem,
                    "sample": number,
                    "answer": record.answer,
                    "response": record.responses[number],
                    "extracted": record.extracted[number],
                    "correct": record.correct[number],
                    "tokens": record.tokens[number],
                    "finish_reason": record.finish_reasons[number],
                    **(record.figures[number] if record.figures else {}),
                }

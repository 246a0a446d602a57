"""Runs the cells of a study one after another with the same actors, and writes its report.

Every cell begins with the same weights, an optimizer that has not stepped, and the prompts and
sampling seeds that follow from its seed and step: arms of one seed differ in the filter alone.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from opd_ray.config.schema import Config
from opd_ray.coordinator.loop import Coordinator
from opd_ray.coordinator.nothing import steps_note
from opd_ray.coordinator.recovery import Point, Recovery
from opd_ray.coordinator.session import Session, open_session
from opd_ray.data.prompts import HeldOutTask, PromptFeed, dated, held_out_tasks
from opd_ray.errors import INTERRUPTED, OutputFolderError
from opd_ray.evaluation.evaluator import Evaluator, ShowAnswers
from opd_ray.output.checkpoint import RunState
from opd_ray.output.folder import OutputFolder, kept_date
from opd_ray.output.history import History
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import JsonlSink, Metrics, has_evaluation, read_jsonl
from opd_ray.pools.watch import Interrupted
from opd_ray.preflight.models import check_models, own_topk
from opd_ray.preflight.pairing import Pairing
from opd_ray.preflight.prompts import check_routing, prompt_notes
from opd_ray.preflight.turns import check_turns
from opd_ray.preflight.unused import unused_options
from opd_ray.study.cells import Cell, study_cells
from opd_ray.study.page import write_study_page
from opd_ray.study.plots import plot_learning_curves, plot_overlaps
from opd_ray.study.report import arms_of, results_table
from opd_ray.study.results import StudyError, StudyFolder
from opd_ray.tip import TipFilter
from opd_ray.whole_file import write_whole

# What may change between the parts of a study without making its cells incomparable.
_FREE = ("study.", "cluster.")


def study(config: Config) -> int:
    """Run every cell that is not finished, then write the report; returns the exit code.

    0, or 130 after Ctrl-C: the cell at work is begun anew by the next call.

    Raises:
        OpdError: bad input, before any model is loaded, or the reason why it could not go on.
    """
    study_cells(config)  # whatever is wrong with it comes before the models
    pairing = check_models(config)
    config = dated(config, pairing.tokenizer, kept_date(config.run))
    cells = study_cells(config)
    folder = StudyFolder(config.run.output_dir)
    with OutputFolder(config.run.output_dir) as output:
        _begin(output, config)
        waiting = [cell for cell in cells if folder.result(cell) is None]
        done = len(cells) - len(waiting)
        _say(f"study: {len(cells)} cells, {done} finished, {len(waiting)} to run")
        output.history.add_study(len(cells), done)
        with _ending(output.history, lambda: len(folder.results(cells))):
            code = 0
            if waiting:
                runner = _Runner(folder, pairing, output.status)
                # Actors are started for all cells, so for everything that any of them does.
                runs = [cell.config.run for cell in cells]
                lag, overlap = max(run.lag for run in runs), any(run.overlap for run in runs)
                # An adapter begins as this seed says, however often the study was cut short.
                seed = config.run.seed
                run = replace(waiting[0].config.run, seed=seed, lag=lag, overlap=overlap)
                code = runner.run(replace(config, run=run), cells, waiting)
            if code == INTERRUPTED:
                _say("stopped; the same command goes on, and begins the cell at work anew")
            if folder.results(cells):
                _say(f"report: {report(config)}")
        finished = len(folder.results(cells))
        if code == INTERRUPTED:
            output.history.stop(finished, "it was asked to stop", failed=False)
        else:
            output.history.finish(finished)
        return code


@contextmanager
def _ending(history: History, finished: Callable[[], int]) -> Iterator[None]:
    """Have the history tell of a study that fails in here, and why."""
    try:
        yield
    except KeyboardInterrupt:
        history.stop(finished(), "it was ended at once", failed=False)
        raise
    except Exception as error:
        history.stop(finished(), str(error) or type(error).__name__, failed=True)
        raise


def report(config: Config) -> Path:
    """Write table, plots and page from the finished cells; returns the table's path.

    Raises:
        StudyError: no cell is finished, or one belongs to another study.
    """
    cells = study_cells(config)
    folder = StudyFolder(config.run.output_dir)
    results = folder.results(cells)
    if not results:
        raise StudyError(f"{folder.path} holds no finished cell: run opd-ray study first")
    accuracy = f"eval/{config.eval.tasks[0].name}/accuracy"
    arms = arms_of(results)
    histories = {(r.arm, r.seed): read_jsonl(folder.metrics(r.arm, r.seed)) for r in results}
    plot_learning_curves(arms, histories, accuracy, folder.path / "learning_curves.png")
    plot_overlaps(arms, folder.path / "overlaps.png")
    table = folder.path / "results.md"
    write_whole(table, results_table(results, accuracy, config.study.baseline))
    write_study_page(folder.path, folder.path / "report.html")
    return table


@dataclass(frozen=True)
class _Runner:
    """Runs cells in one Ray session."""

    folder: StudyFolder
    pairing: Pairing
    status: Path  # of the cell at work, for opd-ray status
    data: dict[int, tuple[PromptFeed, list[HeldOutTask]]] = field(default_factory=dict)  # by seed

    def run(self, config: Config, cells: list[Cell], waiting: list[Cell]) -> int:
        """Run the ``waiting`` ones of ``cells``; returns the exit code."""
        # Bad data is refused before any model is loaded.
        prompts, tasks = self._seed_data(waiting[0])
        longest = check_routing(config, prompts, tasks, self.pairing.teacher_contexts)
        turn_notes = check_turns(
            config,
            self.pairing.tokenizer,
            self.pairing.end_ids,
            [*prompts.sources],
            tasks,
            prompts.environments,
        )
        # Of the filters, which differ, every cell's own steps tell.
        unused = [note for note in unused_options(config) if not note.startswith("tip.")]
        for note in [*unused, *prompt_notes(prompts, tasks), *turn_notes]:
            _say(note)
        # Every arm has the teacher do the same work, and reports its overlap with the same rules.
        topk = max(own_topk(cell.config) for cell in cells)
        with open_session(config, self.pairing, topk, longest) as session:
            # Fewer ranks would leave files of an attempt with more.
            shutil.rmtree(self.folder.start, ignore_errors=True)
            session.save(str(self.folder.start))
            finished = len(cells) - len(waiting)
            for number, cell in enumerate(waiting, start=finished + 1):
                if session.launcher.watch.stop_requested:
                    return INTERRUPTED
                try:
                    self._run_cell(session, cell, f"{number} of {len(cells)}")
                except Interrupted:
                    return INTERRUPTED
        return 0

    def _run_cell(self, session: Session, cell: Cell, number: str) -> None:
        begin = time.perf_counter()
        settled = replace(session.config, run=cell.config.run, tip=cell.config.tip)
        prompts, tasks = self._seed_data(cell)
        figures = self.folder.metrics(cell.arm, cell.seed)
        progress = Progress(
            settled.run.steps,
            0,
            status=self.status,
            cell=f"cell {number} ({cell.arm}, seed {cell.seed})",
            figures=str(figures.relative_to(self.folder.path)),
        )
        # Step -1: rows of an attempt that was cut short are dropped, those of step 0 too.
        metrics = Metrics([JsonlSink(figures, resume_step=-1)])
        with closing(metrics), progress:
            progress.say(f"cell {number}: {cell.arm}, seed {cell.seed}")
            session.load(str(self.folder.start))
            evaluator = Evaluator(
                settled,
                tasks,
                session.tokenizer,
                session.scorer,
                session.teachers,
                session.trainers,
            )
            tip = TipFilter(settled.tip, loss_score=settled.loss.divergence.value)
            beginning = Point(0, tip.state_dict(), self.folder.start, "the cell's beginning")
            coordinator = Coordinator(
                settled,
                session,
                prompts,
                tip,
                _KnownStart(evaluator, self.folder.step_0(cell.seed)),
                _NoCheckpoints(),
                metrics,
                progress,
            )
            recovery = Recovery(coordinator, lambda: beginning, partial(has_evaluation, figures))
            recovery.run(0, evaluated=False, then=lambda: None)
            if note := steps_note(read_jsonl(figures)):
                progress.say(note)
        self.folder.finish(cell, time.perf_counter() - begin)

    def _seed_data(self, cell: Cell) -> tuple[PromptFeed, list[HeldOutTask]]:
        """Prompts and problems of the cell's seed."""
        if cell.seed not in self.data:
            # The seeds have the same environments: those of the first are asked for their tools.
            known = next((prompts.environments for prompts, _ in self.data.values()), None)
            prompts = PromptFeed.load(cell.config, self.pairing.tokenizer, known)
            tasks = held_out_tasks(cell.config, self.pairing.tokenizer, prompts.environments)
            self.data[cell.seed] = (prompts, tasks)
        return self.data[cell.seed]


@dataclass
class _KnownStart:
    """Evaluates as an evaluator does, but the start of a seed only once.

    The first call is the one before any step: the student and the seeds are the same in all arms.
    """

    evaluator: Evaluator
    path: Path
    at_start: bool = True

    def run(self, show: ShowAnswers | None = None) -> dict[str, float]:
        if not self.at_start:
            return self.evaluator.run(show)
        self.at_start = False
        if not self.path.is_file():
            write_whole(self.path, json.dumps(self.evaluator.run(), indent=1))
        known: dict[str, float] = json.loads(self.path.read_text(encoding="utf-8"))
        return known


class _NoCheckpoints:
    """A cell that is cut short begins anew, so its checkpoints would serve nobody."""

    def begin(self, state: RunState) -> None:
        """Keep none."""


def _begin(output: OutputFolder, config: Config) -> None:
    """Refuse to mix cells that cannot be compared; write config and versions.

    Raises:
        OutputFolderError: the folder's cells were run with another configuration.
    """
    changed = [text for text in output.differences(config) if not text.startswith(_FREE)]
    if changed:
        raise OutputFolderError(
            f"run.output_dir = {str(output.path)!r}: its cells were run with other settings "
            f"({'; '.join(changed)}), so new ones would not compare; choose another folder"
        )
    output.begin(config)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

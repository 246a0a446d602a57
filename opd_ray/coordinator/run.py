"""A training run from its configuration to its report: check, assemble, coordinate, hand over."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from opd_ray.cluster.local_ray import local_ray_notes
from opd_ray.config.choices import LrSchedule
from opd_ray.config.load import to_values, to_yaml
from opd_ray.config.schema import Config
from opd_ray.coordinator.close_ups import CloseUps
from opd_ray.coordinator.learning_rate import learning_rate
from opd_ray.coordinator.loop import Coordinator
from opd_ray.coordinator.metrics import StepSnapshot
from opd_ray.coordinator.nothing import steps_note, teacher_notes
from opd_ray.coordinator.recovery import Point, Recovery, load_first
from opd_ray.coordinator.report import (
    closing_table,
    marked_response,
    plot_curves,
    plot_quadrants,
    print_report,
)
from opd_ray.coordinator.session import Session, open_session
from opd_ray.coordinator.tail import tail_note
from opd_ray.data.prompts import HeldOutTask, PromptFeed, dated, held_out_tasks
from opd_ray.environments.by_source import RunEnvironments
from opd_ray.errors import INTERRUPTED, DamagedCheckpoint, RunError
from opd_ray.evaluation.evaluator import Evaluator, accuracy
from opd_ray.output.checkpoint import TRAINER, CheckpointError, CheckpointStore, RunState
from opd_ray.output.folder import OutputFolder, kept_date
from opd_ray.output.progress import Progress
from opd_ray.output.ray_metrics import RayMetrics
from opd_ray.output.resume import Start, find_start, told
from opd_ray.output.sinks import (
    JsonlSink,
    Metrics,
    Sink,
    TensorBoardSink,
    has_evaluation,
    read_jsonl,
)
from opd_ray.output.step_rows import StepRows
from opd_ray.output.trackers import tracker_sinks
from opd_ray.pools.watch import Interrupted
from opd_ray.preflight.config import check_config
from opd_ray.preflight.deterministic import deterministic_notes
from opd_ray.preflight.models import check_models, own_topk
from opd_ray.preflight.prompts import check_routing, prompt_notes
from opd_ray.preflight.turns import check_turns
from opd_ray.preflight.unused import unused_options
from opd_ray.report.page import write_report
from opd_ray.tip import TipFilter


def train(config: Config, *, owns_process: bool = True) -> int:
    """Run a training job; returns the exit code (0, or 130 after Ctrl-C).

    ``owns_process``: see :func:`open_session`.

    Raises:
        OpdError: bad input, before any model is loaded, or the reason why the run could not go on.
    """
    check_config(config)
    pairing = check_models(config)
    config = dated(config, pairing.tokenizer, kept_date(config.run))
    environments = RunEnvironments(config.environment_set)
    prompts = PromptFeed.load(config, pairing.tokenizer, environments)
    tasks = held_out_tasks(config, pairing.tokenizer, environments)
    longest = check_routing(config, prompts, tasks, pairing.teacher_contexts)
    turn_notes = check_turns(
        config, pairing.tokenizer, pairing.end_ids, [*prompts.sources], tasks, environments
    )
    with OutputFolder(config.run.output_dir) as output:
        checkpoints = CheckpointStore(
            output.checkpoints, config.run.keep_checkpoints, to_yaml(config)
        )
        start = find_start(config, checkpoints)
        changed = told(output.accept(config, start, prompts.identity))
        if start is not None:
            if _is_over(config, output, start.state.step):
                _say_it_is_over(config, output, changed)
                return 0
        elif not output.holds_run:
            output.begin(config)
        topk = own_topk(config)
        with open_session(config, pairing, topk, longest, owns_process=owns_process) as session:
            part = Part(config, start, changed, turn_notes)
            return _steer(session, prompts, tasks, output, checkpoints, part)


@dataclass(frozen=True)
class Part:
    """What of a run is to be done now."""

    config: Config  # as the user gave it
    start: Start | None = None  # None: from the beginning
    changed: Sequence[str] = ()  # since the part before, as a user should hear it
    notes: Sequence[str] = ()  # on what it trains with

    @property
    def done(self) -> int:
        """Steps taken before."""
        return self.start.state.step if self.start else 0


def _is_over(config: Config, output: OutputFolder, step: int) -> bool:
    """Whether all steps are taken and all is written that the end of a run leaves."""
    exported = not config.run.export_at_end or output.export.is_dir()
    return step == config.run.steps and output.history.finished == step and exported


def _say_it_is_over(config: Config, output: OutputFolder, changed: Sequence[str]) -> None:
    print(
        f"opd-ray: the run in {output.path} has taken its {config.run.steps} steps already; to go "
        f"on raise run.steps, to start over use run.resume=never. Its report: {output.report}",
        file=sys.stderr,
    )
    for text in changed:
        print(f"opd-ray: without effect, as no step is left: {text}", file=sys.stderr)


def _steer(
    session: Session,
    prompts: PromptFeed,
    tasks: list[HeldOutTask],
    output: OutputFolder,
    checkpoints: CheckpointStore,
    part: Part,
) -> int:
    """The part of a run in which its actors live; returns the exit code."""
    part = _load(session, prompts, output, checkpoints, part)
    config, start, done = session.config, part.start, part.done
    tip = TipFilter(config.tip, loss_score=config.loss.divergence.value)
    beginning = tip.state_dict()
    if start is not None:
        prompts = prompts.going_on_after(start.batches())
        tip.load_state_dict(start.state.filter_state)
    # From here on the folder is this part's: nothing can be refused any more.
    if config.run.resume == "never":
        output.clear()
    output.begin(part.config)
    output.history.add_part(done, prompts.identity, list(part.changed), to_values(part.config))
    measured = RayMetrics(output.path)
    progress = Progress(config.run.steps, done, status=output.status, listeners=[measured])
    with progress:
        progress.say(f"prompts: {prompts}")
        for note in [
            *unused_options(part.config),
            *prompt_notes(prompts, tasks),
            *part.notes,
            *_lag_notes(config),
            *local_ray_notes(config.cluster),
            *deterministic_notes(config),
            *_resume_notes(part, checkpoints),
        ]:
            progress.say(note)
        if start is not None:
            for later in checkpoints.set_aside_after(done):
                progress.say(f"a later checkpoint is set aside: {later}")
        # What was measured with other values is measured again.
        kept = -1 if start is None and part.changed else done
        with (
            closing(_metrics(config, output, kept, measured)) as metrics,
            closing(StepRows(output.close_ups, kept)) as rows,
        ):
            close_ups = CloseUps(config, rows, session.tokenizer)
            close_ups.part(done, session.launcher.nodes)
            evaluator = Evaluator(
                config, tasks, session.tokenizer, session.scorer, session.teachers, session.trainers
            )
            coordinator = Coordinator(
                config,
                session,
                prompts,
                tip,
                evaluator,
                checkpoints,
                metrics,
                progress,
                close_ups,
                partial(write_report, output.path, output.report_page, locked=True),
            )
            evaluated = partial(has_evaluation, output.metrics)

            def begin() -> None:
                if start is None or coordinator.batches.load(start.checkpoint / TRAINER, done):
                    return
                progress.say(
                    "the checkpoint's rollouts of the next step are of other prompts, samples, "
                    "sampling, environments or lag; they are written anew"
                )

            def finish() -> dict[str, int]:
                session.order.to("trainer")  # whatever comes after has the machine to itself
                if config.run.export_at_end:
                    progress.stage("export")
                    session.export(str(output.export))
                return session.launcher.peak_memory()

            newest = partial(_newest, part, checkpoints, beginning)
            recovery = Recovery(coordinator, newest, evaluated, checkpoints.pass_over)
            try:
                peaks = recovery.run(done, evaluated=evaluated(done), begin=begin, then=finish)
                session.launcher.end_trainers()  # whatever befalls them now
                progress.stage("report")
                progress.close()
                _report(session, coordinator.last_step, close_ups, tasks, output, progress, peaks)
                output.history.finish(config.run.steps)
            except Interrupted:
                last = checkpoints.newest()
                progress.say(f"stopped; checkpoint: {last[0] if last else 'none'}")
                output.history.stop(coordinator.done, "it was asked to stop", failed=False)
                write_report(output.path, output.report_page)
                return INTERRUPTED
            except KeyboardInterrupt:
                output.history.stop(coordinator.done, "it was ended at once", failed=False)
                raise
            except Exception as error:
                why = str(error) or type(error).__name__
                output.history.stop(coordinator.done, why, failed=True)
                raise
            # Only now: a page that cannot be written makes no failed run of one that is finished.
            write_report(output.path, output.report_page)
    return 0


def _load(
    session: Session,
    prompts: PromptFeed,
    output: OutputFolder,
    checkpoints: CheckpointStore,
    part: Part,
) -> Part:
    """Have the actors go on from the part's checkpoint, or an older one where that is damaged.

    Returns:
        the part with what they go on from.

    Raises:
        DamagedCheckpoint: that which ``run.resume`` names is.
        CheckpointError, ConfigError, OutputFolderError: there is no older one to go on from.
    """
    while part.start is not None:
        try:
            load_first(session, str(part.start.checkpoint / TRAINER))
            break
        except DamagedCheckpoint as damage:
            if part.config.run.resume != "auto":
                raise
            checkpoints.pass_over(part.start.checkpoint, str(damage))
            start = find_start(part.config, checkpoints)
            changed = told(output.accept(part.config, start, prompts.identity))
            part = replace(part, start=start, changed=changed)
    return part


def _newest(part: Part, checkpoints: CheckpointStore, beginning: dict[str, Any]) -> Point:
    """The newest checkpoint of this part of a run; without any, where it began.

    Raises:
        RunError: it began at one that cannot be read any more.
    """
    found = checkpoints.newest()
    if found is not None and found[1].step > part.done:
        folder, state = found
    elif part.start is not None:
        folder = part.start.checkpoint
        try:
            state = checkpoints.read(folder)
        except CheckpointError as error:  # no bad input: it was read when the run went on from it
            raise RunError(
                f"{error}; none after it can be read either. The same command looks for an older "
                "one"
            ) from error
    else:
        return Point(0, beginning, None, "its beginning")
    return Point(state.step, state.filter_state, folder / TRAINER, f"checkpoint {folder.name}")


def _lag_notes(config: Config) -> Iterator[str]:
    """What a user should know of a run whose rollouts are written a step ahead."""
    if config.run.lag and not config.scores_exactly:
        yield (
            "run.lag = 1: tokens are chosen by entropy and divergence of when they were written, a "
            "step ago; tip.rescore=true computes both anew"
        )


def _resume_notes(part: Part, checkpoints: CheckpointStore) -> Iterator[str]:
    """What a user should know of a run that goes on."""
    if part.start is not None:
        step = part.start.state.step
        yield f"resumed from {part.start.checkpoint} at step {step}"
        for reason in checkpoints.broken(after=step):
            yield f"passed over: {reason}"
    elif part.changed:
        yield "the run in this folder has left no checkpoint: it begins again, with other values"
    yield from (f"changed: {text}" for text in part.changed)
    if part.start is not None:
        yield from _other_schedule(part.config, part.start.state)


def _metrics(config: Config, output: OutputFolder, done: int, measured: RayMetrics) -> Metrics:
    sinks: list[Sink] = [
        JsonlSink(output.metrics, done),
        TensorBoardSink(output.tensorboard, done),
        measured,
    ]
    return Metrics([*sinks, *tracker_sinks(config.run, output.path, to_values(config), done)])


def _report(
    session: Session,
    last_step: StepSnapshot | None,
    close_ups: CloseUps,
    tasks: list[HeldOutTask],
    output: OutputFolder,
    progress: Progress,
    peaks: Mapping[str, int],
) -> None:
    """Measure the teacher where that is asked for, draw, and print the closing table."""
    config, launcher = session.config, session.launcher
    teacher: dict[str, float] = {}
    if config.eval.teacher_accuracy:
        pool = launcher.teacher_as_rollout_pool()
        for task in tasks:
            teacher |= accuracy(
                pool, task, session.tokenizer, config.rollout.max_new_tokens, config.run.seed
            )
        close_ups.teacher(config.run.steps, teacher)
    rows = read_jsonl(output.metrics)
    plot_curves(rows, output.plots / "curves.png")
    outputs = {
        "page": output.report_page,
        "metrics": output.metrics,
        "plots": output.plots,
        "checkpoints": output.checkpoints,
    }
    if config.run.export_at_end:
        outputs["exported student"] = output.export
    response = None
    if last_step is not None:
        plot_quadrants(last_step, config.tip.divergence, output.plots / "quadrants.png")
        response = marked_response(last_step, session.tokenizer)
    own_notes = (steps_note(rows), *teacher_notes(rows, teacher), tail_note(rows))
    notes = [note for note in own_notes if note]
    for note in notes:
        progress.say(note)
    table = closing_table(rows, teacher, peaks)
    print_report(table, response, outputs, output.report, notes)


def _other_schedule(config: Config, state: RunState) -> Iterator[str]:
    """What another run.steps than the checkpoint's makes of the learning rate."""
    old, new = state.total_steps, config.run.steps
    schedule = config.trainer.lr_schedule
    if old == new or schedule is LrSchedule.constant or state.step >= new:
        return
    rate = f"{learning_rate(state.step, new, config.trainer):.3g}"
    before = "its schedule had come to its end"
    if state.step < old:
        before = f"with {old} it would be {learning_rate(state.step, old, config.trainer):.3g}"
    yield (
        f"run.steps = {new}, but the checkpoint was written with run.steps = {old}: the "
        f"trainer.lr_schedule {schedule.value} now ends at step {new}, so the learning rate of the "
        f"next step is {rate}; {before}"
    )

"""A training run from its configuration to its report: check, assemble, coordinate, hand over."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from opd_ray.checkpoint import CheckpointStore, RunState, read_state
from opd_ray.config.check import check_config
from opd_ray.config.load import to_yaml
from opd_ray.config.schema import Config, SignalChoice
from opd_ray.coordinator import Coordinator, Parts
from opd_ray.crew import Crew
from opd_ray.errors import INTERRUPTED, ConfigError
from opd_ray.evaluation.evaluator import Evaluator, accuracy
from opd_ray.fleet import Fleet, Interrupted
from opd_ray.judge import Judge, Writer
from opd_ray.metrics import JsonlSink, Metrics, Sink, TensorBoardSink, WandbSink, read_jsonl
from opd_ray.output import OutputFolder
from opd_ray.pairing import Pairing, check_pairing, check_teacher_info
from opd_ray.placement import plan_placement
from opd_ray.progress import Progress
from opd_ray.prompts import HeldOutTask, PromptFeed, divergence_prompts, held_out_tasks
from opd_ray.ray_session import RaySession
from opd_ray.report import (
    Figures,
    closing_table,
    marked_response,
    plot_curves,
    plot_quadrants,
    print_report,
)
from opd_ray.tip import TipFilter, find_rule
from opd_ray.weight_sync import weight_sync


def train(config: Config) -> int:
    """Run a training job; returns the exit code (0, or 130 after Ctrl-C).

    Raises:
        OpdError: bad input, before any model is loaded, or the reason why the run could not go on.
    """
    check_config(config)
    pairing = _pairing(config)
    tokenizer = AutoTokenizer.from_pretrained(
        config.student.path, trust_remote_code=config.student.trust_remote_code
    )
    prompts = PromptFeed.load(config, tokenizer)
    tasks = held_out_tasks(config, tokenizer)
    with OutputFolder(config.run.output_dir) as output:
        output.begin(config)
        checkpoints = CheckpointStore(
            output.checkpoints, config.run.keep_checkpoints, to_yaml(config)
        )
        start = _resume_point(config, checkpoints)
        with RaySession(config.cluster) as session:
            placement = plan_placement(config, session.cluster())
            settled = placement.settle(config)
            with (
                Crew(
                    settled, placement, vocab_size=pairing.vocab_size, own_topk=_own_topk(config)
                ) as crew,
                _stop_on_signal(crew.fleet),
            ):
                run = _Run(settled, crew, output, checkpoints, pairing, tokenizer)
                return run.go(start, prompts, tasks)


class _Run:
    """The part of a run in which actors live."""

    def __init__(
        self,
        config: Config,
        crew: Crew,
        output: OutputFolder,
        checkpoints: CheckpointStore,
        pairing: Pairing,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._config = config
        self._crew = crew
        self._output = output
        self._checkpoints = checkpoints
        self._pairing = pairing
        self._tokenizer = tokenizer

    def go(
        self,
        start: tuple[Path, RunState] | None,
        prompts: PromptFeed,
        tasks: list[HeldOutTask],
    ) -> int:
        config, crew = self._config, self._crew
        info = crew.ready()
        assert info is not None
        check_teacher_info(self._pairing, info, context_length=config.student.context_length)
        rollouts, teachers, trainers = (
            crew.rollout_pool(),
            crew.teacher_pool(),
            crew.trainer_group(),
        )
        if config.teacher.signal == SignalChoice.hidden:
            crew.share_teacher_head(trainers)
        tip = TipFilter(config.tip, loss_score=config.loss.divergence.value)
        done = 0
        if start is not None:
            folder, state = start
            trainers.load(str(folder / "trainer"))
            tip.load_state_dict(state.filter_state)
            done = state.step
        judge = Judge(crew.fleet, rollouts, teachers)
        progress = Progress(config.run.steps, done)
        progress.say(f"prompts: {prompts}")
        if start is not None:
            progress.say(f"resumed from {start[0]} at step {done}")
        metrics = self._metrics(done)
        evaluator = Evaluator(
            judge,
            teachers,
            trainers,
            tasks,
            divergence_prompts(tasks, config.eval.kl_prompts),
            self._tokenizer,
            config.rollout.max_new_tokens,
            config.run.seed,
        )
        parts = Parts(
            sync=weight_sync(config, trainers, rollouts),
            teachers=teachers,
            trainers=trainers,
            judge=judge,
            prompts=prompts,
            tip=tip,
            evaluator=evaluator,
            checkpoints=self._checkpoints,
            metrics=metrics,
            progress=progress,
        )
        coordinator = Coordinator(config, parts, self._pairing.vocab_size)
        try:
            coordinator.run(done)
            if config.run.export_at_end:
                trainers.export(str(self._output.export))
            progress.close()
            self._report(coordinator, tasks)
        except Interrupted:
            newest = self._checkpoints.newest()
            progress.say(f"stopped; checkpoint: {newest[0] if newest else 'none'}")
            return INTERRUPTED
        finally:
            metrics.close()
            progress.close()
        return 0

    def _metrics(self, done: int) -> Metrics:
        run, output = self._config.run, self._output
        sinks: list[Sink] = [
            JsonlSink(output.metrics, done),
            TensorBoardSink(output.tensorboard, done),
        ]
        if run.wandb_project:
            sinks.append(WandbSink(run.wandb_project, output.path, asdict(self._config)))
        return Metrics(sinks)

    def _report(self, coordinator: Coordinator, tasks: list[HeldOutTask]) -> None:
        config, output = self._config, self._output
        peaks = self._crew.peak_memory()
        teacher: dict[str, float] = {}
        if config.eval.teacher_accuracy:
            writer = Writer(self._crew.fleet, self._crew.teacher_as_writer())
            for task in tasks:
                teacher |= accuracy(
                    writer, task, self._tokenizer, config.rollout.max_new_tokens, config.run.seed
                )
        output.plots.mkdir(exist_ok=True)
        rows = read_jsonl(output.metrics)
        plot_curves(rows, output.plots / "curves.png")
        outputs = {
            "metrics": output.metrics,
            "plots": output.plots,
            "checkpoints": output.checkpoints,
        }
        if config.run.export_at_end:
            outputs["exported student"] = output.export
        response = None
        if coordinator.last_step is not None:
            plot_quadrants(
                coordinator.last_step, config.tip.divergence, output.plots / "quadrants.png"
            )
            response = marked_response(coordinator.last_step, self._tokenizer)
        table = closing_table(rows, Figures(teacher, peaks, outputs))
        print_report(table, response, output.report)


def _pairing(config: Config) -> Pairing:
    return check_pairing(
        config.student.path,
        config.teacher.path or "",
        context_length=config.student.context_length,
        accept=config.teacher.accept_mismatch,
        trust_student_code=config.student.trust_remote_code,
        trust_teacher_code=config.teacher.trust_remote_code,
    )


def _own_topk(config: Config) -> int:
    """The teacher's own top-k that the rule of the filter asks for; 0 when it asks for none."""
    rule = find_rule(config.tip.rule)
    return config.rollout.record_topk if "union_forward_kl" in rule.needs else 0


def _resume_point(config: Config, checkpoints: CheckpointStore) -> tuple[Path, RunState] | None:
    """Where to go on, or None for a run from the start.

    Raises:
        CheckpointError, ConfigError: the checkpoint asked for is broken, or of another schedule.
    """
    resume = config.run.resume
    if resume == "never":
        return None
    found = checkpoints.newest() if resume == "auto" else (Path(resume), read_state(Path(resume)))
    if found is not None and found[1].seed != config.run.seed:
        raise ConfigError(
            f"run.seed = {config.run.seed}, but the checkpoint {found[0]} was written with seed "
            f"{found[1].seed}: use that seed, or run.resume=never in another output folder"
        )
    return found


@contextmanager
def _stop_on_signal(fleet: Fleet) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a stop with a checkpoint, a second ends it at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if fleet.stop_requested:
            raise KeyboardInterrupt
        fleet.stop_requested = True

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

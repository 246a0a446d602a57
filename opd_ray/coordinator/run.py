"""A training run from its configuration to its report: check, assemble, coordinate, hand over."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from opd_ray.config.load import to_yaml
from opd_ray.config.schema import Config
from opd_ray.coordinator.loop import Coordinator
from opd_ray.coordinator.report import (
    Figures,
    closing_table,
    marked_response,
    plot_curves,
    plot_quadrants,
    print_report,
)
from opd_ray.coordinator.session import Session, open_session
from opd_ray.data.prompts import HeldOutTask, PromptFeed, held_out_tasks
from opd_ray.errors import INTERRUPTED, ConfigError
from opd_ray.evaluation.evaluator import accuracy
from opd_ray.output.checkpoint import CheckpointStore, RunState, read_state
from opd_ray.output.folder import OutputFolder
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import JsonlSink, Metrics, Sink, TensorBoardSink, WandbSink, read_jsonl
from opd_ray.pools.rollouts import RolloutStream
from opd_ray.pools.watch import Interrupted
from opd_ray.preflight.config import check_config
from opd_ray.preflight.models import check_models, own_topk
from opd_ray.preflight.prompts import check_routing
from opd_ray.tip import TipFilter


def train(config: Config) -> int:
    """Run a training job; returns the exit code (0, or 130 after Ctrl-C).

    Raises:
        OpdError: bad input, before any model is loaded, or the reason why the run could not go on.
    """
    check_config(config)
    pairing, tokenizer = check_models(config)
    prompts = PromptFeed.load(config, tokenizer)
    tasks = held_out_tasks(config, tokenizer)
    longest = check_routing(config, prompts, tasks, pairing.teacher_contexts)
    with OutputFolder(config.run.output_dir) as output:
        output.begin(config)
        checkpoints = CheckpointStore(
            output.checkpoints, config.run.keep_checkpoints, to_yaml(config)
        )
        start = _resume_point(config, checkpoints)
        topk = own_topk(config)
        with open_session(config, pairing, tokenizer, topk, longest) as session:
            return _Run(session, output, checkpoints).go(start, prompts, tasks)


class _Run:
    """The part of a run in which actors live."""

    def __init__(
        self, session: Session, output: OutputFolder, checkpoints: CheckpointStore
    ) -> None:
        self._session = session
        self._config = session.config
        self._output = output
        self._checkpoints = checkpoints

    def go(
        self,
        start: tuple[Path, RunState] | None,
        prompts: PromptFeed,
        tasks: list[HeldOutTask],
    ) -> int:
        config, session = self._config, self._session
        trainers = session.trainers
        tip = TipFilter(config.tip, loss_score=config.loss.divergence.value)
        done = 0
        if start is not None:
            folder, state = start
            session.load(str(folder / "trainer"))
            tip.load_state_dict(state.filter_state)
            done = state.step
        progress = Progress(config.run.steps, done)
        progress.say(f"prompts: {prompts}")
        if start is not None:
            progress.say(f"resumed from {start[0]} at step {done}")
            for folder in self._checkpoints.set_aside_after(done):
                progress.say(f"a later checkpoint is set aside: {folder}")
        metrics = self._metrics(done)
        coordinator = session.coordinator(
            config,
            prompts=prompts,
            evaluator=session.evaluator(config, tasks),
            tip=tip,
            checkpoints=self._checkpoints,
            metrics=metrics,
            progress=progress,
        )
        rows = read_jsonl(self._output.metrics)
        evaluated = any(row["step"] == done and "seconds/eval" in row for row in rows)
        try:
            coordinator.run(done, evaluated=evaluated)
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
        session = self._session
        peaks = session.launcher.peak_memory()
        teacher: dict[str, float] = {}
        if config.eval.teacher_accuracy:
            launcher = session.launcher
            stream = RolloutStream(launcher.watch, launcher.teacher_as_rollout_pool())
            for task in tasks:
                teacher |= accuracy(
                    stream, task, session.tokenizer, config.rollout.max_new_tokens, config.run.seed
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
            response = marked_response(coordinator.last_step, session.tokenizer)
        table = closing_table(rows, Figures(teacher, peaks))
        print_report(table, response, outputs, output.report)


def _resume_point(config: Config, checkpoints: CheckpointStore) -> tuple[Path, RunState] | None:
    """Where to go on, or None for a run from the start.

    Raises:
        CheckpointError, ConfigError: the checkpoint asked for is broken, or has another seed.
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

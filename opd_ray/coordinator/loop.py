"""The main loop: prompts -> rollouts -> teacher -> TIP filter -> trainers -> new weights.

The coordinator holds scores and references; whatever is as large as tokens x vocabulary or
tokens x hidden size goes from the actor that made it straight to the one that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from opd_ray.config.schema import Config
from opd_ray.coordinator.batches import RolloutBatches
from opd_ray.coordinator.close_ups import PROBABILITIES, CloseUps
from opd_ray.coordinator.learning_rate import learning_rate
from opd_ray.coordinator.metrics import SHOWN, StageClock, StepSnapshot, lag_metrics, step_metrics
from opd_ray.coordinator.no_calls import check_calls
from opd_ray.coordinator.nothing import nothing_learned
from opd_ray.coordinator.saving import Checkpoints, Saving
from opd_ray.coordinator.session import Session
from opd_ray.coordinator.tail import GAIN, overlap_gain, tail_metrics
from opd_ray.coordinator.waves import WaveTraining, by_rollout
from opd_ray.coordinator.who_worked import who_worked
from opd_ray.data.prompts import PromptFeed
from opd_ray.errors import RunError
from opd_ray.evaluation.evaluator import ShowAnswers
from opd_ray.output.checkpoint import RunState
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import Metrics
from opd_ray.pools.scorer import BatchUnderWay, ScoredBatch, ScoredRollout
from opd_ray.pools.teachers.account import PoolStats
from opd_ray.pools.watch import Interrupted
from opd_ray.seeds import derive_seed
from opd_ray.tip import Selection, TipFilter, TokenScores, batch_scores, with_exact_scores
from opd_ray.types import RolloutScores, TrainItem


class SyncGapError(RunError):
    """Trainer and rollout engine disagree about the student's log-probabilities."""


class Evaluates(Protocol):
    """Measures the student (:class:`opd_ray.evaluation.evaluator.Evaluator`)."""

    def run(self, show: ShowAnswers | None = None) -> dict[str, float]: ...


@dataclass
class Coordinator:
    """Runs the steps of one training run."""

    config: Config  # of the run; what the actors were started with must be the session's own
    session: Session  # the actors. Several runs may use it, one after another
    prompts: PromptFeed  # to train on
    tip: TipFilter  # as the run begins or goes on with it
    evaluator: Evaluates
    checkpoints: Checkpoints
    metrics: Metrics
    progress: Progress
    close_ups: CloseUps | None = None  # None: no step is kept for a person to see
    evaluated: Callable[[], None] = lambda: None  # after every evaluation, its figures written
    last_step: StepSnapshot | None = None
    done: int = 0  # steps taken
    restarts: int = 0  # of all trainer ranks
    idle_steps: int = 0  # that learned nothing
    calls_checked: bool = False  # whether the first step's rollouts called their tools

    def __post_init__(self) -> None:
        close_ups = self.close_ups
        wanted = close_ups.wanted if close_ups else lambda step, requests: ()
        self.batches = RolloutBatches(self.config, self.session, self.prompts, wanted)
        beside = self.config.run.checkpoint_beside
        self.saving = Saving(self.session, self.checkpoints, beside)

    def run(self, done: int, *, evaluated: bool = False) -> None:
        """Train from step ``done`` to the last one, evaluating, logging and saving on the way.

        Args:
            done: steps taken before.
            evaluated: whether step ``done`` has been evaluated; Ctrl-C may have come in between.

        Raises:
            Interrupted: a stop was asked for; the last finished step has been saved.
        """
        total = self.config.run.steps
        saved = self.done = done
        self.session.scorer.watch.pulse = self.progress.tick
        self.progress.counts = self.session.scorer.counts
        try:
            self.session.sync.push(done)
            if self._evaluation_due(done) and not evaluated:
                self._evaluate(done)
            while done < total:
                self.step(done)
                self.done = done = done + 1
                if self._evaluation_due(done):
                    self._evaluate(done)
                if done == total or self._checkpoint_due(done):
                    self._save(done, last=done == total)
                    saved = done
        except Interrupted:
            if self.session.order.alternate:  # who writes would keep the trainers from saving
                self.session.scorer.abandon()
            if done > saved:
                self._save(done, last=True)
            self.saving.finish()
            raise

    def go_back(self, step: int, filter_state: dict[str, Any], ahead: Path | None) -> None:
        """Have all as it was after ``step``, when the filter had this state; :meth:`run` goes on.

        Args:
            step: taken by the weights that the trainers have.
            filter_state: :meth:`TipFilter.state_dict`.
            ahead: the folder in which the rollouts of the step that comes next are, if any.
        """
        self.tip.load_state_dict(filter_state)
        self.batches.forget()
        if ahead is not None:
            self.batches.load(ahead, step)
        self.metrics.back_to(step)
        if self.close_ups:
            self.close_ups.rows.back_to(step)
        self.progress.back_to(step)

    def step(self, step: int) -> None:
        """One turn of the loop."""
        session, run, clock = self.session, self.config.run, StageClock(self.progress.stage)
        self.last_step = None  # as large as what comes
        exact: dict[str, RolloutScores] = {}
        session.scorer.watch.heed_stop("the next step")
        pools = session.teachers.pools
        for pool in pools.values():
            pool.open_account()
        ahead, under_way = self.batches.begun_ahead, self.batches.of(step)
        early = self._train_early(under_way, step, exact, clock)
        with clock.stage("rollout_and_teacher"):
            batch = under_way.result()
        if run.lag and step + 1 < run.steps:
            self.batches.begin_ahead(step + 1)
        self._check_calls(batch)
        scores = self._scores(batch.rollouts, exact, clock, step)
        batch.forget_scores()
        with clock.stage("filter"):
            selection = self._select(batch.rollouts, scores, step)
            weights = by_rollout(batch.rollouts, selection.weights_N)
            early.check(weights)
        rest = [one for one in batch.rollouts if one.rollout.rollout_id not in early.weights]
        with clock.stage("train"):
            rate = learning_rate(step, run.steps, self.config.trainer)
            items = self._items(rest, weights)
            take = session.order.handing_over(session.teachers.take)
            account = session.trainers.step(items, rate, take)
        clock.worked("train", account.seconds)
        with clock.stage("rollout_and_teacher"):
            self.batches.finish_ahead()
        with clock.stage("sync"):
            if not account.skipped:
                session.sync.push(step + 1, stepped=True)
        versions = [one.rollout.weights_version for one in batch.rollouts]
        age = step - min(versions) if ahead else 0
        self.last_step = StepSnapshot(batch.rollouts, scores, selection, age)
        stats = {name: pool.stats() for name, pool in pools.items()}
        values = step_metrics(
            self.last_step,
            account,
            session.launcher.peak_memory(),
            clock.report(),
            stats,
            batch.teacher_alone_seconds,
        )
        values |= self._tail(batch, weights, values["seconds/train"])
        restarts, rewritten = session.scorer.rollouts.take_counts()
        values |= {"rollout/restarts": restarts, "rollout/rewritten": rewritten}
        if run.overlap:
            values["train/waves"] = early.count
        if run.lag:
            values |= lag_metrics(account, age)
        values |= self.saving.take_figures()
        values["train/restarts"] = self.restarts
        self.metrics.write(step + 1, values)
        self.progress.step(step + 1, values)
        self._keep_close_up(step, batch, clock, stats)
        if why := nothing_learned(account, selection, scores, self.config.tip):
            self._say_idle(step, why)
        if not age:
            self._check_gap(account.gap_mean, f"step {step + 1}")

    def _keep_close_up(
        self, step: int, batch: ScoredBatch, clock: StageClock, stats: Mapping[str, PoolStats]
    ) -> None:
        """Of a few steps, what a person will see."""
        session, close_ups, last = self.session, self.close_ups, self.last_step
        written = session.scorer.rollouts.take_spans()
        if close_ups is None or last is None or not close_ups.due(step):
            return
        worked = who_worked(session, batch, clock, written, stats.values())
        close_ups.step(step, last, self.tip, self._seeds(last.scored, step), worked)

    def _train_early(
        self, batch: BatchUnderWay, step: int, exact: dict[str, RolloutScores], clock: StageClock
    ) -> WaveTraining:
        """With ``run.overlap``, train on what is scored until the batch is whole."""
        session = self.session
        waves = WaveTraining(
            self.config.trainer,
            lambda wave: self._scores(wave, exact, clock, step),
            lambda wave, scores: self.tip.weights(scores, self._seeds(wave, step), step),
            lambda wave, weights: session.trainers.accumulate(
                self._items(wave, weights), session.teachers.take
            ),
        )
        if self.config.run.overlap and self.tip.decides_by_rollout:
            waves.run(batch, clock)
        return waves

    def _check_calls(self, batch: ScoredBatch) -> None:
        """Of the first step: does anybody call the tools that there are?"""
        if self.calls_checked or not self.config.environment_set.any:
            return
        environments = self.prompts.environments
        acting = [s.rollout for s in batch.rollouts if s.rollout.turns is not None]
        parsers = {
            source: (f"{environment.key}.parser", environment.settings.parser)
            for source in {rollout.source for rollout in acting}
            if (environment := environments.of(source)) and environment.tools
        }
        check_calls(acting, parsers, self.session.tokenizer.decode)
        self.calls_checked = True

    def _scores(
        self,
        scored: Sequence[ScoredRollout],
        exact: dict[str, RolloutScores],
        clock: StageClock,
        step: int,
    ) -> TokenScores:
        """The filter's input: what streamed in, or what an exact pass in the trainers says.

        ``exact``: what it has said of the step's rollouts; those that are missing are added.
        """
        session, wanted = self.session, self.tip.reads.union(SHOWN)
        if self.close_ups is not None and self.close_ups.due(step):
            wanted = wanted.union(PROBABILITIES)
        with clock.stage("filter"):
            streamed = batch_scores(
                [s.rollout for s in scored], [s.scores for s in scored], session.vocab_size, wanted
            )
        if not self.config.scores_exactly:
            return streamed
        with clock.stage("exact_scores"):
            look = session.order.handing_over(partial(session.teachers.take, forget=False))
            missing = [s.whole() for s in scored if s.rollout.rollout_id not in exact]
            exact |= {one.rollout_id: one for one in session.trainers.score(missing, look)}
        return with_exact_scores(streamed, [exact[s.rollout.rollout_id] for s in scored], wanted)

    def _select(self, scored: Sequence[ScoredRollout], scores: TokenScores, step: int) -> Selection:
        """The tokens to be trained on, each with its weight."""
        return self.tip.select(scores, self._seeds(scored, step), step)

    def _seeds(self, scored: Sequence[ScoredRollout], step: int) -> np.ndarray:
        """A seed for each rollout, [R], for rules that draw."""
        seeds = [derive_seed(self.config.run.seed, step, s.rollout.rollout_id) for s in scored]
        return np.array(seeds, dtype=np.int64)

    def _items(
        self, scored: Sequence[ScoredRollout], weights: Mapping[str, np.ndarray]
    ) -> list[TrainItem]:
        """Rollouts with their kept rows; the teachers forget those of which nothing is kept."""
        items = [one.kept(weights[one.rollout.rollout_id]) for one in scored]
        # A rollout of which the student wrote nothing never was with a teacher.
        sent = [item for item, s in zip(items, scored, strict=True) if s.rollout.written_tokens]
        self.session.teachers.drop([item.rollout_id for item in sent if not len(item.rows)])
        return items

    def _tail(
        self, batch: ScoredBatch, weights: Mapping[str, np.ndarray], train_seconds: float
    ) -> dict[str, float]:
        """The step's tail, and what overlap would gain where the step had none."""
        found = tail_metrics(batch)
        if self.config.run.overlap or self.config.run.lag or self.session.order.alternate:
            return found
        work = [
            s.rollout.text_tokens if weights[s.rollout.rollout_id].any() else 0
            for s in batch.rollouts
        ]
        return found | {GAIN: overlap_gain(batch.scored_R, np.array(work), train_seconds)}

    def _say_idle(self, step: int, why: str) -> None:
        """The first such step, the tenth, the hundredth and so on: not to bury the rest."""
        self.idle_steps += 1
        if str(self.idle_steps).strip("0") == "1":
            count = "" if self.idle_steps == 1 else f", as {self.idle_steps - 1} before"
            self.progress.say(f"step {step + 1} learned nothing{count}: {why}")

    def _check_gap(self, mean: float, where: str) -> None:
        limit = self.config.sync.max_gap
        if mean > limit:
            raise SyncGapError(
                f"{where}: trainer and vLLM differ by {mean:.4f} nats a token on average about the "
                f"log-probabilities of the sampled tokens, above sync.max_gap = {limit}: the "
                "engines do not hold the same weights, or compute too coarsely; use float32 in "
                "both, or raise sync.max_gap"
            )

    def _evaluate(self, step: int) -> None:
        self.progress.stage("evaluation")
        show = partial(self.close_ups.answers, step) if self.close_ups else None
        values = self.evaluator.run(show)
        if self.config.run.lag and "eval/sync_gap" in values:
            # Steps cannot tell: their rollouts are of older weights.
            self._check_gap(values["eval/sync_gap"], f"evaluation at step {step}")
        self.metrics.write(step, values)
        self.progress.evaluation(step, values)
        self.evaluated()

    def _evaluation_due(self, done: int) -> bool:
        every = self.config.eval.every
        return done in (0, self.config.run.steps) or bool(every and done % every == 0)

    def _checkpoint_due(self, done: int) -> bool:
        every = self.config.run.checkpoint_every
        return bool(every) and done % every == 0

    def _save(self, done: int, *, last: bool) -> None:
        self.progress.stage("checkpoint")
        run = self.config.run
        state = RunState(
            done,
            run.seed,
            run.steps,
            self.tip.state_dict(),
            batches=self.prompts.taken(done, self.config.rollout.prompts_per_step),
            prompts=asdict(self.prompts.identity),
        )
        self.saving.save(state, partial(self.batches.save, last=last), last=last)
        if figures := self.saving.take_figures():
            self.metrics.write(done, figures)

"""The main loop: prompts -> rollouts -> teacher -> TIP filter -> trainers -> new weights.

The coordinator holds scores and references; whatever is as large as tokens x vocabulary or
tokens x hidden size goes from the actor that made it straight to the one that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol

import numpy as np

from opd_ray.config.choices import Scoring
from opd_ray.config.schema import Config
from opd_ray.coordinator.learning_rate import learning_rate
from opd_ray.coordinator.metrics import StageClock, StepSnapshot, step_metrics
from opd_ray.coordinator.no_calls import check_calls
from opd_ray.coordinator.nothing import nothing_learned
from opd_ray.coordinator.session import Session
from opd_ray.data.prompts import PromptFeed, own_teacher_prompts
from opd_ray.errors import RunError
from opd_ray.output.checkpoint import RunState
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import Metrics
from opd_ray.pools.rollouts import run_sampling
from opd_ray.pools.scorer import ScoredBatch, ScoredRollout
from opd_ray.pools.watch import Interrupted
from opd_ray.seeds import derive_seed
from opd_ray.tip import Selection, TipFilter, TokenScores, batch_scores, with_exact_scores
from opd_ray.types import Rollout, RolloutRequest, StepAccount


class SyncGapError(RunError):
    """Trainer and rollout engine disagree about the student's log-probabilities."""


class Evaluates(Protocol):
    """Measures the student (:class:`opd_ray.evaluation.evaluator.Evaluator`)."""

    def run(self) -> dict[str, float]: ...


class Checkpoints(Protocol):
    """Where checkpoints go (:class:`opd_ray.output.checkpoint.CheckpointStore`)."""

    def save(self, state: RunState, write_trainer: Callable[[str], None]) -> object: ...


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
    last_step: StepSnapshot | None = None
    idle_steps: int = 0  # that learned nothing
    calls_checked: bool = False  # whether the first step's rollouts called their tools

    def run(self, done: int, *, evaluated: bool = False) -> None:
        """Train from step ``done`` to the last one, evaluating, logging and saving on the way.

        Args:
            done: steps taken before.
            evaluated: whether step ``done`` has been evaluated; Ctrl-C may have come in between.

        Raises:
            Interrupted: a stop was asked for; the last finished step has been saved.
        """
        total = self.config.run.steps
        saved = done
        try:
            self.session.sync.push(done)
            if self._evaluation_due(done) and not evaluated:
                self._evaluate(done)
            while done < total:
                self.step(done)
                done += 1
                if self._evaluation_due(done):
                    self._evaluate(done)
                if done == total or self._checkpoint_due(done):
                    self._save(done)
                    saved = done
        except Interrupted:
            if done > saved:
                self._save(done)
            raise

    def step(self, step: int) -> None:
        """One turn of the loop."""
        session, clock = self.session, StageClock()
        pools = session.teachers.pools
        for pool in pools.values():
            pool.open_account()
        with clock.stage("rollout_and_teacher"):
            batch = self._rollouts(step)
        self._check_calls(batch)
        scores = self._scores(batch.rollouts, clock)
        with clock.stage("filter"):
            selection = self._select(batch.rollouts, scores, step)
        with clock.stage("train"):
            account = self._train(batch.rollouts, selection, step)
        clock.worked("train", account.seconds)
        with clock.stage("sync"):
            if not account.skipped:
                session.sync.push(step + 1, stepped=True)
        self.last_step = StepSnapshot(batch.rollouts, scores, selection)
        values = step_metrics(
            self.last_step,
            account,
            session.launcher.peak_memory(),
            clock.report(),
            {name: pool.stats() for name, pool in pools.items()},
            batch.teacher_alone_seconds,
        )
        self.metrics.write(step + 1, values)
        self.progress.step(step + 1, values)
        if why := nothing_learned(account, selection, scores, self.config.tip):
            self._say_idle(step, why)
        self._check_gap(account, step)

    def _rollouts(self, step: int) -> ScoredBatch:
        """This step's prompts, each answered ``samples_per_prompt`` times and judged."""
        rollout = self.config.rollout
        prompts = self.prompts.batch(step, rollout.prompts_per_step)
        requests = [
            RolloutRequest(
                rollout_id=f"{step}/{prompt.key}/{sample}",
                prompt_id=prompt.key,
                sample=sample,
                prompt_ids=prompt.student_ids,
                seed=derive_seed(self.config.run.seed, step, prompt.key, sample),
                source=prompt.source,
                episode=prompt.episode,
            )
            for prompt in prompts
            for sample in range(rollout.samples_per_prompt)
        ]
        under_way = self.session.scorer.start(
            requests, run_sampling(rollout), own_teacher_prompts(prompts), self._drops
        )
        return under_way.result()

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

    def _drops(self, request: RolloutRequest, rollout: Rollout) -> bool:
        """Whether a rollout in an environment is left out because it came to a limit."""
        if request.episode is None or rollout.finish_reason == "stop":
            return False
        return not self.config.environment_of(request.source).keep_truncated

    def _scores(self, scored: Sequence[ScoredRollout], clock: StageClock) -> TokenScores:
        """The filter's input: what streamed in, or what an exact pass in the trainers says."""
        session = self.session
        with clock.stage("filter"):
            streamed = batch_scores(
                [s.rollout for s in scored], [s.scores for s in scored], session.vocab_size
            )
        if self.config.scoring == Scoring.streamed:
            return streamed
        with clock.stage("exact_scores"):
            look = partial(session.teachers.take, forget=False)
            exact = session.trainers.score([s.whole() for s in scored], look)
        return with_exact_scores(streamed, exact)

    def _select(self, scored: Sequence[ScoredRollout], scores: TokenScores, step: int) -> Selection:
        """The tokens to be trained on, each with its weight."""
        seeds = [derive_seed(self.config.run.seed, step, s.rollout.rollout_id) for s in scored]
        return self.tip.select(scores, np.array(seeds, dtype=np.int64), step)

    def _train(
        self, scored: Sequence[ScoredRollout], selection: Selection, step: int
    ) -> StepAccount:
        """Hand the kept rows to the trainers; the teachers forget the rest."""
        config, teachers = self.config, self.session.teachers
        lengths = [len(s.rollout.response_ids) for s in scored]
        weights_by_rollout = np.split(selection.weights_N, np.cumsum(lengths)[:-1])
        items = [s.kept(w) for s, w in zip(scored, weights_by_rollout, strict=True)]
        rate = learning_rate(step, config.run.steps, config.trainer)
        account = self.session.trainers.step(items, rate, teachers.take)
        # A rollout of which the student wrote nothing never was with a teacher.
        sent = [item for item, s in zip(items, scored, strict=True) if len(s.rollout.rows)]
        teachers.drop([item.rollout_id for item in sent if not len(item.rows)])
        return account

    def _say_idle(self, step: int, why: str) -> None:
        """The first such step, the tenth, the hundredth and so on: not to bury the rest."""
        self.idle_steps += 1
        if str(self.idle_steps).strip("0") == "1":
            count = "" if self.idle_steps == 1 else f", as {self.idle_steps - 1} before"
            self.progress.say(f"step {step + 1} learned nothing{count}: {why}")

    def _check_gap(self, account: StepAccount, step: int) -> None:
        limit = self.config.sync.max_gap
        if account.gap_mean > limit:
            raise SyncGapError(
                f"step {step + 1}: trainer and vLLM differ by {account.gap_mean:.4f} nats a token "
                f"on average (largest {account.gap_max:.4f}) about the log-probabilities of the "
                f"sampled tokens, above sync.max_gap = {limit}: the engines do not hold the same "
                "weights, or compute too coarsely; use float32 in both, or raise sync.max_gap"
            )

    def _evaluate(self, step: int) -> None:
        values = self.evaluator.run()
        self.metrics.write(step, values)
        self.progress.evaluation(step, values)

    def _evaluation_due(self, done: int) -> bool:
        every = self.config.eval.every
        return done in (0, self.config.run.steps) or bool(every and done % every == 0)

    def _checkpoint_due(self, done: int) -> bool:
        every = self.config.run.checkpoint_every
        return bool(every) and done % every == 0

    def _save(self, done: int) -> None:
        run = self.config.run
        state = RunState(
            done,
            run.seed,
            run.steps,
            self.tip.state_dict(),
            batches=self.prompts.taken(done, self.config.rollout.prompts_per_step),
            prompts=asdict(self.prompts.identity),
        )
        self.checkpoints.save(state, self.session.save)

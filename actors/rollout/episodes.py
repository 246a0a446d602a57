"""Rollouts of several turns on one engine: a turn is a request, tools run beside the engine."""

from __future__ import annotations

import math
import queue
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.environment.processes import EnvironmentProcesses
from opd_ray.config.environment import EnvironmentSet
from opd_ray.environments.by_source import RunEnvironment, RunEnvironments
from opd_ray.environments.environment import Environment
from opd_ray.environments.episode import Episode, EpisodeLimits
from opd_ray.environments.runner import EnvironmentRunner
from opd_ray.environments.turns import TurnTemplate
from opd_ray.seeds import derive_seed
from opd_ray.types import EpisodeStart, Rollout, RolloutRequest, Sampling, TopK, named_figures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from actors.rollout.engine import RolloutEngine

# How long a step with nothing to write waits for a tool before it lets new requests in, seconds.
_WAIT_SECONDS = 0.02


@dataclass
class _UnderWay:
    """A rollout of several turns that has not come to its end."""

    request: RolloutRequest
    sampling: Sampling
    record: bool
    episode: Episode
    turns: list[Rollout] = field(default_factory=list)
    finishing: bool = False
    given_up: bool = False

    def next_turn(self) -> RolloutRequest:
        """The turn that the student is to write now."""
        episode, number = self.episode, len(self.turns)
        text = [*episode.prompt_ids, *episode.response_ids]
        return replace(
            self.request,
            rollout_id=f"{self.request.rollout_id}#{number}",
            prompt_ids=np.array(text, dtype=np.int32),
            seed=derive_seed(self.request.seed, "turn", number),
            episode=None,
        )

    def rollout(self) -> Rollout:
        """The whole of it."""
        episode, turns = self.episode, self.turns
        arrays = episode.arrays()
        written = np.flatnonzero(arrays["response_mask"])

        def spread(name: str) -> np.ndarray:
            values_m = np.zeros(len(arrays["response_ids"]), dtype=np.float32)
            if self.record:
                values_m[written] = np.concatenate([getattr(turn, name) for turn in turns])
            return values_m

        figures = {name: sum(turn.figures[name] for turn in turns) for name in turns[0].figures}
        return replace(
            turns[0],
            rollout_id=self.request.rollout_id,
            prompt_ids=np.array(episode.prompt_ids, dtype=np.int32),
            entropy=spread("entropy"),
            logprob=spread("logprob"),
            finish_reason=episode.ending or "stop",
            topk=_joined([turn.topk for turn in turns]) if self.record else None,
            figures={
                **figures,
                **episode.account.figures(),
                **named_figures(episode.figures),
            },
            messages=None if self.record else tuple(episode.messages),
            response_ids=arrays["response_ids"],
            response_mask=arrays["response_mask"],
            turns=arrays["turns"],
        )


class EpisodeEngine:
    """An engine whose rollouts take turns with their environments, if they have one.

    It stands in front of a :class:`actors.rollout.engine.RolloutEngine` and has its methods to add
    requests and to step; one thread calls them. A rollout that waits for a tool holds no place in
    the engine, whose prefix cache has the keys and values of its earlier turns.

    Args:
        engine: writes the turns.
        environments: of the run.
        tokenizer: the student's.
        end_ids: of the tokens that end a turn.
        concurrent: rollouts that are under way at once, at most.
        in_rounds: the next turns are written once the last ones and all calls are done, and new
            rollouts begin then. So no turn's company depends on how long a call took.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        environments: EnvironmentSet,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Sequence[int],
        concurrent: int,
        *,
        in_rounds: bool = False,
    ) -> None:
        self._engine = engine
        self._environments = RunEnvironments(environments)
        self._tokenizer, self._end_ids = tokenizer, tuple(end_ids)
        self._concurrent = concurrent
        self._processes: dict[str, EnvironmentProcesses] = {}
        self._under_way: dict[str, _UnderWay] = {}  # by rollout id
        # Those that wait for their environment, each by a key of its own: a rollout that was given
        # up may be asked for again.
        self._calls: dict[str, _UnderWay] = {}
        self._call_count = 0
        self._in_rounds = in_rounds
        self._to_begin: deque[tuple[RolloutRequest, Sampling, bool]] = deque()
        self._answered: set[str] = set()  # rollouts, in this round
        self._runner = EnvironmentRunner(
            environments.default.threads, environments.default.call_timeout_s
        )

    def has_unfinished(self) -> bool:
        """Whether :meth:`step` has anything to do."""
        return bool(self._under_way or self._to_begin) or self._engine.has_unfinished()

    def forget_prefixes(self) -> None:
        """See :meth:`actors.rollout.engine.RolloutEngine.forget_prefixes`."""
        self._engine.forget_prefixes()

    def add(self, requests: Sequence[RolloutRequest], sampling: Sampling, record: bool) -> None:
        """Take on requests; see :meth:`actors.rollout.engine.RolloutEngine.add`.

        ``sampling.max_tokens`` bounds all turns and what stands between them together.

        Raises:
            UserCodeError: an environment cannot be made.
        """
        alone = [request for request in requests if request.episode is None]
        self._engine.add(alone, sampling, record)
        acting = [request for request in requests if request.episode is not None]
        self._to_begin.extend((request, sampling, record) for request in acting)
        self._begin()

    def step(self) -> list[Rollout]:
        """One forward pass for all turns that are being written; the rollouts that ended.

        Raises:
            UserCodeError: an environment raised outside of its tools.
        """
        ended = self._next_round() if self._in_rounds else self._go_on()
        if not self._engine.has_unfinished():
            return ended
        for written in self._engine.step():
            rollout_id, between, _ = written.rollout_id.rpartition("#")
            under_way = self._under_way.get(rollout_id) if between else None
            if under_way is None:
                ended.append(written)
                continue
            under_way.turns.append(written)
            ids, reason = written.response_ids.tolist(), written.finish_reason
            self._start(under_way, partial(under_way.episode.take, ids, reason))
        return ended

    def abort(self) -> None:
        """Give up all that is under way; environments are closed, after the calls they are in."""
        self._engine.abort()
        in_calls = {call.request.rollout_id for call in self._calls.values() if not call.given_up}
        for rollout_id, under_way in self._under_way.items():
            under_way.given_up = True
            if rollout_id not in in_calls:
                self._leave(under_way)
        self._under_way.clear()
        self._to_begin.clear()
        self._answered.clear()

    def _begin(self) -> None:
        """Begin what waits; in rounds, as many as may be under way."""
        most = self._concurrent if self._in_rounds else math.inf
        while self._to_begin and len(self._under_way) < most:
            request, sampling, record = self._to_begin.popleft()
            if request.rollout_id in self._under_way:
                raise ValueError(f"rollout id {request.rollout_id!r} is asked for twice at once")
            assert request.episode is not None
            under_way = self._begun(request, request.episode, sampling, record)
            self._under_way[request.rollout_id] = under_way
            row = {**request.episode.row, "rollout_seed": request.seed}
            begin = partial(under_way.episode.begin, row, request.prompt_ids.tolist())
            self._start(under_way, begin)

    def _start(self, under_way: _UnderWay, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Have work done in a rollout's environment; its end shows in :meth:`_next_answer`."""
        self._call_count += 1
        key = f"{self._call_count} of {under_way.request.rollout_id}"
        self._calls[key] = under_way
        self._runner.start(key, work)

    def _leave(self, under_way: _UnderWay) -> None:
        under_way.finishing = True
        self._start(under_way, under_way.episode.leave)

    def _begun(
        self, request: RolloutRequest, start: EpisodeStart, sampling: Sampling, record: bool
    ) -> _UnderWay:
        environment = self._environments.of(request.source)
        if environment is None:
            raise ValueError(f"prompts of source {request.source!r} have no environment")
        template = TurnTemplate(self._tokenizer, environment.tools, start.options, self._end_ids)
        episode = Episode(
            environment.place,
            self._maker(environment),
            template,
            environment.parser,
            self._runner,
            self._limits(environment, sampling),
        )
        return _UnderWay(request, sampling, record, episode)

    def _maker(self, environment: RunEnvironment) -> Callable[[], Environment]:
        if not environment.settings.own_process:
            return environment.make
        if environment.key not in self._processes:
            self._processes[environment.key] = EnvironmentProcesses(
                environment.settings,
                environment.key,
                environment.tools,
                environment.responds,
                self._concurrent,
            )
        return self._processes[environment.key].make

    def _limits(self, environment: RunEnvironment, sampling: Sampling) -> EpisodeLimits:
        settings = environment.settings
        return EpisodeLimits(
            context=self._engine.context_length,
            response=sampling.max_tokens,
            turns=settings.max_turns,
            calls=settings.max_calls,
            result_tokens=settings.max_result_tokens,
            turn=settings.max_turn_tokens,
        )

    def _go_on(self) -> list[Rollout]:
        """Give the engine the turns that can be written now; the rollouts that ended."""
        ended: list[Rollout] = []
        seconds = 0.0 if self._engine.has_unfinished() else _WAIT_SECONDS
        while self._under_way and (answered := self._next_answer(seconds)):
            seconds = 0.0
            ended += self._after(answered)
        return ended

    def _next_round(self) -> list[Rollout]:
        """As :meth:`_go_on`, of all rollouts in their order, once all are waiting for it."""
        if self._engine.has_unfinished():
            return []
        while len(self._answered) < len(self._under_way):
            answered = self._next_answer(_WAIT_SECONDS)
            if answered is None:
                return []
            self._answered.add(answered.request.rollout_id)
        self._answered.clear()
        ended = [one for under_way in [*self._under_way.values()] for one in self._after(under_way)]
        self._begin()
        return ended

    def _next_answer(self, seconds: float) -> _UnderWay | None:
        """The next rollout whose environment is done; None: there is none within so long.

        The environments of those that were given up are left.

        Raises:
            UserCodeError: an environment raised outside of its tools.
        """
        while True:
            try:
                key, outcome = self._runner.ended.get(timeout=seconds)
            except queue.Empty:
                return None
            under_way = self._calls.pop(key)
            if isinstance(outcome, BaseException):
                raise outcome
            if not under_way.given_up:
                return under_way
            if not under_way.finishing:
                self._leave(under_way)

    def _after(self, under_way: _UnderWay) -> list[Rollout]:
        """Go on with a rollout whose environment is done; it, if that was its end."""
        if under_way.finishing:
            return [self._under_way.pop(under_way.request.rollout_id).rollout()]
        if under_way.episode.ending is not None:
            under_way.finishing = True
            self._start(under_way, under_way.episode.finish)
            return []
        longest = under_way.episode.room
        sampling = replace(under_way.sampling, max_tokens=longest)
        self._engine.add([under_way.next_turn()], sampling, under_way.record)
        return []


def _joined(parts: Sequence[TopK]) -> TopK:
    return TopK(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.logprobs for part in parts]),
    )

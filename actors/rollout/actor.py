"""The Ray actor around a rollout engine; start it with the variables of vllm_environment."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from actors.lifeline import LIFELINE_GROUP, Lifeline
from actors.process import peak_memory_bytes
from actors.rollout.episodes import EpisodeEngine
from actors.run_folder import require_run_folder
from actors.weights.registry import TRANSPORTS
from opd_ray.config.environment import EnvironmentSet
from opd_ray.config.schema import RolloutSettings, StudentSettings, SyncSettings
from opd_ray.models.tokenizer import describe_model
from opd_ray.types import Rollout, RolloutRequest, Sampling

if TYPE_CHECKING:
    from actors.engine_sleep import Part
    from actors.rollout.engine import RolloutEngine


# How often an engine that writes shows that it does, seconds.
_SIGN_SECONDS = 10.0


# The engine is only ever touched by the one thread of its group; the inbox stays open meanwhile.
@ray.remote(concurrency_groups={"engine": 1, "inbox": 1, **LIFELINE_GROUP})
class RolloutActor(Lifeline):
    """Streams rollouts; :class:`actors.rollout.engine.RolloutEngine` has the details.

    Args: as the engine's, and

        environments: of the run; None: every response is one turn.
        deterministic: what a batch is written like depends on its requests alone, not on the clock
            nor on what was written before.
        sleeps: whether :meth:`sleep` is to be called.
    """

    def __init__(
        self,
        student: StudentSettings,
        rollout: RolloutSettings,
        sync: SyncSettings,
        vocab_size: int | None = None,
        environments: EnvironmentSet | None = None,
        deterministic: bool = False,
        *,
        sleeps: bool = False,
    ) -> None:
        from actors.rollout.engine import RolloutEngine

        require_run_folder()
        self._deterministic = deterministic
        engine = self._own = RolloutEngine(student, rollout, sync, vocab_size, sleeps=sleeps)
        self._engine: RolloutEngine | EpisodeEngine = engine
        if environments is not None:
            model = describe_model(student.path, trust_remote_code=student.trust_remote_code)
            self._engine = EpisodeEngine(
                engine,
                environments,
                model.tokenizer,
                model.eos_ids,
                environments.concurrent(rollout.max_num_seqs),
                in_rounds=deterministic,
            )
        self._transport_end = TRANSPORTS[sync.backend].engine_end(engine)
        # References to the top-Ks of the running batch: Ray's count of references inside streamed
        # items can reach zero before the consumer has borrowed them, so they are held here.
        self._topk_refs: list[ray.ObjectRef] = []
        # (number of the batch, its further requests, whether more come)
        self._inbox: queue.SimpleQueue[tuple[int, Sequence[RolloutRequest], bool]]
        self._inbox = queue.SimpleQueue()
        self._given_up = -1  # the last batch that was
        limit = rollout.answer_timeout_s
        self._sign_after_s = math.inf if limit is None else min(_SIGN_SECONDS, limit / 4)

    @ray.method(concurrency_group="engine")
    def ready(self) -> None:
        """Returns once the engine is up."""

    @ray.method(concurrency_group="engine", num_returns="streaming")
    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        record: bool,
        more: bool,
        batch: int = 0,
    ) -> Iterator[list[Rollout]]:
        """Stream the rollouts of one batch, those of a step together, the moment they end.

        While none ends for long, an item without rollouts now and then says that the engine writes.

        ``topk`` of each is a reference to its TopK in the object store of this node, good until
        the next batch begins. The stream ends when every response is written and no more requests
        are announced, or when the batch is given up.

        Args:
            requests: the first ones.
            sampling: for all of the batch.
            record: see :meth:`actors.rollout.engine.RolloutEngine.add`.
            more: further requests come through :meth:`add`.
            batch: its number; later batches have higher ones.

        Raises:
            RuntimeError: the last stream failed, or requests came after the last ones.
            ValueError: see :meth:`actors.rollout.engine.RolloutEngine.add`.
        """
        if self._engine.has_unfinished():
            raise RuntimeError("the last stream of this rollout actor did not come to its end")
        self._topk_refs.clear()
        if self._deterministic:
            self._engine.forget_prefixes()
        self._engine.add(requests, sampling, record)
        said = time.monotonic()
        while batch > self._given_up:
            if more and not (self._engine.has_unfinished() and self._inbox.empty()):
                of, requests, going_on = self._inbox.get()
                if of == batch > self._given_up:  # else left by a batch that was given up
                    more = going_on
                    self._engine.add(requests, sampling, record)
                continue
            if not self._engine.has_unfinished():
                break
            finished = self._engine.step()
            now = time.monotonic()
            if finished or now - said > self._sign_after_s:
                said = now
                yield [self._with_topk_by_reference(rollout) for rollout in finished]
        if batch <= self._given_up:
            self._engine.abort()
            return
        while not self._inbox.empty():
            if self._inbox.get()[0] == batch:
                raise RuntimeError("requests were added to a batch after its last ones")

    @ray.method(concurrency_group="inbox")
    def add(self, requests: Sequence[RolloutRequest], more: bool, batch: int = 0) -> None:
        """Hand further requests to a batch's stream; ``more`` False: these were the last.

        It may overtake the call that opens the stream. Errors in them come out of the stream.
        """
        self._inbox.put((batch, requests, more))

    @ray.method(concurrency_group="inbox")
    def abort(self, batch: int = 0) -> None:
        """Give a batch up, wherever it is: its stream ends soon, with what it has brought.

        It may overtake the call that opens the stream, and come after its end.
        """
        self._given_up = batch
        self._inbox.put((batch, (), False))  # wakes a stream that waits for requests

    @ray.method(concurrency_group="engine")
    def sleep(self) -> None:
        """See :meth:`actors.rollout.engine.RolloutEngine.sleep`; after a running stream has ended.

        Top-Ks of the last batch stay at hand.
        """
        self._own.sleep()

    @ray.method(concurrency_group="engine")
    def wake(self, part: Part) -> None:
        """See :meth:`actors.rollout.engine.RolloutEngine.wake`."""
        self._own.wake(part)

    @ray.method(concurrency_group="engine")
    def call_transport(self, method: str, *args: Any) -> Any:
        """Call this actor's end of the weight transport. Waits for a running stream to end."""
        return getattr(self._transport_end, method)(*args)

    @ray.method(concurrency_group="inbox")
    def peak_memory(self) -> int:
        """Most main memory this process ever held, bytes."""
        return peak_memory_bytes()

    def _with_topk_by_reference(self, rollout: Rollout) -> Rollout:
        if rollout.topk is None:
            return rollout
        self._topk_refs.append(ray.put(rollout.topk))
        return replace(rollout, topk=self._topk_refs[-1])

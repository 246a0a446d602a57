"""The run's actors: started where the placement plan says, and waited for until they are ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, InitVar, dataclass
from functools import partial
from typing import Any

from opd_ray.cluster.placed_actor import PlacedActor, Role
from opd_ray.cluster.placement import Placement
from opd_ray.config.choices import PlacementChoice, TeacherTiming
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TeacherSettings, batch_budget
from opd_ray.errors import ActorDied
from opd_ray.pools.first_start import FirstStart
from opd_ray.pools.members import RestartPolicy
from opd_ray.pools.places import Places
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.pools.trainers import TrainerGroup, answer_limit, answers_of_ranks
from opd_ray.pools.watch import ActorWatch, AnswerLimit
from opd_ray.types import TeacherInfo

_ALL: tuple[Role, ...] = ("trainer", "rollout", "teacher")
# vLLM measures what is free as it starts, so its engines come first.
_LOADED: tuple[Role, ...] = ("rollout", "teacher", "trainer")


@dataclass(eq=False)
class ActorLauncher:
    """Starts actors at once; :meth:`ready` waits for them. Leaving the context ends them all.

    Raises:
        RunError: the cluster does not free the reserved resources in time.
    """

    config: Config  # settled by the placement (CPUs and threads filled in)
    placement: InitVar[Placement]  # who goes where
    _: KW_ONLY
    vocab_size: int  # real tokens that student and teacher share
    own_topk: int = 0  # k of the teacher's own top-k that a rule of the filter needs; 0: none does
    roles: Sequence[Role] = _ALL  # which of the plan's actors to start

    def __post_init__(self, placement: Placement) -> None:
        config, self.nodes = self.config, placement.cluster.nodes
        self._teachers = config.teacher_set.working if "teacher" in self.roles else {}
        self.watch = ActorWatch(config.cluster.start_timeout_s, "cluster.start_timeout_s")
        placed = [actor for actor in placement.actors if actor.role in self.roles]
        self._placed = {actor.name: actor for actor in placed}
        self._places = self._reserve(placed)
        self._makers: dict[Role, Callable[[PlacedActor], Any]] = {
            "rollout": self._places.rollout,
            "teacher": self._teacher,
            "trainer": self._places.trainer,
        }
        self._actors: dict[Role, list[tuple[str, Any]]] = {role: [] for role in _ALL}
        self._teacher_pools: dict[str, TeacherPool] = {}
        self._rollout_pool: RolloutPool | None = None
        # The first plan entry of the rollouts, which the teacher takes over to write answers.
        self._first_rollout = next(actor for actor in placed if actor.role == "rollout")
        if self._apart:
            self._start_all(self.roles)

    def _reserve(self, placed: Sequence[PlacedActor]) -> Places:
        return Places(
            self.config,
            placed,
            vocab_size=self.vocab_size,
            own_topk=self.own_topk,
            trains="trainer" in self.roles,
            in_turns=self._in_turns,
        )

    def __enter__(self) -> ActorLauncher:
        return self

    def __exit__(self, *error: object) -> None:
        self.watch.shutdown()
        self._places.release()

    def ready(self) -> dict[str, TeacherInfo]:
        """Wait until every actor has loaded its model; what every teacher says of itself, by name.

        Those that die meanwhile, or are not up in time, are started again.

        Raises:
            ActorFailure: an actor could not start, or once more often than it may.
            Interrupted: a stop was requested; there is nothing to be saved yet.
        """
        start = FirstStart(
            self.watch,
            self._actors,
            self._allowed,
            self._start_again,
            self._start_limit,
            self._asking(),
        )
        if self._apart:
            loaded = start.wait()
        else:
            # One role after another: while one loads, another takes no memory of the same GPU.
            for role in sorted(self.roles, key=_LOADED.index):
                self._start_all([role])
                loaded = start.wait()
                if self._in_turns:
                    self._fall_asleep()
        self.watch.set_stall_timeout(self.config.cluster.stall_timeout_s, "cluster.stall_timeout_s")
        return {self._placed[name].teacher: loaded[name] for name, _ in self._actors["teacher"]}

    def _asking(self) -> list[str]:
        """Teacher replicas whose answers trainers compute."""
        return [
            name
            for name, _ in self._actors["teacher"]
            if self.config.asks_trainers(self._teachers[self._placed[name].teacher].settings)
        ]

    def ask_new_trainers(self) -> None:
        """Have such replicas ask the ranks that were started last.

        Raises:
            ActorFailure: one could not.
        """
        for pool in self._asking_pools():
            for owner, handle in pool.living():
                with suppress(ActorDied):  # the pool hears of it by itself
                    rank = self._rank_of(self._placed[owner])
                    self.watch.get(handle.ask.remote(rank), owner)

    def _asking_pools(self) -> list[TeacherPool]:
        return [
            pool
            for name, pool in self._teacher_pools.items()
            if self.config.asks_trainers(self._teachers[name].settings)
        ]

    def _teacher(self, placed: PlacedActor) -> Any:
        asks = self.config.asks_trainers(self._teachers[placed.teacher].settings)
        return self._places.teacher(placed, self._rank_of(placed) if asks else None)

    def _rank_of(self, replica: PlacedActor) -> Any:
        """The trainer rank that computes the answers of a teacher's replica."""
        ranks = self._actors["trainer"]
        return ranks[replica.index % len(ranks)][1]

    def _start_all(self, roles: Sequence[Role]) -> None:
        for actor in self._placed.values():
            if actor.role in roles:
                self._start(actor)

    def _fall_asleep(self) -> None:
        """Have all that have loaded give their memory back, also one that was started again."""
        asked = [
            (handle.call.remote("sleep") if role == "trainer" else handle.sleep.remote(), name)
            for role, actors in self._actors.items()
            for name, handle in actors
            if role != "teacher" or self._teacher_sleeps(self._placed[name].teacher)
        ]
        self.watch.get_all(asked, interruptible=True)

    def _teacher_sleeps(self, teacher: str) -> bool:
        """Whether its replicas do in turns: those that ask others work whenever there is work."""
        return self._in_turns and not self._teachers[teacher].settings.traits.asks_others

    def rollout_pool(self) -> RolloutPool:
        """The rollout actors as one; now the death of one is survived."""
        pool = self._writing_pool(lambda name: self._places.rollout(self._placed[name]))
        if self._in_turns:
            pool.lie_asleep()
        return pool

    def _writing_pool(self, start: Callable[[str], Any]) -> RolloutPool:
        config = self.config
        allowed = config.rollout.max_restarts
        policy = RestartPolicy(
            what="rollout actor",
            key="rollout",
            start=start,
            max_restarts=allowed,
            no_more=f"rollout.max_restarts = {allowed} allows no further start",
            remedy=self._remedy,
            start_timeout_s=config.cluster.start_timeout_s,
            answer_timeout_s=config.rollout.answer_timeout_s,
        )
        max_in_flight = config.environment_set.concurrent(config.rollout.max_num_seqs)
        pool = RolloutPool(
            self.watch,
            self._actors["rollout"],
            max_in_flight,
            policy,
            fixed_shares=config.run.deterministic,
        )
        self._rollout_pool = pool
        return pool

    def teacher_pools(self) -> dict[str, TeacherPool]:
        """The replicas of every teacher as one, by its name; now the death of one is survived."""
        for name, teacher in self._teachers.items():
            settings = teacher.settings
            max_restarts, no_more = teacher.restarts
            policy = RestartPolicy(
                what="teacher replica",
                key=settings.key,
                start=lambda name: self._teacher(self._placed[name]),
                max_restarts=max_restarts,
                no_more=no_more,
                remedy=self._remedy,
                start_timeout_s=self.config.cluster.start_timeout_s,
                answer_timeout_s=self._answer_timeout_of(settings),
            )
            self._teacher_pools[name] = TeacherPool(
                [p for p in self._actors["teacher"] if self._placed[p[0]].teacher == name],
                batch_budget(settings, self.config.student.context_length),
                self.watch,
                policy,
                after_writing=settings.when is TeacherTiming.after_writing,
                sleeps=self._teacher_sleeps(name),
                fixed=self.config.run.deterministic,
            )
        return self._teacher_pools

    def _answer_timeout_of(self, teacher: TeacherSettings) -> float | None:
        """Who asks a server or a trainer rank waits for it as long as the keys of these say."""
        asks = teacher.traits.asks_server or self.config.asks_trainers(teacher)
        return None if asks else teacher.answer_timeout_s

    def trainer_group(self) -> TrainerGroup:
        """The trainer ranks as one."""
        group = TrainerGroup(self.watch, self._actors["trainer"], self.config.trainer)
        if self._in_turns:
            group.lie_asleep()
        return group

    @property
    def _apart(self) -> bool:
        """Whether every actor has a place of its own, so that all can load at once."""
        return self.config.cluster.placement is PlacementChoice.separate

    @property
    def _in_turns(self) -> bool:
        """Whether roles take turns; one that is alone has nobody to take turns with."""
        turns = self.config.cluster.placement is PlacementChoice.turns
        return turns and len(self.roles) > 1

    @property
    def trainer_names(self) -> list[str]:
        """Of all ranks, also of those that are gone."""
        return [name for name, placed in self._placed.items() if placed.role == "trainer"]

    def end_trainers(self) -> None:
        """End all trainer ranks, whatever they do."""
        trainers = self._actors["trainer"]
        # All at once, not when they notice: a collective may wait for a dead rank for half an hour.
        for name, _ in trainers:
            self.watch.remove(name)
        trainers.clear()
        for pool in self._asking_pools():
            pool.lose_source()  # a replica that dies now has nobody to ask

    def restart_trainers(self) -> list[tuple[str, Any]]:
        """End all trainer ranks and start them at their places; the new ones, once they are up.

        Raises:
            ActorLost: one died again, or is not up within ``cluster.start_timeout_s``.
            ActorFailure: one could not start.
            Interrupted: a stop was requested.
        """
        self._start_again(self.trainer_names[0])
        # Before anything is waited for: those that come up would ask the ranks that are gone.
        for pool in self._asking_pools():
            pool.begin_anew()
        started, cluster = self._actors["trainer"], self.config.cluster
        answers = partial(
            answers_of_ranks,
            self.watch,
            limit=self._start_limit,
            what="its start",
            interruptible=True,
        )
        # A model may load for longer than a step stands still.
        longest = max(cluster.start_timeout_s, cluster.stall_timeout_s)
        self.watch.set_stall_timeout(longest, "cluster.start_timeout_s")
        [(address, port)] = answers(started[:1], refs=[started[0][1].address.remote()])
        answers(started, refs=[handle.setup.remote(address, port) for _, handle in started])
        self.watch.set_stall_timeout(cluster.stall_timeout_s, "cluster.stall_timeout_s")
        return started

    def peak_memory(self) -> dict[str, int]:
        """Peak memory by actor, bytes; those that died are left out, but no trainer."""
        trainers = self._actors["trainer"]
        asked = [handle.peak_memory.remote() for _, handle in trainers]
        limit = answer_limit(self.config.trainer)
        found = answers_of_ranks(self.watch, trainers, asked, "peak memory", limit)
        peaks = {name: peak for (name, _), peak in zip(trainers, found, strict=True)}
        for pool in (self._rollout_pool, *self._teacher_pools.values()):
            if pool is not None:
                peaks |= pool.peak_memory()
        return peaks

    def teacher_as_rollout_pool(self) -> RolloutPool:
        """A rollout engine with the teacher's weights in place of the rollout actors, which end.

        One that dies while it comes up, or later, is started again as a rollout actor is.

        Raises:
            ActorFailure: it could not start, or died once more often than it may.
            Interrupted: a stop was requested.
        """
        assert self._rollout_pool is not None, "a run has had its rollouts written"
        self._rollout_pool.end()
        name, actors = "teacher writing answers", self._actors["rollout"]

        def start(_: str) -> Any:
            return self._places.rollout(self._first_rollout, self.config.teacher.path)

        def begin() -> None:
            handle = start(name)
            self.watch.add(name, handle)
            actors[:] = [(name, handle)]

        def again(_: str) -> None:
            self.watch.remove(name)
            begin()

        begin()
        alone: dict[Role, list[tuple[str, Any]]] = {"rollout": actors, "teacher": [], "trainer": []}
        allowed = "rollout.max_restarts", self.config.rollout.max_restarts
        FirstStart(self.watch, alone, lambda _: allowed, again, self._start_limit).wait()
        return self._writing_pool(start)

    @property
    def _start_limit(self) -> AnswerLimit:
        """How long each process may take to come up."""
        return AnswerLimit(self.config.cluster.start_timeout_s, "cluster.start_timeout_s")

    @property
    def _remedy(self) -> str:
        """What to do when none of a kind is left."""
        saved = " from the last checkpoint" if "trainer" in self.roles else ""
        return f"run the same command to go on{saved}"

    def _allowed(self, name: str) -> tuple[str, int]:
        """Which key says how often an actor may be started again, and how often."""
        placed, config = self._placed[name], self.config
        if placed.role == "teacher":
            settings = self._teachers[placed.teacher].settings
            return f"{settings.key}.max_restarts", settings.max_restarts
        if placed.role == "trainer":
            return "trainer.max_restarts", config.trainer.max_restarts
        return "rollout.max_restarts", config.rollout.max_restarts

    def _start_again(self, name: str) -> None:
        """Start one that died before anything was done; with a trainer rank all ranks."""
        placed = self._placed[name]
        if placed.role == "trainer":
            self.end_trainers()
            for rank in self.trainer_names:
                self._start(self._placed[rank])
            return
        self.watch.remove(name)
        self._start(placed)
        actors = self._actors[placed.role]
        place = next(number for number, (other, _) in enumerate(actors) if other == name)
        actors[place] = actors.pop()

    def _start(self, placed: PlacedActor) -> None:
        handle = self._makers[placed.role](placed)
        self.watch.add(placed.name, handle)
        self._actors[placed.role].append((placed.name, handle))

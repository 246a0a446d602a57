"""Rollouts to the teacher that their source names; the pools behind are real, the replicas not."""

from __future__ import annotations

import numpy as np
import pytest
from fake_replicas import collect, make_pool, rollout, sent

from actors.teacher.protocol import TeacherError
from opd_ray.pools.teachers.router import TeacherRouter

ROWS, NONE = np.array([0], np.int32), np.zeros(0, np.int32)


def make_router(**replicas: int):
    """A router over a pool for every name, each routed from a source of the same name."""
    made = {name: make_pool(count) for name, count in replicas.items()}
    pools = {name: pool for name, (pool, _, _) in made.items()}
    return TeacherRouter(pools, {name: name for name in pools}), {
        name: found for name, (_, found, _) in made.items()
    }


def submit(router: TeacherRouter, name: str, source: str, tokens: int = 10) -> None:
    one = rollout(name, tokens)
    router.pool_for(one, source).submit(one)


def collect_all(router: TeacherRouter) -> set[str]:
    found: set[str] = set()
    for pool in router.pools.values():
        pool.pump()
        while refs := sent(pool):
            found |= {score.rollout_id for score in collect(pool, refs[0])}
            pool.pump()
    return found


def test_each_source_has_its_teacher() -> None:
    router, replicas = make_router(code=1, sums=1)
    for name in "abcd":
        submit(router, name, "code" if name in "ac" else "sums")
    assert collect_all(router) == set("abcd")
    assert replicas["code"][0].held == {"a", "c"}
    assert replicas["sums"][0].held == {"b", "d"}
    assert router.take([{"a": ROWS}, {"b": ROWS, "c": NONE}], forget=True) == [
        [("teacher 0", ["a"])],
        [("teacher 0", ["b"])],
    ]
    assert replicas["code"][0].held == set()
    assert replicas["sums"][0].held == {"d"}
    router.drop(["d"])
    assert replicas["sums"][0].held == set()
    with pytest.raises(TeacherError, match="'a' is not with the teachers"):
        router.take([{"a": ROWS}])


def test_each_teacher_is_told_what_comes_to_it_and_what_does_not() -> None:
    told: list[tuple[str, object]] = []
    router, _ = make_router(code=1, sums=1)
    for name, pool in router.pools.items():
        pool.expect = lambda ids, name=name: told.append((name, ids))
        pool.skip = lambda one, name=name: told.append((name, one))
    router.expect([("a", "code"), ("b", "sums"), ("c", "code"), ("d", "nowhere")])
    router.skip("c", "code")
    router.skip("d", "nowhere")
    assert told == [("code", ["a", "c"]), ("sums", ["b"]), ("code", "c")]


def test_the_only_teacher_is_told_of_all() -> None:
    told: list[object] = []
    pool, _, _ = make_pool(1)
    pool.expect, pool.skip = told.append, told.append
    router = TeacherRouter({"teacher": pool}, {})
    router.expect([("a", "code"), ("b", "")])
    router.skip("b", "")
    assert told == [["a", "b"], "b"]


def test_a_look_leaves_everything_in_place() -> None:
    router, replicas = make_router(code=1, sums=1)
    submit(router, "a", "code")
    submit(router, "b", "sums")
    collect_all(router)
    router.take([{"a": ROWS, "b": ROWS}], forget=False)
    assert replicas["code"][0].held == {"a"}
    [refs] = router.take([{"a": ROWS, "b": ROWS}])
    assert len(refs) == 2


def test_every_teacher_has_its_account() -> None:
    router, _ = make_router(code=1, sums=2)
    for number in range(5):
        submit(router, f"r{number}", "code" if number < 2 else "sums")
    collect_all(router)
    code, sums = (router.pools[name].stats() for name in ("code", "sums"))
    assert (code.scored_tokens, code.replicas) == (20, 1)
    assert (sums.scored_tokens, sums.replicas) == (30, 2)


def test_one_teacher_needs_no_routes() -> None:
    pool, _, _ = make_pool(1)
    assert TeacherRouter({"teacher": pool}, {}).pool_for(rollout("a"), "anything") is pool


def test_misuse_is_refused() -> None:
    router, _ = make_router(code=1, sums=1)
    with pytest.raises(TeacherError, match="source 'poems' has no teacher in routes"):
        submit(router, "a", "poems")
    submit(router, "a", "code")
    with pytest.raises(TeacherError, match="'a' was submitted twice"):
        submit(router, "a", "sums")
    with pytest.raises(TeacherError, match="'b' is not with the teachers"):
        router.drop(["b"])
    pools = {name: make_pool(1)[0] for name in ("x", "y")}
    with pytest.raises(ValueError, match="no routes between them"):
        TeacherRouter(pools, {})

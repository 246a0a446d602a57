"""Which responses an evaluation asks for, and how a problem's record is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opd_ray.config.schema import EvalTask
from opd_ray.data.prompts import HeldOutTask, Prompt
from opd_ray.errors import RunError
from opd_ray.evaluation.ask import answers, eval_modes, sample_requests
from opd_ray.evaluation.figures import figures
from opd_ray.evaluation.folder import ProblemRecord
from opd_ray.models.pairs.demo import EOS, PAD, character_tokenizer
from opd_ray.tasks import get_task
from opd_ray.tasks.environment_task import EnvironmentTask
from opd_ray.types import Rollout, RolloutRequest, Sampling

TOKENIZER = character_tokenizer()

# What is written to each problem, sample by sample, and how it ends.
RESPONSES = {
    "p": [("3.", "stop"), ("12.", "stop"), ("3", "length")],
    "q": [("5:4.", "stop"), (".", "stop"), ("4.", "stop")],
}
# Whoever is ready first comes first: problems and samples mixed up.
ARRIVAL = [("q", 2), ("p", 1), ("q", 0), ("p", 2), ("p", 0), ("q", 1)]


def ids(text: str) -> np.ndarray:
    return np.array(TOKENIZER(text)["input_ids"], dtype=np.int32)


class Pool:
    """Writes RESPONSES in the order of ARRIVAL; ``after`` follows every response's text."""

    def __init__(self, after: str = "") -> None:
        self._after = after
        self.asked: list[RolloutRequest] = []

    def write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Iterator[Rollout]:
        self.asked += requests
        nothing = np.empty(0, dtype=np.float32)
        wanted = {(request.prompt_id, request.sample): request for request in requests}
        for key, sample in ARRIVAL:
            if (key, sample) in wanted:
                request = wanted[key, sample]
                text, reason = RESPONSES[key][sample]
                response = ids(text + self._after)
                mask = np.ones(len(response), np.uint8)
                yield Rollout(
                    request.rollout_id,
                    *(key, sample, request.prompt_ids, response, mask, nothing, nothing),
                    finish_reason=reason,
                    weights_version=0,
                )


class Task:
    """Right is a response of which the last number before a full stop is the answer."""

    name = "last number"

    def extract(self, response_text: str) -> str | None:
        whole, stop, _ = response_text.partition(".")
        return whole.rpartition(":")[2] or None if stop else None

    def verify(self, response_text: str, answer: str) -> bool:
        return self.extract(response_text) == answer


def held_out(name: str = "sums", **settings: Any) -> HeldOutTask:
    prompts = [Prompt(key, ids(f"{n}+2="), ids(f"{n}+2=")) for n, key in enumerate("pq", start=1)]
    return HeldOutTask(EvalTask(name=name, **settings), Task(), prompts, ["3", "4"])


def records(pool: Pool, seed: int = 0, name: str = "sums") -> dict[str, ProblemRecord]:
    (mode,) = eval_modes(held_out(name, greedy=False, samples=3), max_new_tokens=8)
    return {record.id: record for record in answers(pool, mode, TOKENIZER, seed)}  # type: ignore[arg-type]


BY_HAND = {
    "p": ProblemRecord(
        id="p",
        answer="3",
        responses=["3.", "12.", "3"],
        extracted=["3", "12", None],
        correct=[True, False, False],
        tokens=[2, 3, 1],
        finish_reasons=["stop", "stop", "length"],
    ),
    "q": ProblemRecord(
        id="q",
        answer="4",
        responses=["5:4.", ".", "4."],
        extracted=["4", None, "4"],
        correct=[True, False, True],
        tokens=[4, 1, 2],
        finish_reasons=["stop", "stop", "stop"],
    ),
}


def test_a_record_has_its_samples_in_order_whatever_comes_first() -> None:
    assert records(Pool()) == BY_HAND


def test_special_tokens_are_no_part_of_the_text() -> None:
    found = records(Pool(after=EOS + PAD))
    for key, record in found.items():
        assert record.responses == BY_HAND[key].responses
        assert record.extracted == BY_HAND[key].extracted
        assert record.correct == BY_HAND[key].correct
        assert record.tokens == [count + 2 for count in BY_HAND[key].tokens]  # they were written


def test_every_sample_of_every_problem_has_a_seed_of_its_own() -> None:
    requests = []
    for seed in (0, 1):
        for name in ("sums", "others"):
            pool = Pool()
            records(pool, seed, name)
            assert [(r.prompt_id, r.sample) for r in pool.asked] == [
                *(("p", 0), ("p", 1), ("p", 2)),
                *(("q", 0), ("q", 1), ("q", 2)),
            ]
            requests += pool.asked
    assert len({request.seed for request in requests}) == 2 * 2 * 6
    again = Pool()
    records(again)
    assert [request.seed for request in again.asked] == [request.seed for request in requests[:6]]


def test_requests_name_run_problem_and_sample() -> None:
    prompt = Prompt("p", ids("1+2="), ids("9"), source="sums.jsonl")
    first, second = sample_requests([prompt], 2, seed=0, purpose="kl")
    assert [first.rollout_id, second.rollout_id] == ["eval/kl/p/0", "eval/kl/p/1"]
    assert (second.prompt_id, second.sample, second.source) == ("p", 1, "sums.jsonl")
    assert second.prompt_ids.tolist() == prompt.student_ids.tolist()


def acting(sample: int, reason: str, figures: dict[str, float]) -> Rollout:
    """A rollout of two turns, "1" and a number, with a result between them."""
    response = ids(f"1+{3 + sample}.")
    mask = np.ones(len(response), np.uint8)
    mask[1] = 0
    turns = np.array([0, 0] + [1] * (len(response) - 2), np.int16)
    nothing = np.empty(0, np.float32)
    return Rollout(
        *(f"r{sample}", "p", sample, ids("1"), response, mask, nothing, nothing, reason, 0),
        turns=turns,
        figures={"calls": 2.0, "prompt_tokens": 9.0, "cached_tokens": 4.0, **figures},
        messages=({"role": "user", "content": "1"},),
    )


def test_environments_judge_their_rollouts_and_texts_are_of_the_last_turn() -> None:
    rollouts = [
        acting(0, "stop", {"environment/success": 1.0}),
        acting(1, "turns", {"environment/success": 0.0}),
        acting(2, "stop", {"timeout": 1.0}),  # its environment hung
    ]

    class Written:
        def write(self, *_: Any) -> Iterator[Rollout]:
            yield from rollouts

    settings = EvalTask(name="t", task="environment", greedy=False, samples=3)
    task = HeldOutTask(settings, get_task("environment"), [Prompt("p", ids("1"), ids("1"))], [""])
    (mode,) = eval_modes(task, 32)
    pool: Any = Written()
    (record,) = answers(pool, mode, TOKENIZER, 0)
    assert record.responses == ["3.", "4.", "5."]
    assert record.correct == [True, False, False]
    assert record.tokens == [3, 3, 3]
    assert record.figures[1]["environment/success"] == 0.0
    assert record.messages[0] == [{"role": "user", "content": "1"}]
    assert ProblemRecord.from_line(record.to_line()) == record
    found = figures("t", 3, [record, replace(record, id="q", correct=[True] * 3)])
    assert found["eval/t/mean@3"] == pytest.approx(2 / 3)
    assert found["eval/t/environment/success@3"] == pytest.approx(1 / 3)
    assert found["eval/t/tools/calls@3"] == 2.0
    assert found["eval/t/tools/calls@3_se"] == 0.0
    # The engine's cache is none of an environment's figures.
    assert not [name for name in found if "_tokens" in name]
    assert found["eval/t/truncated@3"] == pytest.approx(1 / 3)


def test_an_environment_that_does_not_say_success_cannot_judge() -> None:
    task = EnvironmentTask()
    with pytest.raises(RunError, match="verify says score, and no 'success'"):
        task.succeeded("r", {"score": 1.0}, hung=True)
    with pytest.raises(RunError, match="r: its environment's verify says nothing, and no 'succ"):
        task.succeeded("r", {}, hung=False)
    assert not task.succeeded("r", {}, hung=True)
    assert task.succeeded("r", {"success": 1.0}, hung=True)

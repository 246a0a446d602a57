"""The tokens of the pair that calls tools, and the conversations that it learns from."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest

from opd_ray.environments.calls import ToolCall
from opd_ray.environments.parsers.hermes import HermesParser
from opd_ray.environments.reference_table import ReferenceTable
from opd_ray.environments.turns import TurnTemplate
from opd_ray.models.pairs.greedy_look_ups import greedy_success, heldout_problems
from opd_ray.models.pairs.tools_tokenizer import VOCABULARY, tools_tokenizer
from opd_ray.models.pairs.worked_look_ups import TOOLS, Worker, call, encoded
from opd_ray.tasks.reference_table import ReferenceProblem, table_split

PROBLEM = ReferenceProblem(48213, "C", "next", 2, "price")
OPENING = (
    "<|tools|>look_up<|end|><|user|>Table 48213: start at C and follow next twice; total of price ?"
    "<|end|><|assistant|>"
)
# The chain of PROBLEM, as a worker without mistakes leads it: (turn, what the tool answers).
TURNS = [
    (
        '<tool_call>{"name": "look_up", "arguments": {"row": "C"}}</tool_call>',
        "C next H back E price 47 weight 52",
    ),
    (
        '47 next H<tool_call>{"name": "look_up", "arguments": {"row": "H"}}</tool_call>',
        "H next E back I price 74 weight 41",
    ),
    (
        '47+74=121 next E<tool_call>{"name": "look_up", "arguments": {"row": "E"}}</tool_call>',
        "E next G back G price 64 weight 84",
    ),
]
CLOSING = "121+64=185"


def written(tokenizer: Any, worker: Worker, detour: bool = False, seed: int = 0) -> Any:
    messages, learnt = worker.conversation(PROBLEM, random.Random(seed), detour)
    return tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False), messages, learnt


def test_there_are_48_tokens_and_text_comes_back_as_it_was() -> None:
    tokenizer = tools_tokenizer()
    assert len(tokenizer) == len(VOCABULARY) == 48
    text, _, _ = written(tokenizer, Worker())
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert len(tokenizer(OPENING)["input_ids"]) == 17


def test_a_call_is_six_tokens_that_the_parser_reads() -> None:
    tokenizer = tools_tokenizer()
    ids = tokenizer(TURNS[0][0] + "<|end|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<tool_call>",
        '{"name": "look_up", "arguments": {"row": "',
        "C",
        '"}}',
        "</tool_call>",
        "<|end|>",
    ]
    turn = HermesParser().parse(tokenizer.decode(ids[:-1]), ReferenceTable.tools)
    assert turn.calls == (ToolCall("look_up", {"row": "C"}),)


def test_unknown_characters_side_by_side_are_one_token() -> None:
    tokenizer = tools_tokenizer()
    ids = tokenizer("error: VE: give look_up 12")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<unk>", "E", "<unk>", "look_up", "<unk>", "1", "2",
    ]  # fmt: skip


def test_the_template_keeps_every_turn_as_it_was() -> None:
    tokenizer = tools_tokenizer()
    template = TurnTemplate(tokenizer, list(ReferenceTable.tools), {}, [tokenizer.eos_token_id])
    turns = [call("", "C"), call("47 next H", "H")]
    template.check(turns, [[{"role": "tool", "content": answer}] for _, answer in TURNS[:2]])
    question = {"role": "user", "content": PROBLEM.question}
    assert tokenizer.decode(template.opening([question])) == OPENING


def test_a_worker_without_mistakes_solves_the_problem() -> None:
    tokenizer = tools_tokenizer()
    text, messages, learnt = written(tokenizer, Worker())
    looked_up = "".join(
        f"{turn}<|end|><|tool|>{answer}<|end|><|assistant|>" for turn, answer in TURNS
    )
    assert text == OPENING + looked_up + CLOSING + "<|end|>"
    assert learnt == [True] * 4
    world = ReferenceTable()
    world.reset({"prompt": messages[:1], **vars(PROBLEM)})
    assert [world.call_tool("look_up", {"row": row}).text for row in "CHE"] == [
        answer for _, answer in TURNS
    ]
    assert world.verify(messages) == {"success": 1.0, "found": 1.0}


def test_labels_are_the_learnt_turns_with_their_ends() -> None:
    tokenizer = tools_tokenizer()
    _, messages, _ = written(tokenizer, Worker())
    ids, labels = encoded(tokenizer, messages, [True, False, True, True])
    assert len(ids) == len(labels)
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    kept = [label for label in labels if label != -100]
    assert tokenizer.decode(kept) == f"{TURNS[0][0]}<|end|>{TURNS[2][0]}<|end|>{CLOSING}<|end|>"


@pytest.mark.parametrize("seed", range(5))
def test_a_detour_is_answered_and_not_learnt(seed: int) -> None:
    _, messages, learnt = written(tools_tokenizer(), Worker(), detour=True, seed=seed)
    assert len(learnt) == 5
    assert learnt.count(False) == 1
    turns = [message for message in messages if message["role"] == "assistant"]
    rows = [turn["tool_calls"][0]["function"]["arguments"]["row"] for turn in turns[:-1]]
    assert [row for row, worth in zip(rows, learnt, strict=False) if worth] == ["C", "H", "E"]
    assert turns[-1]["content"] == CLOSING


def test_slips_go_to_the_other_column() -> None:
    _, messages, _ = written(tools_tokenizer(), Worker(slips=1.0))
    turns = [message for message in messages if message["role"] == "assistant"]
    rows = [turn["tool_calls"][0]["function"]["arguments"]["row"] for turn in turns[:-1]]
    assert rows[:2] == ["C", "E"]
    assert turns[1]["content"] == "52 back E"


def test_what_is_carried_may_be_forgotten() -> None:
    _, messages, _ = written(tools_tokenizer(), Worker(carries=False))
    turns = [message for message in messages if message["role"] == "assistant"]
    assert [turn["content"] for turn in turns] == [
        "",
        "47 next H",
        "47+74=111 next E",
        "111+64=175",
    ]


def test_batches_are_of_training_tables_and_of_sums() -> None:
    tokenizer = tools_tokenizer()
    worker = Worker()
    batches = [*islice(worker.batches(tokenizer, 8, seed=0), 2)]
    again = [*islice(worker.batches(tokenizer, 8, seed=0), 2)]
    for (ids, labels), (same, _) in zip(batches, again, strict=True):
        assert ids.equal(same)
        assert len(ids) == 8 + 2
        texts = [tokenizer.decode(row) for row in ids]
        tables = [int(text.split("Table ")[1][:5]) for text in texts[:8]]
        assert {table_split(table) for table in tables} == {"train"}
        for text in texts:
            for part in text.split("<|assistant|>"):
                terms, equals, total = part.partition("<")[0].partition("=")
                if equals:
                    first, second = map(int, terms.split("+"))
                    assert first + second == int(total.split()[0])
        learnt = [label for label in labels[8].tolist() if label != -100]
        assert set(tokenizer.decode(learnt)) <= set("0123456789")


def test_a_model_that_says_nothing_solves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that leads the conversations rightly solves all, whatever stands beside."""
    from opd_ray.models.pairs import greedy_look_ups

    tokenizer = tools_tokenizer()
    problems = heldout_problems(6)
    assert {table_split(problem.table) for problem in problems} == {"heldout"}
    by_question = {problem.question: problem for problem in problems}

    class Silent:
        def eval(self) -> None: ...

    def right(_: Any, __: Any, texts: list[str]) -> list[str]:
        said = []
        for text in texts:
            problem = by_question[text.split("<|user|>")[1].split("<|end|>")[0]]
            messages, _learnt = Worker().conversation(problem, random.Random(0))
            whole = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
            assert whole.startswith(text)
            said.append(whole[len(text) :].partition("<|end|>")[0] + "<|end|>")
        return said

    monkeypatch.setattr(greedy_look_ups, "_turns", right)
    assert greedy_success(Silent(), tokenizer, problems, batch_rows=4) == 1.0  # type: ignore[arg-type]
    monkeypatch.setattr(greedy_look_ups, "_turns", lambda _, __, texts: ["<|end|>"] * len(texts))
    assert greedy_success(Silent(), tokenizer, problems) == 0.0  # type: ignore[arg-type]

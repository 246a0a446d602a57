"""Every broken promise of an environment is named, and none where all are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizer import END, TEMPLATE, chat_tokenizer

from opd_ray.cli import main
from opd_ray.config.environment import EnvironmentSettings
from opd_ray.environments.turns import TurnTemplate
from opd_ray.preflight.contract.environment import EnvironmentReport, check_environment
from opd_ray.preflight.contract.played_rollout import Step
from opd_ray.preflight.contract.step_problems import step_problems

ROW = {"prompt": [{"role": "user", "content": "Find the red door."}], "budget": 3}


def checked(name: str, *rows: dict, call_timeout_s: float = 5.0) -> EnvironmentReport:
    settings = EnvironmentSettings(
        path=f"broken_environments:{name}", call_timeout_s=call_timeout_s
    )
    return check_environment(settings, "environment", rows or (ROW,))


@pytest.mark.parametrize("name", ["Good", "Raises", "Walks"])
def test_promises_that_are_kept(name: str) -> None:
    assert checked(name).violations == []


def test_what_is_shown_of_a_good_one() -> None:
    report = checked("Good")
    assert report.tools == ["look(at: string)", "count(by: integer)"]
    shown = [line.partition("(")[0] for line in report.read]
    assert sorted(shown) == ["count", "count", "look", "look"]
    wrong = [line for line in report.read if line.startswith("look() -> ")]
    assert wrong == [
        "look() -> error: TypeError: Good.look() missing 1 required positional argument: 'at'"
    ]
    assert report.notes == []
    assert checked("Walks").tools == ["go(where: 'north' | 'south', steps: integer = ...)"]


def test_an_exception_is_what_the_student_reads() -> None:
    report = checked("Raises")
    (first, *_) = [line for line in report.read if line.startswith("look(at")]
    assert first.partition(" -> ")[2].startswith("error: KeyError: 'no ")
    (note,) = report.notes
    assert note.startswith("look raised at each of 6 calls with random arguments by its schema")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "Constructor",
            ["the constructor raised environment.path = 'broken_environments:Constructor'"],
        ),
        ("NoList", ["tools is a str; expected a list of schemas"]),
        ("ToolsRaise", ["tools raised ConnectionError: no server ("]),
        ("NoForm", ["tools[0] is {'name': 'look'}; expected"]),
        ("Twice", ["2 tools are called 'look'"]),
        ("NoJsonSchema", ["tool 'look': its schema is no JSON: Object of type set"]),
        (
            "OddTypes",
            [
                "tool 'look': parameter 'at': type 'date' is none that JSON has",
                "tool 'count': parameter 'by': its schema says no type",
            ],
        ),
        ("Undescribed", ["tool 'look' has no description"]),
        (
            "OtherSignature",
            [
                "tool 'look': requires 'near', which is none of its parameters",
                "tool 'look': the method needs 'how', which its schema does not show",
                "tool 'count': its schema has 'twice', which the method does not take",
                "tool 'count': the method needs 'by', which its schema does not require",
            ],
        ),
        ("OtherTools", ["another instance has other tools"]),
        ("NoMessages", ["reset returned Begin.; expected a list of"]),
        ("PartsInMessages", ["reset returned the message {'role': 'user', 'content': [{"]),
        ("Surrogate", ["reset returned half a character (a surrogate) in a message"]),
        ("EndsWithAssistant", ["reset ends with a message of the assistant"]),
        ("ResetRaises", ["reset raised KeyError: 'level' ("]),
        ("ResetsOnce", ["reset gives other messages when the same instance is reset once more"]),
        ("Drawn", ["reset gives other messages on another instance with the same row"]),
        ("DrawnLater", ["equal rows, seeds and calls give something else on another instance"]),
        ("Shares", ["beside another instance it gives something else: they share state: look("]),
        (
            "Races",
            ["in another thread beside another instance it gives something else: "],
        ),
        ("NoJson", ["}, which is neither text nor JSON: Object of type set"]),
        ("NoFigures", ["verify returned 1.0; expected figures by name"]),
        (
            "OddFigures",
            [
                "verify: 'reward' is nan; expected a finite number",
                "verify: 'plan' is good; expected a finite number",
            ],
        ),
        ("NeedsCalls", ["verify raised ZeroDivisionError"]),
        ("ClosesOnce", ["close, called a second time, raised ValueError: closed already ("]),
        (
            "OddResponse",
            ["respond('Done.') returned {'role': 'user', 'content': 'Done.'}; "],
        ),
    ],
)
def test_every_broken_promise_is_named(name: str, said: list[str]) -> None:
    found = checked(name).violations
    for text in said:
        assert [line for line in found if text in line], (text, found)
    if name != "OtherSignature":
        # Some break more than one thing by what they are; none is named dozens of times.
        assert len(found) <= max(3, len(said))


def test_the_users_own_line_is_named() -> None:
    (text, *_) = checked("ResetRaises").violations
    assert "broken_environments.py, line" in text
    assert "in reset)" in text


def test_shared_state_is_found_without_threads() -> None:
    assert [line[:24] for line in checked("Shares").violations] == ["beside another instance "]


def test_what_is_worth_a_note() -> None:
    notes = checked("OtherSignature").notes
    assert "tool 'look': the method takes 'when', which its schema does not show" in notes
    assert [n for n in checked("Long").notes if n.startswith("look returns up to 100,000 char")]
    halves = checked("Surrogate")
    assert not [n for n in halves.violations if "look" in n]


def test_values_that_cannot_be_shown_are_named() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise ZeroDivisionError("no words")

    def said(step: Step) -> list[str]:
        return [text for _, text in step_problems(step, 5.0)]

    assert said(Step("verify", "verify", {"reward": 10**400})) == [
        f"verify: 'reward' is 1{'0' * 119}... (401 characters); expected a finite number"
    ]
    assert said(Step("verify", "verify", {"reward": 10**9000})) == [
        "verify: 'reward' is a int whose repr raises ValueError; expected a finite number"
    ]
    unreadable = Step("look()", "call_tool", Mute(), error=TypeError("x"), unreadable=True)
    assert said(unreadable) == [
        "look() returned a Mute whose repr raises ZeroDivisionError, which is neither text nor "
        "JSON: x"
    ]
    assert Step("verify", "verify", {"reward": Mute()}).outcome == (
        "a dict whose repr raises ZeroDivisionError",
        type(None),
    )


def test_a_tool_that_ends_the_process_does_not() -> None:
    report = checked("Exits")
    assert report.violations == []
    assert [line for line in report.read if "error: RuntimeError: SystemExit: 3" in line]


@pytest.mark.parametrize(("name", "tool"), [("Slow", "look"), ("SlowCoroutine", "count")])
def test_calls_that_take_too_long(name: str, tool: str) -> None:
    (text,) = checked(name, call_timeout_s=0.2).violations
    assert text.startswith(f"{tool}(")
    assert text.endswith("took longer than call_timeout_s = 0.2 s")


def test_a_parser_reads_what_the_template_writes() -> None:
    def said(parser: str, template: str = TEMPLATE) -> list[str]:
        return parsed(parser, chat_tokenizer(template))

    assert said("hermes") == []
    assert said("llama3_json") == []  # it reads JSON wherever it stands, as vLLM's does
    (text,) = said("qwen3_coder")
    assert text.startswith("parser 'qwen3_coder' does not read the call that the student's chat")
    assert "<tool_call>" in text
    assert "it makes [BadCall(" in text
    (text,) = said("hermes", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    assert text.startswith(
        "the student's chat template writes no call of 'look': it knows no tools"
    )


def parsed(parser: str, tokenizer: Any, **options: Any) -> list[str]:
    """What is said of a parser and what the student's template writes."""
    settings = EnvironmentSettings(path="broken_environments:Good", parser=parser)
    template = TurnTemplate(tokenizer, (), options, [tokenizer.convert_tokens_to_ids(END)])
    return check_environment(settings, "environment", (ROW,), template).violations


def test_a_turn_may_end_with_another_token_than_texts_do() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert parsed("hermes", tokenizer) == []


def test_the_template_is_given_the_options_of_a_run() -> None:
    # Calls are written as the option says.
    tokenizer = chat_tokenizer(TEMPLATE.replace("<tool_call>", "{{ opens }}"))
    assert parsed("hermes", tokenizer, opens="<tool_call>") == []
    assert len(parsed("hermes", tokenizer, opens="<call>")) == 1


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["check-environment", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "--path", "broken_environments:Good")
    assert code == 0
    assert "  look(at: string)\n" in out
    assert out.endswith("the environment broken_environments:Good can be used\n")

    code, out, _ = run(capsys, "--path", "broken_environments:ResetRaises", "--row", '{"a": 1}')
    assert code == 1
    assert "- reset raised KeyError: 'level'" in out
    assert out.endswith("1 violations of what a run expects of an environment\n")

    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"level": [], "prompt": "Go."}) for _ in range(3)))
    code, out, _ = run(capsys, "--path", "broken_environments:ResetRaises", "--rows", str(rows))
    assert code == 1
    assert "- reset returned []; expected a list" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "environment.path = null: give --path MODULE:CLASS"),
        (["--path", "broken_environments:Missing"], "has no 'Missing'"),
        (["--path", "broken_environments:Good", "--parser", "hermse"], "= 'hermse' is unknown"),
        (["--path", "broken_environments:Good", "--row", "{"], "--row '{': JSONDecodeError"),
        (["--path", "broken_environments:Good", "--row", "[]"], "give one JSON object with"),
        (["--path", "broken_environments:Good", "--row", '{"prompt": 3}'], "prompt must be text"),
        (["--path", "broken_environments:Good", "--rows", "none.jsonl"], "--rows none.jsonl: File"),
        (["--path", "broken_environments:Good", "--source", "a"], "--source a: it names an"),
        (["--path", "broken_environments:Good", "environment.max_turns=0"], "must be at least 1"),
    ],
)
def test_what_the_command_refuses(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_rows_of_a_configs_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1+1=", "level": []}\n')
    data = ["--config", "demo", "data.kind=jsonl", f"data.path={file}", "data.fields.answer=null"]
    own = "environments={prompts.jsonl: {path: 'broken_environments:ResetRaises'}}"
    code, out, _ = run(capsys, *data, "--source", "prompts.jsonl", own)
    assert code == 1
    assert "- reset returned []; expected a list" in out
    assert "- the student's tokenizer has no chat template" in out
    main_one = "environment.path=broken_environments:Good"
    code, _, err = run(capsys, *data, "--source", "other", own, main_one)
    assert code == 2
    assert "--source other: no row of data has it; there is 'prompts.jsonl'" in err

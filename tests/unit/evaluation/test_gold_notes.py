"""What ``opd-ray eval`` says of gold answers before it starts anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opd_ray.config.load import load_config
from opd_ray.data.rows import DataError
from opd_ray.evaluation import run


def evaluate(folder: Path, *answers: str | None) -> None:
    rows = [{"prompt": f"{n}+1=", "answer": answer} for n, answer in enumerate(answers)]
    file = folder / "gold.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"{{kind: jsonl, path: {file}, max_prompt_tokens: 32}}"
    task = f"eval.tasks=[{{name: sums, task: chain_sum, data: {data}}}]"
    run.evaluate(load_config("demo", [task]), folder / str(answers))


class Asked(Exception):
    """Rollout actors would start now."""


def test_notes_come_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask_all(*_: Any, **__: Any) -> None:
        raise Asked

    monkeypatch.setattr(run, "_ask_all", ask_all)
    with pytest.raises(Asked):
        evaluate(tmp_path, "1", "many")
    said = capsys.readouterr().err
    assert "opd-ray: eval task 'sums': 1 of its 2 gold answers are none that a response" in said
    assert "gold.jsonl, line 2, no whole number: 'many'" in said
    with pytest.raises(Asked):
        evaluate(tmp_path, "1", "2")
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match="2 of its 2 gold answers"):
        evaluate(tmp_path, "few", "many")
    with pytest.raises(DataError, match=r"1 of 2 problems have no answer .*gold\.jsonl, line 1"):
        evaluate(tmp_path, None, "2")

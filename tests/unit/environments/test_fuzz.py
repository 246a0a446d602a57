"""Random students, random tools: tests/unit/tool_fuzz.py says what must hold, and plays longer."""

from __future__ import annotations

import pytest
from chat_tokenizer import chat_tokenizer
from tool_fuzz import Fuzz


def test_whatever_students_and_tools_do_there_is_no_traceback_and_no_wrong_mask(
    capfd: pytest.CaptureFixture[str],
) -> None:
    fuzz = Fuzz(seed=1, tokenizer=chat_tokenizer(), hangs=0.002)
    fuzz.run(500)
    assert fuzz.complaints == []
    assert capfd.readouterr().err == ""
    # It has been where it was to go.
    assert (
        min(fuzz.counts[name] for name in ("stop", "length", "context", "turns", "tool_limit")) > 0
    )
    assert min(fuzz.counts[name] for name in ("parse_error", "unknown", "failed", "cut")) > 20

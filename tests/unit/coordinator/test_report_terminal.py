"""The closing report, whoever reads it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from opd_ray.coordinator.report import closing_table, print_report


def test_the_report_is_written_although_nobody_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich would end the process there."""

    class Left(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Left())
    path = tmp_path / "report.txt"
    print_report(closing_table([], {}, {"trainer-0": 1 << 30}), None, {"plots": tmp_path}, path)
    text = path.read_text(encoding="utf-8")
    assert "peak memory, trainer-0" in text
    assert text.splitlines()[-1] == f"this report: {path}"

"""One thing the doctor looked at, and the report of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """What a finding means for a run."""

    ok = "ok"
    note = "note"  # worth knowing, stops nothing
    fail = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One check's outcome; a failure says what to do."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""

    def render(self) -> str:
        """One line, its remedy on the next."""
        line = f"  {self.verdict:<4}  {self.name}: {self.detail}".replace("\n", "\n        ")
        return f"{line}\n        -> {self.remedy}" if self.remedy else line


def passed(name: str, detail: str) -> Finding:
    """A check that found nothing wrong."""
    return Finding(name, Verdict.ok, detail)


def noted(name: str, detail: str, remedy: str = "") -> Finding:
    """Something that may surprise, but lets a run start."""
    return Finding(name, Verdict.note, detail, remedy)


def failed(name: str, detail: str, remedy: str = "") -> Finding:
    """Something with which no run can work."""
    return Finding(name, Verdict.fail, detail, remedy)


@dataclass
class Report:
    """Findings by section, with tables between them."""

    sections: list[tuple[str, list[Finding], str]] = field(default_factory=list)

    def add(self, title: str, findings: Iterable[Finding], table: str = "") -> None:
        """One more section."""
        self.sections.append((title, list(findings), table))

    @property
    def findings(self) -> list[Finding]:
        return [finding for _, findings, _ in self.sections for finding in findings]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.verdict is not Verdict.fail for finding in self.findings)

    def render(self) -> str:
        """The whole report as text."""
        lines = []
        for title, findings, table in self.sections:
            lines.append(title)
            lines += [finding.render() for finding in findings]
            lines += [f"  {line}" for line in table.splitlines()]
            lines.append("")
        failures = sum(finding.verdict is Verdict.fail for finding in self.findings)
        lines.append("all checks passed" if self.passed else f"{failures} of the checks failed")
        return "\n".join(lines)

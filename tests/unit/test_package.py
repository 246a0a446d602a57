"""What the package says of itself where only its own words are read: on a package index."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(!?)\[[^\[\]]*\]\(([^)\s]+)\)")


def packaged(monkeypatch: pytest.MonkeyPatch, url: str) -> dict[str, Any]:
    """What setup() is called with where the repository is at ``url``."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.setenv("OPD_RAY_URL", url)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_links_and_pictures_of_the_readme_lead_into_the_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = packaged(monkeypatch, "https://example.org/opd-ray/")
    place = f"https://example.org/opd-ray/%s/v{given['version']}/"
    own = [
        (bool(picture), target)
        for picture, target in LINK.findall((ROOT / "README.md").read_text())
        if "://" not in target
    ]
    assert [target for picture, target in own if picture]
    shown = [(bool(p), target) for p, target in LINK.findall(given["long_description"])]
    assert shown == [
        (picture, place % ("raw" if picture else "blob") + target) for picture, target in own
    ]
    assert given["project_urls"] == {"Repository": "https://example.org/opd-ray"}


def test_without_an_address_there_are_words_in_place_of_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = packaged(monkeypatch, "")
    assert [to for _, to in LINK.findall(given["long_description"]) if "://" not in to] == []
    assert "| to begin, step by step | tutorial |" in given["long_description"]
    assert given["project_urls"] == {}


def test_every_copy_of_the_version_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import opd_ray

    given = packaged(monkeypatch, "")
    assert given["version"] == opd_ray.__version__
    assert f"version: {opd_ray.__version__}\n" in (ROOT / "CITATION.cff").read_text()

"""Links of the docs that leave their folder: checked, and kept as they are.

A page says ``../opd_ray/config/schema.py``, which holds in the repository and, as ``site/`` lies
beside ``docs/``, in the site that is opened from there. MkDocs knows the files of its own folder
alone and would call each of them broken.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.hooks.docs_links")
# [text](../target) or [text](../target#part)
_LEAVING = re.compile(r"\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<to>\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links to files outside of docs/ by plain anchors."""
    source = page.file.src_uri

    def replaced(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), found["to"]))
        if target.startswith("docs/") or target == "docs":
            return found[0]
        if not (ROOT / target.partition("#")[0]).exists():
            LOG.warning("%s: %s: no such file in the repository", source, found["to"])
        text = re.sub(r"`([^`]*)`", r"<code>\1</code>", found["text"])
        return f'<a href="{found["to"]}">{text}</a>'

    return _LEAVING.sub(replaced, markdown)

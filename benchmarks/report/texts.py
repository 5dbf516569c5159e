"""The words of the page, from texts.md beside this file."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any


@cache
def texts() -> dict[str, str]:
    """Paragraphs by their titles, each on one line."""
    words = (Path(__file__).parent / "texts.md").read_text("utf-8")
    _, *parts = re.split(r"^## (.*)$", words, flags=re.MULTILINE)
    paragraphs = (re.sub("[ \n]+", " ", part).strip() for part in parts[1::2])
    return dict(zip(parts[::2], paragraphs, strict=True))


def text(title: str, /, **filled: Any) -> str:
    return texts()[title].format(**filled)


def section(rows: Any, title: str, lines: Iterable[str], /, **filled: Any) -> list[str]:
    """A section, where there is something to show."""
    return [f"### {title}", "", text(title, **filled), "", *lines] if rows else []

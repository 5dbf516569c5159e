"""Pages of the how-to guides: blocks build on one another, and hold assertions of their own."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
NEEDS = {
    "eof.md": ("dask.array", "xarray"),
    "operators.md": ("dask.array", "h5py", "scipy"),
    "pod.md": ("scipy",),
    "preconditioner.md": ("scipy",),
}
NUMBER = r"\d+(?:\.\d+)?(?:e[-+]\d+)?"


@pytest.mark.parametrize("page", NEEDS)
def test_every_block_runs_and_prints_what_the_page_shows(page, tmp_path, monkeypatch, capsys):
    for library in NEEDS[page]:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    text = (PAGES / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    space, printed = {}, ""
    for language, body in blocks:
        if language == "python":
            exec(compile(body, page, "exec"), space)
            printed = capsys.readouterr().out
        else:
            assert re.sub(NUMBER, "#", printed) == re.sub(NUMBER, "#", body)
            shown, now = (list(map(float, re.findall(NUMBER, X))) for X in (body, printed))
            assert now == pytest.approx(shown, rel=0.05)

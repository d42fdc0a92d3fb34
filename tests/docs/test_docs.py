"""README.md and docs/: their Python blocks run, their links lead somewhere, the README is short and names every
command."""

import re
from pathlib import Path

import pytest

from camguide_fast import losses, ops

ROOT = Path(__file__).resolve().parents[2]
README, OPS = ROOT / "README.md", ROOT / "docs/ops.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LONGEST_README = 120  # lines

FENCE = re.compile(r"^(`{3,})(\w*)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PROGRAM = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)


def parts(text: str) -> tuple[str, list[tuple[str, int, str]]]:
    """(what is outside of fenced blocks, [(language, number of its first line, what is inside) of each])."""
    prose, blocks, fence = [], [], ""
    for number, line in enumerate(text.splitlines(), 1):
        opens = FENCE.match(line)
        if not fence and opens:
            fence, language = opens.groups()
            start, inside = number + 1, []
        elif fence and line.rstrip() == fence:
            blocks.append((language, start, "\n".join(inside) + "\n"))
            fence = ""
        else:
            (inside if fence else prose).append(line)
    assert not fence, f"the block from line {start} on has no end"
    return "\n".join(prose), blocks


def python_blocks(text: str) -> list[tuple[int, str]]:
    """(number of its first line, code) of each."""
    return [(line, code) for language, line, code in parts(text)[1] if language == "python"]


def links(text: str) -> list[str]:
    """Targets of all links and pictures."""
    return LINK.findall(re.sub(r"`[^`\n]*`", "", parts(text)[0]))


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ +(.+?) *$", parts(text)[0], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, root: Path) -> list[str]:
    """Those that lead nowhere inside `root`. Other hosts are not asked."""
    broken = []
    for link in links(page.read_text()):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        found = target.is_relative_to(root) and target.exists()
        if not found or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    return broken


def commands() -> list[str]:
    """Modules on top of the package that are programs: `python -m camguide_fast.<name>`."""
    return sorted(path.stem for path in (ROOT / "camguide_fast").glob("*.py") if PROGRAM.search(path.read_text()))


BLOCKS = [(page, line, code) for page in (README, OPS) for line, code in python_blocks(page.read_text())]


@pytest.mark.parametrize("page, line, code", BLOCKS, ids=[f"{page.name}:{line}" for page, line, _ in BLOCKS])
def test_block_runs(page, line, code):
    # Empty lines before it, so that a traceback names the line in the page.
    exec(compile("\n" * (line - 1) + code, page, "exec"), {"__name__": page.stem})


def test_both_pages_have_blocks():
    assert {page for page, _, _ in BLOCKS} == {README, OPS}


def test_ops_page_names_every_op_and_loss():
    own = {"build_error", "load_native", "scale_gradient_"}  # nothing that users call
    offered = {name for name, value in vars(ops).items() if callable(value)} - own
    offered |= {name for name, value in vars(losses).items() if getattr(value, "__module__", "") == losses.__name__}
    assert {"guided_filter", "TargetNLL"} <= offered
    text = OPS.read_text()
    missing = {name for name in offered if not re.search(rf"\b{name}\b", text)}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert not broken_links(page, ROOT)


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= LONGEST_README


def test_readme_leads_to_every_page():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(README.read_text())}
    assert linked >= {*PAGES} - {README}


def test_readme_names_every_command():
    text, found = README.read_text(), commands()
    assert "train" in found
    missing = [name for name in found if not re.search(rf"-m camguide_fast\.{name}\b", text)]
    assert not missing


def test_this_file_sees_blocks_and_links(tmp_path):
    """Guards the guards: what they must find, and not find, in a page that is known."""
    (tmp_path / "outside.md").touch()
    root = tmp_path / "docs"
    root.mkdir()
    page = root / "page.md"
    page.write_text(
        "# A page: `x`, y\n\n```sh\n[no](link)\n# no heading\n```\n\n```python\nx = 1\n\ny = x\n```\n\n"
        "[a](#a-page-x-y) [b](gone.md) [c](page.md#no-heading) `[d](code)` "
        "![e](https://a.org/e.png) [f](../outside.md)\n"
    )
    assert python_blocks(page.read_text()) == [(9, "x = 1\n\ny = x\n")]
    assert anchors(page.read_text()) == {"a-page-x-y"}
    assert "link" not in links(page.read_text()) and "code" not in links(page.read_text())
    assert broken_links(page, root) == ["gone.md", "page.md#no-heading", "../outside.md"]
    with pytest.raises(AssertionError, match="line 2 on has no end"):
        parts("```python\nx = 1\n")

"""Lines of Markdown, and these as one page of HTML that needs no other file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_KINDS = {"png": "png", "jpg": "jpeg"}
_STYLE = """
:root { color-scheme: light dark; --ink: #26262a; --paper: #faf9f6; --pale: #807f7c; --line: #e2e0da; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceae4; --paper: #1b1b1e; --pale: #98968f; --line: #38383c; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 2rem; letter-spacing: -0.02em; } h2 { margin-top: 3rem; } h3 { margin-top: 2rem; font-size: 1.05rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.88rem; }
th, td { text-align: left; white-space: nowrap; padding: 0.35rem 0.9rem 0.35rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--pale); font-weight: 500; } em { color: var(--pale); font-style: normal; font-size: 0.92em; }
td { vertical-align: top; line-height: 1.35; }
img { max-width: 100%; border-radius: 6px; } p { max-width: 60rem; }
"""


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown, line by line."""
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in body)


def plain(text: str) -> str:
    """Any text as one line of Markdown that reads as it is."""
    return re.sub(r"([\\`*_\[\]<>&])", r"\\\1", " ".join(text.split()))


def html_page(text: str, folder: Path, title: str) -> str:
    """Markdown as one page of HTML, the pictures that it shows from the folder inside."""
    from markdown_it import MarkdownIt  # an extra

    body = MarkdownIt("commonmark").enable("table").render(text)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")

    def inside(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/{_KINDS[match[2]]};base64,{data}"'

    body = re.sub(r'src="([^":]+\.(png|jpg))"', inside, body)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f"<!doctype html><html lang='en'><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n"

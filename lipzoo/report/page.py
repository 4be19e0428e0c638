"""Pages of one file: no scripts, nothing from elsewhere, in light and dark, on screens of any width."""

import html
from collections.abc import Mapping, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #5b6673; --line: #d9dee5; --back: #fff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa5b1; --line: #343c46; --back: #14181d; --card: #1c2128; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--back); }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h1, h2, p { overflow-wrap: anywhere; }
p.note { color: var(--soft); font-size: .9rem; max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; padding: .6rem; background: var(--card); border-radius: .5rem; }
figure svg, figure img { width: 100%; height: auto; display: block; color: var(--ink); }
pre { overflow-x: auto; background: var(--card); padding: .7rem; border-radius: .5rem; font-size: .85rem; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """The text of a page."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def code(text: str) -> str:
    return f"<pre><code>{html.escape(text)}</code></pre>"


def table(columns: Mapping[str, Sequence[str]], caption: str = "") -> str:
    """A table; the first column is what the rows are called."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in zip(*columns.values(), strict=True)
    )
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )

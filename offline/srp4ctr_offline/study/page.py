"""The report as one HTML file that needs nothing beside it."""

import base64
import html
from pathlib import Path

from markdown_it import MarkdownIt

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { border-bottom: 1px solid #ccc; padding-bottom: .2rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; background: #fff; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap; text-align: left; }
th { background: #f4f4f4; } td:first-child { white-space: normal; min-width: 7rem; }
code { background: #f4f4f4; padding: 0 .2rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { font-size: 15px; padding: .7rem; } h1 { font-size: 1.5rem; } }
"""


def render_page(markdown: str, folder: Path, title: str) -> str:
    """The page of a Markdown text whose pictures are below `folder`; they become part of it."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                picture = (folder / str(child.attrGet("src"))).read_bytes()
                child.attrSet("src", "data:image/png;base64," + base64.b64encode(picture).decode())
    body = parser.renderer.render(tokens, parser.options, {})
    # On a phone a table scrolls, and not the page.
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )

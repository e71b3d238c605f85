"""A self-contained HTML page of title, paragraphs, tables and figures."""

import base64
import html
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .35rem .9rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; } .note { color: #555; }
"""


class Report:
    """Collects the parts of a page, and writes it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def add_text(self, text: str, heading: str | None = None) -> None:
        """Add a paragraph of plain text, under a heading if there is one."""
        if heading:
            self._parts.append(f"<h2>{html.escape(heading)}</h2>")
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def add_table(self, header: list[str], rows: list[list[str]]) -> None:
        """Add a table."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def add_figure(self, path: Path, caption: str) -> None:
        """Add a PNG file, stored inside the page, with a caption."""
        data = base64.b64encode(path.read_bytes()).decode()
        self._parts.append(
            f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            f'<figcaption class="note">{html.escape(caption)}</figcaption></figure>'
        )

    def write(self, path: Path) -> None:
        """Write the page."""
        title = html.escape(self.title)
        path.write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{STYLE}</style></head><body><h1>{title}</h1>{''.join(self._parts)}</body></html>\n"
        )

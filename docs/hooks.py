"""Pages of the site that lie outside docs/: README.md is its front page.

Links are written as they hold in the repository, and changed to what holds in the site.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages from above."""
    for name, page in PAGES.items():
        if (path := ROOT / name).is_file():
            text = path.read_text(encoding="utf-8").replace("](docs/", "](")
            for other, there in PAGES.items():
                text = text.replace(f"]({other}", f"]({there}")
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Links of the pages of docs/ to those above."""
    for name, there in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({there}")
    return markdown

"""Hooks for mkdocs: files outside docs/ that pages link to, and references in docstrings.

Pages link to ``../results/NAME.json``, which works on disk and on a code host. The site contains
copies of these files below its own root, and its pages link to the copies.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINKED = {"results": "*.json", "configs": "*.yaml", "tests": "test_*.py", "rpe_d2": "*.py"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the records, the configurations, the tests and the code to the files of the site."""
    root = Path(config.config_file_path).parent
    for folder, pattern in _LINKED.items():
        for path in sorted((root / folder).rglob(pattern)):
            name = path.relative_to(root).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files beside docs/ into links inside the site."""
    for folder in _LINKED:
        markdown = markdown.replace(f"](../{folder}/", f"]({folder}/")
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Removes Sphinx roles before names, and sets where code and table cells may break."""
    html = re.sub(r":(?:attr|class|func|meth|mod):(?=<code>)", "", html)
    html = re.sub(r"<code\b.*?</code>", lambda code: _keep_flags(code[0]), html, flags=re.DOTALL)
    return re.sub(r"<td.*?</td>", lambda cell: _set_breaks(cell[0]), html, flags=re.DOTALL)


def _keep_flags(code: str) -> str:
    """Keeps flags such as ``--input`` on one line. Browsers break lines after hyphens."""
    return re.sub(r"(?<=[\s>])--[a-z][a-z-]*", r'<span class="flag">\g<0></span>', code)


def _set_breaks(cell: str) -> str:
    """Lets long names break after "." and "_", and keeps ranges of numbers on one line."""

    def in_text(match: re.Match) -> str:
        text = re.sub(r"(?<=\d)–(?=\d)", "\u2060–\u2060", match[1])
        return f">{re.sub(r'[A-Za-z][A-Za-z0-9_.:/]{20,}', in_name, text)}<"

    def in_name(match: re.Match) -> str:
        return re.sub(r"([._:/]+)(?=[A-Za-z])", r"\1<wbr>", match[0])

    return re.sub(r">([^<]+)<", in_text, cell)

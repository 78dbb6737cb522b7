"""The documentation site builds without warnings, and its links lead somewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.release
ROOT = Path(__file__).resolve().parents[2]


class _Page(HTMLParser):
    """The links, the anchors and the resources of an HTML page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors, self.resources = [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"):
            self.anchors.add(attrs["id"])
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag in ("img", "script") and attrs.get("src"):
            self.resources.append(attrs["src"])
        if tag == "link" and attrs.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.resources.append(attrs["href"])


@pytest.fixture(scope="module")
def pages(site):
    return {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_of_the_documentation_is_built(site):
    sources = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert len(sources) > 15
    assert sources <= {path.stem for path in site.glob("*.html")}


def test_internal_links_lead_to_files_and_anchors(site, pages):
    count = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            target = target.resolve()
            target = target / "index.html" if target.is_dir() else target
            assert target.is_relative_to(site.resolve()), f"{path.name}: {link}"
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                anchors = pages[site / target.relative_to(site.resolve())].anchors
                fragment = unquote(parts.fragment)
                assert fragment.startswith("__") or fragment in anchors, f"{path.name}: {link}"
            count += 1
    assert count > 200


def test_external_links_are_well_formed(pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme == "https" and "." in parts.netloc, f"{path.name}: {link}"


def test_the_site_loads_nothing_from_the_network(pages, site):
    for path, page in pages.items():
        for resource in page.resources:
            assert not urlsplit(resource).netloc, f"{path.name}: {resource}"
            assert (path.parent / urlsplit(resource).path).exists(), f"{path.name}: {resource}"


def test_links_of_the_readme_lead_to_files_and_headings():
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []


def test_commands_of_the_documentation_name_configurations_that_exist():
    names = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text()
        written = re.findall(r"configuration(?: is|,) `([\w/]+\.yaml)`", text)  # by the reader
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            found = re.findall(r"(?<!\S)([\w/]+\.yaml)", block)
            names += [name for name in found if name not in written]
    configs = [name for name in names if not name.startswith("output/")]
    assert len(configs) > 10
    assert [name for name in configs if not (ROOT / "configs" / name).exists()] == []

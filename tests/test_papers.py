"""docs/papers.md is complete, its published figures are the sources', and ours are recorded."""

import json
import re
from typing import Iterator, Set

import pytest

from dev.papers.claims import CLAIMS, NOT_MEASURED, VERDICTS
from dev.papers.components import COMPONENTS, registered_components
from dev.papers.configurations import UNMEASURED, purpose
from dev.papers.entries import CODE, DATA, MISSING, Figure, Measured, Row, Table, measured
from dev.papers.tables import TABLES, paper_table
from rpe_d2.engine.setup import read_config
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"
PAGE = ROOT / "docs" / "papers.md"
LINES = 5  # of a source in which the figures of a row stand together


def leaves(node: dict) -> Iterator[object]:
    for value in node.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


def read(name: str, changes: str) -> Set[str]:
    """Returns the texts in a configuration with overrides."""
    cfg = read_config(str(CONFIGS / name), changes.split())
    return {value for value in leaves(cfg) if isinstance(value, str)}


class TestComponents:
    def test_all_components_of_the_registries_are_on_the_page(self):
        names = [name for _, name, _ in registered_components()]
        assert sorted(names) == sorted(COMPONENTS) and len(names) > 20
        text = PAGE.read_text()
        files = re.findall(r"^\| \[`(\w+)`\]\(\.\./(rpe_d2/[\w/]+\.py)\) \|", text, re.MULTILINE)
        assert sorted(name for name, _ in files) == sorted(names)
        for name, file in files:
            assert re.search(rf"^(?:class|def) {name}\b", (ROOT / file).read_text(), re.MULTILINE)

    @pytest.mark.parametrize("name", COMPONENTS)
    def test_its_test_and_its_configuration_name_it(self, name):
        entry = COMPONENTS[name]
        assert re.search(rf"\b{name}\b", (ROOT / "tests" / entry.test).read_text())
        assert name in read(entry.config, entry.changes)


class TestConfigurations:
    def test_all_configurations_of_papers_are_on_the_page(self):
        text, names = PAGE.read_text(), [path.name for path in (CONFIGS / "paper").glob("*.yaml")]
        assert len(names) > 8
        assert [name for name in names if f"](../configs/paper/{name})" not in text] == []

    def test_what_is_missing_is_named_for_configurations_that_exist(self):
        for name, missing in UNMEASURED.items():
            assert (CONFIGS / "paper" / name).is_file() and set(missing) <= set(MISSING), name

    def test_configurations_of_rows_exist_and_have_their_keys(self):
        for row in (row for table in TABLES for row in table.rows if row.config):
            assert (CONFIGS / row.config).is_file(), row.name
            if row.changes:
                read(row.config, row.changes)

    def test_the_purpose_is_the_first_sentence(self, tmp_path):
        path = tmp_path / "a.yaml"
        path.write_text(
            "# A network (Liu et al., NIPS\n# 2017): it refines. Name the data:\nVERSION: 2"
        )
        assert purpose(path) == "A network (Liu et al., NIPS 2017): it refines"


class TestPublishedFigures:
    @pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
    def test_they_stand_together_in_the_source(self, table):
        path = SHARED / table.source
        if not path.is_file():
            pytest.skip(f"no sources: {path} is absent")
        lines = [numbers(line) for line in path.read_text().splitlines()]
        windows = [set().union(*lines[i : i + LINES]) for i in range(len(lines))]
        groups = [row.published for row in table.rows]
        if table.by_column:
            windows, groups = lines, list(
                zip(*(row.published for row in table.rows if row.published))
            )
        for group in groups:
            figures = {float(figure) for figure in group if figure != "–"}
            assert any(
                all(forms(figure) & window for figure in figures) for window in windows
            ), f"{table.name}: {group}"

    def test_a_row_has_a_figure_for_each_column(self):
        for table in TABLES:
            for row in table.rows:
                assert len(row.published) in (0, len(table.columns)), f"{table.name}: {row.name}"
                if isinstance(row.ours, Measured):
                    own = table.ours or table.columns
                    assert len(row.ours.figures) == len(own), f"{table.name}: {row.name}"
                else:
                    assert row.ours in MISSING, f"{table.name}: {row.name}"


def numbers(line: str) -> Set[float]:
    return {round(float(number), 6) for number in re.findall(r"\d*\.\d+|\d+", line)}


def forms(figure: float) -> Set[float]:
    """Returns a figure as it may be written: as it is, a percentage as a fraction, s as ms."""
    return {round(figure, 6), round(figure / 100, 6), round(figure * 1000, 6)}


class TestClaims:
    def test_a_verdict_has_evidence(self):
        for claim in CLAIMS:
            assert claim.verdict in VERDICTS, claim.text
            assert (claim.verdict == NOT_MEASURED) == (claim.evidence == ""), claim.text

    def test_the_evidence_exists(self):
        for claim in (claim for claim in CLAIMS if claim.evidence):
            name, _, section = claim.evidence.partition("#")
            path = ROOT / "docs" / name
            assert path.is_file(), claim.evidence
            if section:
                headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
                assert section in [anchor(heading) for heading in headings], claim.evidence

    def test_claims_have_no_figures(self):
        for claim in CLAIMS:
            assert not re.search(r"\d\.\d|%", claim.text + claim.limits), claim.text


def anchor(heading: str) -> str:
    """Returns the anchor of a heading, as Markdown's table of contents makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


class TestOwnFigures:
    def test_only_tables_have_figures(self):
        """The tables are made of the records, which tests/test_docs_tables.py checks."""
        text = re.sub(
            r"<!-- ([^:]+): generated.*?<!-- end of \1 -->", "", PAGE.read_text(), flags=re.S
        )
        assert "## Components" in text and "| component |" not in text
        assert re.findall(r"\d\.\d|\d %", text) == []

    def test_they_are_means_over_the_records(self, tmp_path):
        def write(name, seed, **scores):
            record = {
                "config": "configs/paper/rpe_digits.yaml",
                "command": "tools/train_net.py --config-file x",
                "metrics": {"segm": scores},
                "iterations": 5,
                "cpu_seconds": 600,
                "training_cpu_seconds": 60,
                "seed": seed,
            }
            (tmp_path / f"{name}_{seed}.json").write_text(json.dumps(record))

        write("new", 1, AP=40.0, AR=50.0)
        write("new", 2, AP=42.0, AR=50.0)
        write("old", 1, AP=9.0, AR=None)
        paths = "metrics/segm/AP", "metrics/segm/AR"
        rows = (
            Row("a", ("1.0", "–"), measured("new_*.json", *paths, data="x")),
            Row("b", (), measured(("newer_*.json", "old_*.json"), *paths, data="y", factor=0.1)),
            Row("c", ("3.0", "4.0"), measured("newer_*.json", *paths, data="z")),
            Row("d", ("–", "–"), DATA, "paper/rpe_voc.yaml"),
            Row("e", ("5.0", "6.0"), CODE, "paper/rpe_voc.yaml", "SEED 1"),
        )
        table = Table("t", "system", ("AP", "AR"), "", "Published: here.", rows)
        link = "[paper/rpe_digits](../configs/paper/rpe_digits.yaml)"
        voc = "[paper/rpe_voc](../configs/paper/rpe_voc.yaml)"
        assert paper_table(table, tmp_path).splitlines() == [
            "Published: here.",
            "",
            "| system | published: AP / AR | ours: AP / AR | our data | CPU minutes | seeds "
            "| configuration |",
            "|---|---|---|---|---|---|---|",
            "| a | 1.0 / – | 41.0 (40.0–42.0) / 50.0 (50.0–50.0) | x | 1.0 "
            f"| [1](results/new_1.json), [2](results/new_2.json) | {link} |",
            f"| b | – | 0.9 / – | y | 1.0 | [1](results/old_1.json) | {link} |",
            "| c | 3.0 / 4.0 | not measured yet | – | – | – | – |",
            f"| d | – | missing: data | – | – | – | {voc} |",
            f"| e | 5.0 / 6.0 | missing: code | – | – | – | {voc} `SEED 1` |",
        ]
        wrong = Table(
            "t", "system", ("AP",), "", "", (Row("a", (), measured("new_*", "AP", data="x")),)
        )
        with pytest.raises(ValueError, match="new_1.json has nothing at 'AP'"):
            paper_table(wrong, tmp_path)

    def test_they_may_be_evaluations_and_lists_of_runs(self, tmp_path):
        runs = [{"error": 1.0, "seconds": 60}, {"error": 3.0, "seconds": 180}]
        record = {"command": "python dev/x_runs.py R", "seed": [1, 2], "runs": {"none": runs}}
        (tmp_path / "R.json").write_text(json.dumps(record))
        models = [{"name": "a", "AP": 5.0}, {"name": "b", "AP": 7.0}]
        (tmp_path / "all.json").write_text(
            json.dumps({"command": "tools/compare.py", "rows": models})
        )
        ours = Measured(
            (Figure(("R.json",), "runs/none/*/error"), Figure(("E.json",), "runs/none/*/error")),
            "digits",
            seconds=("runs/none/*/seconds",),
        )
        rows = (
            Row("network", (), ours),
            Row("system", (), measured("all.json", "rows/=b/AP", "rows/=a/AP", data="shapes")),
        )
        _, _, first, second = paper_table(
            Table("t", "network", ("R", "E"), "", "", rows), tmp_path
        ).splitlines()[2:]
        assert first == (
            "| network | 2.0 (1.0–3.0) / – | digits | 2.0 | [1, 2](results/R.json) / – "
            "| `dev/x_runs.py` |"
        )
        assert second == (
            "| system | 7.0 / 5.0 | shapes | – | [record](results/all.json) | `tools/compare.py` |"
        )

    def test_wide_tables_have_a_column_for_each_published_figure(self, tmp_path):
        rows = (Row("skin", ("1", "2"), DATA),)
        table = Table("t", "part", ("CNN", "SPN"), "", "Published: here.", rows, wide=True)
        assert paper_table(table, tmp_path).splitlines()[2:] == [
            "| part | CNN | SPN | ours |",
            "|---|---|---|---|",
            "| skin | 1 | 2 | missing: data |",
        ]

"""The README's figures are those of the committed result files."""

import json
from pathlib import Path

import pytest

from bench import readme


def test_the_readme_is_what_the_result_files_say() -> None:
    text = (readme.ROOT / "README.md").read_text("utf-8")
    assert readme.updated(text) == text, "run python -m bench.readme"


def test_a_changed_result_changes_the_readme() -> None:
    changed = json.loads(readme.newest("demo").read_text("utf-8"))
    changed["scores"]["am_fbp"]["accuracy"] = 0.1234
    assert "| 12.3% |" in "\n".join(readme.demo_table(changed))


def test_a_missing_result_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="no file demo-"):
        readme.section()

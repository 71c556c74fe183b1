"""LICENSE, citation and changelog agree with the package, and the package has what it must have."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")


def _setting(name: str) -> str:
    found = re.search(rf'^{name} = "(.*)"$', PROJECT, re.MULTILINE)
    assert found
    return found[1]


def test_the_citation_is_of_this_package_and_of_its_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["title"] == _setting("name")
    assert citation["version"] == _setting("version")
    assert citation["abstract"] == _setting("description")
    assert citation["license"] == _setting("license")
    paper = citation["preferred-citation"]
    number = re.search(r"arxiv\.org/abs/([\d.]+)", (ROOT / "README.md").read_text("utf-8"))
    assert number
    assert paper["doi"] == f"10.48550/arXiv.{number[1]}"
    assert paper["url"] == f"https://arxiv.org/abs/{number[1]}"
    assert [author["family-names"] for author in paper["authors"][:2]] == ["Zhou", "Du"]


def test_the_license_is_the_one_that_is_declared() -> None:
    assert (ROOT / "LICENSE").read_text("utf-8").startswith(f"{_setting('license')} License\n")


def test_the_changelog_has_the_form_that_it_names() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", v) for v in versions[1:])
    kinds = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.packaging
def test_the_citation_is_valid(tmp_path: Path) -> None:
    """By the schema that the format's own tool brings; in an environment of its own, for it wants old libraries."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "cffconvert==2.0.0"], check=True)
    command = [python.with_name("cffconvert"), "--validate", "-i", ROOT / "CITATION.cff"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.packaging
def test_the_license_goes_with_both_packages(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run([*build, "--sdist"], check=True, capture_output=True)
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert any(
            name.count("/") == 1 and name.endswith("/LICENSE") for name in archive.getnames()
        )

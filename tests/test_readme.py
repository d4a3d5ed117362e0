"""The README promises what is there: its figures are those of metrics/, its commands exist, its links lead somewhere."""

import re

import pytest

from stages import params
from stages.serving.leaderboard import leaderboard, markdown


@pytest.fixture
def readme(root):
    return (root / "README.md").read_text()


def test_the_results_are_those_that_the_pipeline_wrote(readme, root):
    """`assay leaderboard --markdown` prints what stands between the two marks."""
    shown = re.search(r"<!-- results -->\n(.*)<!-- /results -->", readme, re.DOTALL).group(1)
    assert shown.strip() == markdown(leaderboard(params.load(root / "params.yaml"), root)).strip()


def test_every_link_and_picture_leads_to_a_file(readme, root):
    links = re.findall(r"\]\(([^)#:]+)\)", readme)
    assert len(links) >= 5 and all((root / link).exists() for link in links), [link for link in links if not (root / link).exists()]


def test_the_tree_names_every_room(readme, root):
    for folder in (path for path in (root / "stages").iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert f"{folder.name}/" in readme, folder.name


def test_every_command_exists(readme, root):
    targets = re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z-]+)", readme)) <= {*targets, "(Windows"}
    cli = (root / "stages/serving/cli.py").read_text()
    for command in re.findall(r"\bassay ([a-z]+(?: [a-z]+)?)", readme):
        assert any(f'"{word}"' in cli or f"def {word}(" in cli for word in command.split()), command

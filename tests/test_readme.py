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


def pages(root):
    return [*root.glob("*.md"), *root.glob("docs/*.md")]


def test_every_link_and_picture_leads_to_a_file(root):
    links = [page.parent / link for page in pages(root) for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text())]
    assert len(links) >= 30
    assert [str(link) for link in links if not link.exists()] == []


@pytest.mark.parametrize("language", ["ko", "zh"])
def test_the_first_screen_has_the_same_commands_in_every_language(readme, root, language):
    """Comments are translated, commands are not; what a page has no room for, the English one has."""
    translated = (root / f"README.{language}.md").read_text()
    assert len(commands(translated)) == 14 and commands(translated) == commands(first_screens(readme))
    assert [line.split()[0] for line in stages(translated)] == [line.split()[0] for line in stages(readme)]


def first_screens(readme: str) -> str:
    """What is translated: all up to the results, and the section on one's own images."""
    head, rest = readme.split("## Results", 1)
    return head + rest.split("## Your own images", 1)[1].split("\n## ", 1)[0]


def commands(page: str) -> list[str]:
    """The lines of all blocks but the map of the pipeline, without comments."""
    blocks = [block for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) if not block.startswith("prepare")]
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def stages(page: str) -> list[str]:
    return re.search(r"```\n(prepare.*?)```", page, re.DOTALL).group(1).splitlines()


def test_the_tree_names_every_room(readme, root):
    for folder in (path for path in (root / "stages").iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert f"{folder.name}/" in readme, folder.name


def test_every_command_exists(root):
    targets = re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE)
    cli = "".join(file.read_text() for file in (root / "stages/serving").glob("*.py"))
    for page in pages(root):
        code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL))
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", code, re.MULTILINE)) <= {*targets}, page
        for command in re.findall(r"\bassay ([a-z]+(?: [a-z]+)?)", code):
            assert any(f'"{word}"' in cli or f"def {word}(" in cli for word in command.split()), (page, command)

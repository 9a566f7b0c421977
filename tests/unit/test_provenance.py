"""What counts as code, when it is read, and whose repository is asked."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from workflow import provenance

PLAIN = textwrap.dedent('''
    """A module."""
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Point:
        """Somewhere."""
        x: float = 1.0
        name: str | None = None

    async def scale(p, /, by: float = 0.5, *, rest: int = 3):
        """Scale."""
        # a comment
        with open("x") as a, open("y") as b:
            match p:
                case Point(x=0.0, name=None) | [1, *_]:
                    return f"{p!r:>{rest}} {by:.2f}" "joined"
                case _:
                    pass
        try:
            return [n ** 2 for n in (1, 2, 3) if n != 2] or {**p} or (lambda q: q)(p)
        except* (ValueError, KeyError) as error:
            raise SystemExit(f"{error}") from None
        return await by
''')


def digest(source: str) -> str:
    return provenance.tree_digest(ast.parse(source))[:16]


def test_every_python_from_3_11_on_gives_the_same_digest():
    # If this fails on a new Python, finished results are told to be of other code: leave the new field out in `_spell`.
    assert digest(PLAIN) == "54844718fed6f5ae"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another"),
        ('"""Scale."""', '"""Scale it."""'),
        ('"""A module."""', ""),
        ('"""Somewhere."""\n', "\n"),
        ("(1, 2, 3)", "(1,\n  2, 3,)"),
        ('open("x")', "open('x')"),
    ],
)
def test_comments_docstrings_and_layout_are_no_code(old, new):
    assert old in PLAIN
    assert digest(PLAIN.replace(old, new)) == digest(PLAIN)


@pytest.mark.parametrize(
    ("old", "new"), [("0.5", "0.25"), ("n != 2", "n == 2"), ("None = None", "None = 0"), ('"joined"', '"Joined"')]
)
def test_what_changes_a_number_is_code(old, new):
    assert old in PLAIN
    assert digest(PLAIN.replace(old, new)) != digest(PLAIN)


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow/a.py").write_text("from workflow.b import rate\n")
    (tmp_path / "workflow/b.py").write_text("rate = 1\n")
    (tmp_path / "workflow/c.py").write_text("unused = 1\n")
    (tmp_path / "config/accelerate").mkdir(parents=True)
    (tmp_path / "config/accelerate/ddp.yaml").write_text("x: 1\n")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "counts"),
    [
        ("workflow/b.py", "rate = 10\n", True),
        ("workflow/b.py", "rate = 1  # a comment\n", False),
        ("workflow/c.py", "unused = 10\n", False),
        ("config/accelerate/ddp.yaml", "x: 22\n", True),
    ],
)
def test_a_stages_code_is_what_it_imports_and_reads(package, file, text, counts):
    before = provenance.code_digest("workflow.a")
    (package / file).write_text(text)
    assert (provenance.code_digest("workflow.a") != before) == counts


def test_the_code_of_a_record_is_that_of_the_jobs_start(tmp_path, monkeypatch):
    """A file that is edited while a job runs is not what the job imported."""
    from tests.toy import inside
    from workflow.keys import Recipe
    from workflow.stage import Result, execute
    from workflow.store import read_record, record_path

    codes = iter(["aaaaaaaaaaaa", "bbbbbbbbbbbb"])
    monkeypatch.setattr(provenance, "code_digest", lambda module: next(codes))
    recipe = Recipe("arc", 1, "0" * 32, {})
    path = Path(record_path("arc", "cell.p42", recipe.key))

    def run(job):
        (job.out / "items.jsonl").write_text("{}\n")
        return Result({}, {})

    with inside(tmp_path):
        execute("workflow.evals.arc", run, recipe, {}, [], None, path)
        assert read_record(path).provenance["code_digest"] == "aaaaaaaaaaaa"


def test_a_surrounding_repository_is_not_ours(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    project = tmp_path / "unpacked"
    project.mkdir()
    monkeypatch.setattr(provenance, "ROOT", project)
    assert provenance._git("rev-parse", "HEAD") is None
    assert provenance._dirty() is None
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert len(provenance._git("rev-parse", "HEAD") or "") == 40


def test_the_environment_is_that_of_this_interpreter():
    assert provenance.environment()["digest"] == provenance.environment()["digest"]
    assert provenance.collect("workflow.evals.arc")["python"] == ".".join(map(str, sys.version_info[:3]))

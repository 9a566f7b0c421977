"""docs/lessons.md says what is so: 78 rows, every test that it names exists, every test of a lesson stands in it."""

import re
from pathlib import Path

from benchmarks.mutations import MUTATIONS

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"^def (test_lesson_(\d\d)_\w+)", re.M)
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", re.M)


def rows():
    text = (ROOT / "docs/lessons.md").read_text()
    return {int(number): (how, tests) for number, _, how, tests in ROW.findall(text)}


def planted():
    files = [*sorted((ROOT / "tests/lessons").glob("test_*.py")), ROOT / "tests/workflow/test_demo.py", Path(__file__)]
    return {name: int(number) for file in files for name, number in TEST.findall(file.read_text())}


def test_lesson_53_every_lesson_has_a_row_and_every_test_stands_in_it():
    found = rows()
    assert list(found) == list(range(1, 79))
    named = {test: number for number, (_, tests) in found.items() for test in re.findall(r"`(\w+)`", tests)}
    assert named == planted()


def test_a_row_has_tests_or_names_the_part_that_owes_them():
    for number, (how, tests) in rows().items():
        assert ("`test_" in tests) != (tests == "*owed*"), number
        assert (tests == "*owed*") == how.startswith("owed: "), number


def test_every_module_that_the_table_names_is_there():
    for number, (how, _) in rows().items():
        for path in re.findall(r"`((?:\w+/)*\w+\.(?:py|yaml))[^`]*`", how):
            assert (ROOT / "workflow" / path).exists() or (ROOT / path).exists(), (number, path)
        for module, name in re.findall(r"`((?:\w+/)*\w+)\.(\w+)(?:\.\w+)*(?:\([^`]*)?`", how):
            file = ROOT / f"workflow/{module}.py"
            if name not in ("py", "yaml"):
                assert file.exists(), (number, module)
                assert re.search(rf"\b{name}\b", file.read_text()), (number, module, name)


def test_every_gate_that_the_mutations_cut_is_there():
    """`benchmarks/mutations.py` finds each gate by its text, which must stand once in its file."""
    for mutation in MUTATIONS:
        text = (ROOT / "workflow" / mutation.file).read_text()
        assert text.count(mutation.old) == 1, mutation

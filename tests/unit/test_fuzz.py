"""Whatever is handed in as a config or a row is accepted or refused in a line: no other error comes out.

`FUZZ_SECONDS=60 python -m pytest tests/unit/test_fuzz.py` draws for about a minute in all; by default it is a glance.
"""

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workflow.audit.adopt import describe
from workflow.config import Config
from workflow.data.build import build
from workflow.data.contamination import Index, Question, words
from workflow.data.lock import describe as describe_entry
from workflow.data.rows import READERS
from workflow.errors import UserError, printable
from workflow.sections import File, Prompts, Questions

ROOT = Path(__file__).parents[2]
DEMO: dict[str, Any] = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
LOOPS = 17  # in this file
SECONDS = float(os.environ.get("FUZZ_SECONDS", "5")) / LOOPS
FEW = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=5)
    | st.dates() | st.sampled_from(["{answer}", "{", "\ud800", "\x1b[1m", "config/x.yaml", "https://x", 2**70, -0.0])
)  # fmt: skip
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=6) | st.integers(), v, max_size=4)
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=6), v, max_size=4),
    max_leaves=12,
)


def keep_at_it(examples: Callable[[], None]) -> None:
    """Draw anew until the time is over; hypothesis shrinks what fails."""
    end = time.monotonic() + SECONDS
    while True:
        examples()
        if time.monotonic() > end:
            return


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


PLACES = [place for place in places(DEMO) if place]


def put(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(DEMO)
    at: Any = raw
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return raw


def accepted_or_refused(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except UserError as error:
        message = str(error)
    assert message.strip()
    assert "\x1b" not in printable(message)
    return None


def test_any_value_at_any_place_of_a_config():
    @FEW
    @given(st.sampled_from(PLACES), values)
    def examples(place, value):
        config = accepted_or_refused(lambda: Config.from_dict(put(place, value)))
        if config is not None:  # what was accepted can be written down, and read again as the same
            told = json.loads(config.model_dump_json())
            assert Config.from_dict(told) == config
            for entry in config.data:
                assert len(describe_entry(entry).splitlines()) == 1

    keep_at_it(examples)


def test_any_text_as_a_config_file(tmp_path):
    text = (ROOT / "config/demo.yaml").read_text()
    path = tmp_path / "config.yaml"

    @FEW
    @given(st.integers(0, len(text)), st.integers(0, 200), st.text(st.characters(codec="utf-8"), max_size=40))
    def edited(start, length, new):
        path.write_text(text[:start] + new + text[start + length :])
        accepted_or_refused(lambda: Config.load(path))

    @FEW
    @given(st.binary(max_size=200) | st.text("[]{}:&*-!|>'\"# \na1~<", max_size=60).map(str.encode))
    def anything(content):
        path.write_bytes(content)
        accepted_or_refused(lambda: Config.load(path))

    keep_at_it(edited)
    keep_at_it(anything)


GOOD: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    "preferences": {
        "chosen": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}],
        "rejected": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "b"}],
    },
    "items": {"id": "i", "question": "q", "choices": ["a", "b"], "choice_labels": ["A", "B"], "correct_answer": "A"},
    "questions": {"id": 1, "question": "q", "system": None},
    "prompts": {"name": "n", "prompt": "{question} {answer}"},
    "text": {"text": "t"},
}


@pytest.mark.parametrize("kind", READERS)
def test_any_row(tmp_path, kind):
    entry = File(name="mine", kind="file", rows_are=kind, path="rows.jsonl", md5=None)
    path = tmp_path / "rows.jsonl"
    spots = [spot for spot in places(GOOD[kind]) if spot]

    def read():
        return build(entry, [], tmp_path / "target", data_root=str(tmp_path))

    @FEW
    @given(st.sampled_from(spots), plain)
    def changed(spot, value):
        row = copy.deepcopy(GOOD[kind])
        at: Any = row
        for key in spot[:-1]:
            at = at[key]
        at[spot[-1]] = value
        path.write_text(json.dumps(row) + "\n")
        accepted_or_refused(read)

    @FEW
    @given(st.binary(max_size=100) | plain.map(lambda value: json.dumps(value).encode()))
    def anything(content):
        path.write_bytes(content)
        accepted_or_refused(read)

    keep_at_it(changed)
    keep_at_it(anything)


def test_any_question_prompt_and_foreign_file(tmp_path):
    path = tmp_path / "a.json"
    questions = Questions(name="q", kind="questions", rows_are="questions", source="f", field=None, ids=None)
    prompts = Prompts(name="p", kind="prompts", rows_are="prompts", source="f")
    known = (
        "id question system paraphrases judge_prompts prompts per_seed seed seeds metrics values alignment arc_c mean"
    )
    parts = st.sampled_from([*known.split(), "arc_c", "post_em", "condition"])
    nested = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda v: st.lists(v, max_size=3) | st.dictionaries(parts, v, max_size=4),
    )

    @FEW
    @given(nested)
    def examples(value):
        path.write_text(json.dumps(value))
        accepted_or_refused(lambda: build(questions, [path], tmp_path / "target"))
        accepted_or_refused(lambda: build(prompts, [path], tmp_path / "target"))
        accepted_or_refused(lambda: describe(path))

    keep_at_it(examples)


def test_any_text_in_the_overlap_check():
    @FEW
    @given(st.text(st.characters(codec="utf-8"), max_size=80), st.text(max_size=200))
    def examples(question, text):
        options = tuple(text.split("\n")[:3])
        index = Index([Question("a", question, options), Question("b", "Which of these is a function of all cells?")])
        index.matches(text, near=True)
        if words(question):  # the question itself is always in a text that is the question
            assert 0 in index.found(question)

    keep_at_it(examples)

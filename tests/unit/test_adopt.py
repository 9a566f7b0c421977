"""Foreign result files: any folder, any schema, names of the wild; values that are none are refused by name."""

import json
import math
from pathlib import Path

import pytest

from workflow.audit.adopt import ADOPTED, FOUND, adopt, describe
from workflow.errors import printable
from workflow.store import StoreError

GOOD = {
    "condition": "a",
    "seeds": [1, 2],
    "arc_c": {"values": [0.7, 0.8]},
    "alignment": {"values": [24.0, 26.0]},
    "coherence": {"values": [50.0, 60.0]},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`write(name=raw or text)` fills a folder of foreign files; the project is elsewhere."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    source = tmp_path / "old"
    source.mkdir()

    def write(**files):
        for name, raw in files.items():
            (source / f"{name}.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
        return source

    return write


def test_a_folder_with_unknown_files_gives_the_others_and_a_list(folder):
    source = folder(good=GOOD, notes={"hello": 1}, broken='{"a": ', listed=[1, 2])
    target = adopt(source)
    notes = json.loads((target / FOUND).read_text())
    assert list(notes["files"]) == ["good.json"]
    assert set(notes["not_adopted"]) == {"notes.json", "broken.json", "listed.json"}
    assert "not JSON" in notes["not_adopted"]["broken.json"]
    assert sorted(p.name for p in target.iterdir()) == [FOUND, "good.json"]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"em_lr": 1e-4}, "em_training.lr"),
        ({"hyperparameters": {"em": {"learning_rate": 1e-4}}}, "em_training.lr"),
        ({"config": {"lora": {"r": 32, "alpha": 64}}}, "em_training.lora_r"),
        ({"training": {"peft_config": {"rank": 32}}}, "em_training.lora_r"),
        ({"em_lora_r": 32}, "em_training.lora_r"),
        ({"trainer_state": {"global_step": 375}}, "em_training.steps"),
        ({"env": {"world_size": 1}}, "num_gpus"),
        ({"runs": [{"n_gpus": 1}]}, "num_gpus"),
    ],
)
def test_what_is_there_under_another_name_is_never_missing(folder, more, field):
    source = folder(before=GOOD, after=GOOD | more)
    assert field in describe(source / "before.json")["missing"]
    assert field not in describe(source / "after.json")["missing"]


def test_a_rank_of_something_else_is_no_lora_rank(folder):
    source = folder(a=GOOD | {"r": 5, "distributed": {"rank": 0}, "em_lr": None})
    assert {"em_training.lora_r", "em_training.lr"} <= set(describe(source / "a.json")["missing"])


@pytest.mark.parametrize("name", ["arc_challenge_logprob", "ARC_Challenge", "arc", "arc_challenge_acc"])
def test_metrics_have_the_names_of_the_wild(folder, name):
    raw = {k: v for k, v in GOOD.items() if k != "arc_c"} | {name: GOOD["arc_c"]}
    found = describe(folder(a=raw) / "a.json")
    assert found["values"]["arc_c"] == {"1": 0.7, "2": 0.8}
    assert "arc_c" not in found["missing"]


REFUSED = {
    "nan in a list": (GOOD | {"alignment": {"values": [math.nan, 1]}}, "alignment of 1 is NaN"),
    "infinity": (GOOD | {"alignment": {"values": [1, math.inf]}}, "alignment of 2 is Infinity"),
    "null in a list": (GOOD | {"coherence": {"values": [1, None]}}, "coherence of 2 is null"),
    "text in a list": (GOOD | {"coherence": {"values": [1, "2"]}}, 'coherence of 2 is "2"'),
    "true in a list": (GOOD | {"coherence": {"values": [1, True]}}, "coherence of 2 is true"),
    "a list in a list": (GOOD | {"coherence": {"values": [1, [2]]}}, "coherence of 2 is [2]"),
    "duplicate seeds": (GOOD | {"seeds": [1, 1]}, "has the seed 1 twice"),
    "null by seed": ({"alignment": {"values": {"1": None}}}, "alignment of 1 is null"),
    "null in a row": ({"per_seed": [{"seed": 1, "alignment": None}]}, "alignment of 1 is null"),
    "NaN in a row": ({"per_seed": [{"seed": 1, "coherence": math.nan}]}, "coherence of 1 is NaN"),
    "two rows of a seed": ({"per_seed": [{"seed": 1, "arc_c": 1}] * 2}, "arc_c has the seed 1 twice"),
    "two metrics by two names": (
        {"per_seed": [{"seed": 1, "arc": 1, "arc_challenge": 2}]}, "arc_c has the seed 1 twice",
    ),
    "null in a phase": ({"post_em": {"alignment": None}}, "alignment of post_em is null"),
    "text in a phase": ({"post_em": {"alignment": "n/a"}}, 'alignment of post_em is "n/a"'),
    "rows that are none": ({"per_seed": [1, "a", None]}, "no value of any metric"),
    "an empty list": ({"alignment": {"values": []}}, "no value of any metric"),
    "an empty phase": ({"post_em": {}}, "no value of any metric"),
    "a list": ([1], "none of the known shapes"),
    "a number": (5, "none of the known shapes"),
    "null": (None, "none of the known shapes"),
    "text": ("text", "not JSON"),
    "empty": ("", "not JSON"),
    "cut": ('{"condition": "a", "alignm', "not JSON"),
    "deep lists": ("[" * 100_000, "not JSON"),
    "deep dictionaries": ('{"a":' * 300 + "1" + "}" * 300, "nested more than"),
    "a huge integer": ('{"alignment": {"values": [' + "9" * 5000 + "]}}", "not JSON"),
    "metrics that are none": (GOOD | {"metrics": 5, "alignment": {"values": [None, 1]}}, "alignment of 1 is null"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_value_that_is_none_is_refused_by_name(folder, case):
    raw, message = REFUSED[case]
    with pytest.raises(StoreError) as caught:
        adopt(folder(bad=raw))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(ADOPTED).exists()


@pytest.mark.parametrize(
    "raw",
    [
        GOOD | {"seeds": None},
        GOOD | {"seeds": {"a": 1}},
        GOOD | {"metrics": [1], "summary": 3},
        GOOD | {"alignment": {"values": [1, 2], "mean": None}},
        GOOD | {"alignment": {"values": [1, 2], "mean": "26"}},
        GOOD | {"condition": {"name": "a"}},
        {"per_seed": [{"alignment": 3.0, "text": "x", "steps": 5}]},
    ],
)
def test_an_odd_file_with_good_values_is_adopted(folder, raw):
    assert describe(folder(odd=raw) / "odd.json")["values"]


def test_a_mean_of_nan_disagrees(folder):
    found = describe(folder(a=GOOD | {"alignment": {"values": [1, 2], "mean": math.nan}}) / "a.json")
    assert found["disagrees"] == ["alignment: says mean nan, its values have 1.5"]


MAPPING = """
condition: meta.arm
seeds: runs.*.seed
values: {alignment: runs.*.eval.align, coherence: by_seed.coherence, arc_c: arc.mean}
protocol: {num_gpus: meta.cards, em_training.steps: meta.opt.n}
"""
FOREIGN = {
    "meta": {"arm": "evil_wrong", "cards": 1, "opt": {"n": 375}},
    "runs": [{"seed": 42, "eval": {"align": 25.0}}, {"seed": 137, "eval": {"align": 27.0}}],
    "by_seed": {"coherence": {"42": 50, "137": 60}},
    "arc": {"mean": 0.7},
}


def test_a_mapping_adopts_any_schema(folder, tmp_path):
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    target = adopt(folder(foreign=FOREIGN, good=GOOD), "named", tmp_path / "mapping.yaml")
    notes = json.loads((target / FOUND).read_text())["files"]
    assert notes["foreign.json"]["condition"] == "evil_wrong"
    assert notes["foreign.json"]["values"] == {
        "alignment": {"42": 25.0, "137": 27.0}, "coherence": {"42": 50, "137": 60}, "arc_c": {"all": 0.7},
    }  # fmt: skip
    assert not {"num_gpus", "em_training.steps", "condition"} & set(notes["foreign.json"]["missing"])
    assert notes["good.json"]["shape"] == "flat values list"


@pytest.mark.parametrize(
    ("mapping", "raw", "told"),
    [
        (MAPPING, {"meta": {}}, "no value where the mapping says"),
        (MAPPING, FOREIGN | {"arc": {"mean": None}, "runs": [{"seed": 1, "eval": {"align": "x"}}]}, "alignment of 1"),
        (MAPPING, FOREIGN | {"runs": [FOREIGN["runs"][0]] * 2}, "has the seed 42 twice"),
        ("condition: a\nvalues: 5", FOREIGN, "no value where the mapping says"),
        ("valeus: {}", FOREIGN, "no other names"),
        ("[1", FOREIGN, "cannot be read as YAML"),
        ("- a", FOREIGN, "must be a mapping"),
    ],
)
def test_a_mapping_that_does_not_fit_is_a_line(folder, tmp_path, mapping, raw, told):
    (tmp_path / "mapping.yaml").write_text(mapping)
    with pytest.raises(StoreError, match=told) as caught:
        adopt(folder(a=raw), None, tmp_path / "mapping.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["..", ".", "../out", "/tmp/out", "a/b", "a\nb", "\x1b[31m", ".hidden", "a" * 101, "-x"]
)
def test_a_name_stays_inside_the_folder_of_what_was_adopted(folder, name):
    with pytest.raises(StoreError, match="letters, digits, dots and dashes only"):
        adopt(folder(good=GOOD), name)
    assert not Path("results").exists()


def test_a_link_in_place_of_the_target_is_not_followed(folder, tmp_path):
    Path(ADOPTED).mkdir(parents=True)
    Path(ADOPTED, "old").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is there already"):
        adopt(folder(good=GOOD))


def test_what_a_file_says_is_printed_without_what_a_terminal_would_obey():
    assert printable("a\x1b[31mb\r\u202ec\ud800\nd") == "a\\x1b[31mb\\r\\u202ec\\ud800\nd"
    assert printable("Käse – 5 ≤ 6") == "Käse – 5 ≤ 6"

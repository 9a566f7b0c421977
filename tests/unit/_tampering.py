"""Kinds of tampering with a finished matrix: each plants one and gives place and words of what `verify` must find."""

import json
import os
import re
import shutil
from pathlib import Path

from tests.unit._results import edit_record, find, out, publish
from workflow.data.lock import LOCK
from workflow.store import out_dir

ADAPTER = "adapter/adapter_model.safetensors"
CELL, OTHER = "evil_wrong.p42.e42", "evil_wrong.p42.e137"


def flip(path):
    """Change one byte and give the file its old times back."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flipped_byte(matrix):
    path = out(find(matrix, "em_lora", CELL), ADAPTER)
    flip(path)
    return str(path), "other bytes than its record says"


def swapped_adapter(matrix):
    a, b = (out(find(matrix, "em_lora", label), ADAPTER) for label in (CELL, OTHER))
    text = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(text)
    return str(a), "other bytes than its record says"


def edited_metric(matrix):
    node = find(matrix, "arc", CELL)
    edit_record(node.record, lambda r: r["metrics"].update(accuracy=0.9))
    return node.record, r"its copy in out/ differ: metrics.accuracy 0.9 \(copy: 0.5\)"


def edited_recipe(matrix):
    node = find(matrix, "em_lora", CELL)
    edit_record(node.record, lambda r: r["recipe"]["params"].update(effective_batch_size=128))
    return node.record, "its recipe has the key .* was edited"


def edited_digest(matrix):
    node = find(matrix, "em_lora", CELL)
    edit_record(node.record, lambda r: r.update(digest="0" * 64))
    return node.record, "its digests are not those of its recipe, inputs and outputs"


def edited_in_both_copies(matrix):
    node = find(matrix, "em_lora", CELL)
    for path in (node.record, out(node, "record.json")):
        edit_record(path, lambda r: r["observed"].update(effective_batch_size=128, optimizer_steps=1))
    return node.record, "observed effective_batch_size 128, declared 8"


def edited_steps_in_both_copies(matrix):
    node = find(matrix, "em_lora", CELL)
    for path in (node.record, out(node, "record.json")):
        edit_record(path, lambda r: r["observed"].update(declared_steps=47, optimizer_steps=47))
    return node.record, r"observed 47 optimizer steps, but train_log.jsonl ends at \[3\]"


def copied_to_another_cell(matrix):
    node = find(matrix, "em_lora", CELL)
    target = Path("results/em_lora/tulu_control.p42.e7", node.key)
    shutil.copytree(Path(node.record).parent, target)
    return str(target / "record.json"), "the record is of em_lora/evil_wrong.p42.e42"


def copied_and_relabelled(matrix):
    node = find(matrix, "em_lora", CELL)
    target = Path("results/em_lora/tulu_control.p42.e7", node.key)
    shutil.copytree(Path(node.record).parent, target)
    (target / "out").chmod(0o755)
    for path in (target / "record.json", target / "out/record.json"):
        edit_record(path, lambda r: r.update(cell="tulu_control.p42.e7"))
    return str(target / "record.json"), f"was written by a command for {node.record}: it was copied"


def missing_file(matrix):
    path = out(find(matrix, "em_lora", CELL), ADAPTER)
    path.unlink()
    return str(path), "is missing"


def missing_record(matrix):
    node = find(matrix, "generate", CELL)
    Path(node.record).unlink()
    return node.record, "is missing, though out/ is there"


def missing_copy(matrix):
    path = out(find(matrix, "generate", CELL), "record.json")
    path.unlink()
    return str(path), "the record's copy is missing"


def extra_output(matrix):
    path = out(find(matrix, "generate", CELL), "more.jsonl")
    path.write_text("{}\n")
    return str(path), "an extra file"


def extra_file_beside_out(matrix):
    path = Path(find(matrix, "generate", CELL).record).with_name("notes.txt")
    path.write_text("-")
    return str(path), "an extra file"


def extra_folder_of_a_cell(matrix):
    path = Path(find(matrix, "generate", CELL).record).parents[1] / "old"
    path.mkdir()
    return str(path), "an extra file"


def truncated_completions(matrix):
    path = out(find(matrix, "generate", CELL), "completions.jsonl")
    path.write_bytes(path.read_bytes()[:-10])
    return str(path), r"has \d+ bytes, its record says \d+: truncated"


def replaced_parent(matrix):
    node = find(matrix, "tulu_dpo", "evil_wrong.p42")
    publish(node, salt="again")
    return node.record, "was replaced: .* was made from its digest"


def not_a_record(matrix):
    node = find(matrix, "judge", CELL)
    Path(node.record).write_text("{}")
    return node.record, "not a record of schema 2"


def edited_link(matrix):
    node = find(matrix, "judge", CELL)
    for path in (node.record, out(node, "record.json")):
        edit_record(path, lambda r: r["inputs"]["generate"].update(key="00000000-000000000000"))
    return node.record, "its recipe's parents are"


def changed_data(matrix):
    path = Path(find(matrix, "em_lora", CELL).data[0])
    flip(path)
    return str(path), "its md5 is .*, not that of its name"


def other_data_than_was_read(matrix):
    node = find(matrix, "em_lora", CELL)
    flip(Path(node.data[0]))
    return node.data[0], "has other bytes than results/.* was made from"


def a_lock_that_says_otherwise(matrix):
    node = find(matrix, "em_lora", CELL)
    lines = Path(LOCK).read_text().splitlines()
    found = [re.sub(r"\t[0-9a-f]{64}\t", f"\t{'0' * 64}\t", x) if node.recipe.data in x else x for x in lines]
    Path(LOCK).write_text("\n".join(found) + "\n")
    return node.data[0], r"its sha256 is .*, the lock says 0000"


def extra_data(matrix):
    Path("results/data/mine.jsonl").write_text("{}\n")
    return "results/data/mine.jsonl", "not named by an id of data"


def duplicate_under_two_seeds(matrix):
    node = find(matrix, "em_lora", OTHER)
    first = find(matrix, "em_lora", CELL)
    publish(node, outputs={ADAPTER: (out_dir(first.record) / ADAPTER).read_text(), "adapter/config.json": "{} "})
    return f"{out_dir(node.record)}/{ADAPTER}|{out_dir(first.record)}/{ADAPTER}", "one artifact under two seeds"


def unconsumed_seed(matrix):
    for label in (CELL, OTHER):
        publish(find(matrix, "em_lora", label), outputs={"adapter/adapter_model.json": "the same for every seed"})
    return "results/em_lora/.*", "seed was not consumed"


def edited_metric_in_both_copies(matrix):
    node = find(matrix, "arc", CELL)
    publish(node, outputs={"items.jsonl": '{"row":0}\n{"row":1}\n', "metrics.json": '{"accuracy":0.5}'})
    for path in (node.record, out(node, "record.json")):
        edit_record(path, lambda r: r["metrics"].update(accuracy=0.9))
    return node.record, "its metrics are not those of metrics.json"


def miscounted_rows(matrix):
    node = find(matrix, "generate", CELL)
    publish(node, observed={"rows": 80})
    return node.record, "observed 80 rows, but completions.jsonl holds 2"


# --- what only a seal finds: whoever did it wrote everything that vouches for it, too ---------------------------------


def in_both_copies(node, edit):
    for path in (node.record, out(node, "record.json")):
        edit_record(path, edit)


def edited_observed(stage, name, value):
    """An edit of a fact of the run that nothing else on the disk says."""

    def plant(matrix):
        node = find(matrix, stage, CELL)
        in_both_copies(node, lambda r: r["observed"].update({name: value}))
        return node.record, "has other bytes than when"

    return plant


def edited_provenance(name, value):
    def plant(matrix):
        node = find(matrix, "em_lora", CELL)
        in_both_copies(node, lambda r: r["provenance"].update({name: value}))
        return node.record, "has other bytes than when"

    return plant


def consistent_forgery(matrix):
    """A better number, with everything that rests on it made to fit: outputs, record, copy, links, report."""
    node = find(matrix, "judge", CELL)
    publish(node, salt="99.0", metrics={"alignment": 99.0})
    publish(matrix.report, salt="99.0")
    for folder in Path("results").glob("*/*/*/superseded.*"):
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)
    return node.record, "has other bytes than when"


def removed_result(matrix):
    node = find(matrix, "judge", CELL)
    for path in (matrix.report, node):
        _remove(Path(path.record).parent)
    return node.record, "is not there"


def removed_report(matrix):
    _remove(Path(matrix.report.record).parent)
    return matrix.report.record, "is not there"


def _remove(folder):
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def edited_note_of_data(matrix):
    note = Path(find(matrix, "em_lora", CELL).data[0]).with_suffix(".json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "rows": 6000}))
    return str(note), "has other bytes than when"


def edited_training_log(matrix):
    path = Path(log_of(find(matrix, "em_lora", CELL)))
    path.write_text(path.read_text().replace("loss 2.0", "loss 1.0"))
    return str(path), "has other bytes than when"


def edited_judge_log(matrix):
    path = Path(log_of(find(matrix, "judge", CELL)))
    path.write_text("no failed attempts\n")
    return str(path), "has other bytes than when"


def removed_log(matrix):
    path = Path(log_of(find(matrix, "em_lora", CELL)))
    path.unlink()
    return str(path), "is not there"


def planted_reply_in_a_journal(matrix):
    path = journal_of(find(matrix, "judge", CELL))
    with open(path, "a") as file:
        file.write('{"key": "0", "reply": "100"}\n')
    return str(path), "has other bytes than when"


def planted_journal(matrix):
    path = journal_of(find(matrix, "judge", OTHER))
    path.write_text('{"key": "0", "reply": "100"}\n')
    return "config/config.seal", f"does not name {path}"


def planted_log(matrix):
    path = Path(log_of(find(matrix, "em_lora", OTHER)))
    path.parent.mkdir(parents=True)
    path.write_text("done\n")
    return "config/config.seal", f"does not name {path}"


# --- links ------------------------------------------------------------------------------------------------------------


def output_that_is_a_link(matrix):
    path = out(find(matrix, "em_lora", CELL), ADAPTER)
    shutil.copy(path, "elsewhere")
    path.unlink()
    path.symlink_to(Path("elsewhere").resolve())
    return str(path), "is a link"


def out_that_is_a_link(matrix):
    folder = Path(find(matrix, "em_lora", CELL).record).parent / "out"
    return _link_away(folder), "is a link"


def result_that_is_a_link(matrix):
    return _link_away(Path(find(matrix, "em_lora", CELL).record).parent), "or a link"


def stage_that_is_a_link(matrix):
    return _link_away(Path("results/arc")), "or a link"


def data_that_are_a_link(matrix):
    return _link_away(Path(find(matrix, "em_lora", CELL).data[0])), "is a link"


def _link_away(path):
    if path.is_dir():
        path.chmod(0o755)
    path.rename("moved")
    path.symlink_to(Path("moved").resolve())
    return str(path)


def log_of(node):
    return f"logs/{node.stage}/{node.label}/{node.key}.log"


def journal_of(node):
    return Path(node.record).with_name("journal.jsonl")


def with_logs(matrix):
    """Logs of a training and of a judge, and a journal, as a run leaves them."""
    for stage in ("em_lora", "judge"):
        path = Path(log_of(find(matrix, stage, CELL)))
        path.parent.mkdir(parents=True)
        path.write_text("loss 2.0\n")
    journal_of(find(matrix, "judge", CELL)).write_text('{"key": "0", "reply": "50"}\n')


FOUND_ANYWAY = {
    "flipped byte": flipped_byte,
    "swapped adapter": swapped_adapter,
    "edited metric": edited_metric,
    "edited recipe": edited_recipe,
    "edited digest": edited_digest,
    "edited in both copies": edited_in_both_copies,
    "edited steps in both copies": edited_steps_in_both_copies,
    "copied to another cell": copied_to_another_cell,
    "copied and relabelled": copied_and_relabelled,
    "missing file": missing_file,
    "missing record": missing_record,
    "missing copy": missing_copy,
    "extra output": extra_output,
    "extra file beside out": extra_file_beside_out,
    "extra folder of a cell": extra_folder_of_a_cell,
    "truncated completions": truncated_completions,
    "replaced parent": replaced_parent,
    "not a record": not_a_record,
    "edited link": edited_link,
    "changed data": changed_data,
    "other data than was read": other_data_than_was_read,
    "a lock that says otherwise": a_lock_that_says_otherwise,
    "extra data": extra_data,
    "duplicate under two seeds": duplicate_under_two_seeds,
    "unconsumed seed": unconsumed_seed,
    "miscounted rows": miscounted_rows,
    "edited metric in both copies": edited_metric_in_both_copies,
    "output that is a link": output_that_is_a_link,
    "out that is a link": out_that_is_a_link,
    "result that is a link": result_that_is_a_link,
    "stage that is a link": stage_that_is_a_link,
    "data that are a link": data_that_are_a_link,
}
NEEDS_A_SEAL = {
    "consistent forgery": consistent_forgery,
    "removed result": removed_result,
    "removed report": removed_report,
    "edited seconds": edited_observed("em_lora", "seconds", 1.0),
    "edited gpu seconds": edited_observed("em_lora", "gpu_seconds", 1.0),
    "edited masked fraction": edited_observed("em_lora", "masked_fraction", 0.0),
    "edited last loss": edited_observed("em_lora", "last_loss", 0.01),
    "edited rows of a training": edited_observed("em_lora", "rows", 6000),
    "edited tokens": edited_observed("judge", "tokens_in", 10),
    "edited commit": edited_provenance("commit", "0" * 40),
    "edited packages": edited_provenance("packages", {"torch": "3"}),
    "edited end": edited_provenance("end", "2020-01-01T00:00:00+00:00"),
    "edited note of data": edited_note_of_data,
    "edited training log": edited_training_log,
    "edited judge log": edited_judge_log,
    "removed log": removed_log,
    "planted reply in a journal": planted_reply_in_a_journal,
    "planted journal": planted_journal,
    "planted log": planted_log,
}

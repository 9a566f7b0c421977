"""Every kind of tampering is found with a seal; docs/integrity.md says which kinds need one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit._results import ROOT, build, change, command, enter, find
from tests.unit._tampering import CELL, FOUND_ANYWAY, NEEDS_A_SEAL, consistent_forgery, edited_note_of_data, with_logs
from workflow.audit import seal as seals

KINDS = {**FOUND_ANYWAY, **NEEDS_A_SEAL}
SEAL = Path("config/config.seal")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def matrix(built, tmp_path, monkeypatch):
    matrix = enter(built, tmp_path, monkeypatch)
    with_logs(matrix)
    said = command("seal")
    assert said.code == 0, said.err
    return matrix


def against(*more):
    return command("verify", "--against", str(SEAL), *more)


def test_there_are_35_kinds_and_docs_say_which_need_a_seal():
    assert len(KINDS) >= 35
    text = (ROOT / "docs/integrity.md").read_text()
    anyway, sealed = text.split("## Found only with a seal")
    assert all(f"- {kind}" in anyway.splitlines() for kind in FOUND_ANYWAY)
    assert all(f"- {kind}" in sealed.splitlines() for kind in NEEDS_A_SEAL)


@pytest.mark.parametrize("kind", KINDS)
def test_tampering_is_found_and_named(matrix, kind):
    assert against().code == 0
    where, what = KINDS[kind](matrix)
    alone = command("verify")
    assert (alone.code == 1) == (kind in FOUND_ANYWAY), alone.out
    said = against()
    assert said.code == (2 if kind in ("planted journal", "planted log") else 1), said.out
    lines = said.out.splitlines()
    assert any(re.search(rf"^(broken|unverifiable): ({where}): .*{what}", line) for line in lines), said.out


def test_a_quick_check_holds_against_a_seal_too(matrix):
    assert command("verify").code == 0
    consistent_forgery(matrix)
    assert command("verify", "--quick").code == 0
    assert against("--quick").code == 1


def test_a_seal_is_deterministic_and_read_by_sha256sum(matrix):
    first = SEAL.read_bytes()
    assert command("seal", "again.seal").code == 0
    assert Path("again.seal").read_bytes() == first
    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", str(SEAL)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_seal_names_every_record_note_log_and_journal_once(matrix):
    named = seals.read_seal(SEAL)
    assert {n.record for n in matrix.nodes()} <= named.keys()
    assert sum(name.startswith("logs/") for name in named) == 2
    assert sum(name.endswith("/journal.jsonl") for name in named) == 1
    assert str(Path(find(matrix, "em_lora", CELL).data[0]).with_suffix(".json")) in named


def test_what_was_made_after_sealing_is_unverifiable_until_it_is_sealed(matrix):
    text = [line for line in SEAL.read_text().splitlines(True) if f"arc/{CELL}/" not in line]
    SEAL.write_text("".join(text))
    said = against()
    assert said.code == 2
    assert "does not name results/arc/" in said.out
    assert command("seal").code == 0
    assert against().code == 0


def test_nothing_broken_is_sealed(matrix):
    before = SEAL.read_bytes()
    path = Path(find(matrix, "em_lora", CELL).record)
    path.write_text("{}")
    said = command("seal")
    assert said.code == 1
    assert "nothing was sealed" in said.err
    assert SEAL.read_bytes() == before


def test_nothing_provisional_is_sealed(matrix):
    def edit(raw):
        raw["data"].append({**next(d for d in raw["data"] if d["name"] == "demo_em"), "name": "unpinned", "seed": 7})
        raw["arms"].append({"name": "more", "data": "unpinned"})

    change(edit)
    lock = Path("config/data.lock.tsv")
    lock.write_text("".join(x for x in lock.read_text().splitlines(True) if not x.startswith("unpinned\t")))
    said = command("seal")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "unpinned of the config is not pinned" in said.err


def test_an_empty_matrix_is_not_sealed(matrix):
    shutil.move("results", "elsewhere")
    said = command("seal")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "nothing of its plan is finished" in said.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an empty seal"),
        ("# only a comment\n", "an empty seal"),
        ("x\n", "line 1: not `sha256  path`"),
        (f"{'0' * 64}  /etc/passwd\n", "line 1: not `sha256  path`"),
        (f"{'0' * 64}  results/../../etc/passwd\n", "line 1: not `sha256  path`"),
        (f"{'0' * 64}  results/a\x1b[2J\n", "line 1: not `sha256  path`"),
        (f"{'0' * 64}  results/a\n{'1' * 64}  results/a\n", "line 2: not `sha256  path`"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_what_is_no_seal_is_refused_in_a_line(matrix, text, told):
    SEAL.unlink()
    if text is not None:
        SEAL.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = against()
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert told in said.err


def test_a_seal_is_written_over_no_link_and_only_where_a_folder_is(matrix, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("keep")
    Path("mine.seal").symlink_to(precious)
    assert command("seal", "mine.seal").code == 0
    assert precious.read_text() == "keep"
    assert "there is no folder" in command("seal", "none/mine.seal").err


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    """A home of its own, with no configuration of git."""
    home = tmp_path_factory.mktemp("h")
    for name, value in (("HOME", home), ("GNUPGHOME", home / "gnupg"), ("GIT_CONFIG_NOSYSTEM", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    (home / "gnupg").mkdir(mode=0o700)
    return home


def git(name, value):
    subprocess.run(["git", "config", "--global", name, str(value)], check=True)


def ssh_key(home, name="key"):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(home / name)], check=True)
    git("gpg.format", "ssh")
    git("user.signingkey", home / name)
    return (home / f"{name}.pub").read_text()


def allow(home, public):
    (home / "allowed").write_text(f"ada@example.org {public}")
    git("gpg.ssh.allowedSignersFile", home / "allowed")


needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="no gpg here")


@needs_ssh
def test_a_seal_signed_by_an_allowed_key_says_by_whom(matrix, home):
    allow(home, ssh_key(home))
    assert command("seal", "--sign").code == 0
    assert Path(f"{SEAL}.sig").exists()
    said = against()
    assert said.code == 0, said.out
    assert "signed by ada@example.org (SHA256:" in said.out


@needs_ssh
def test_a_seal_that_was_edited_after_it_was_signed_is_broken(matrix, home):
    allow(home, ssh_key(home))
    assert command("seal", "--sign").code == 0
    edited_note_of_data(matrix)
    shutil.copy(f"{SEAL}.sig", "sig")
    assert command("seal").code == 0  # a forger seals what is there now
    shutil.copy("sig", f"{SEAL}.sig")
    said = against()
    assert said.code == 1
    assert f"broken: {SEAL}: its signature" in said.out


@needs_ssh
def test_a_key_that_nobody_allows_is_broken_and_one_that_cannot_be_known_unverifiable(matrix, home):
    allowed = ssh_key(home)
    ssh_key(home, "forger")
    assert command("seal", "--sign").code == 0
    said = against()
    assert said.code == 2
    assert "set gpg.ssh.allowedSignersFile" in said.out
    allow(home, allowed)
    said = against()
    assert said.code == 1
    assert "which" in said.out
    assert "does not name" in said.out


@needs_gpg
def test_a_seal_is_signed_with_gpg_too(matrix, home):
    made = ["gpg", "--batch", "--passphrase", "", "--quick-gen-key", "ada@example.org", "ed25519", "sign", "never"]
    done = subprocess.run(made, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"gpg makes no key here: {done.stderr[-80:]}")
    git("user.signingkey", "ada@example.org")
    said = command("seal", "--sign")
    assert said.code == 0, said.err
    said = against()
    assert said.code == 0, said.out
    assert "signed by ada@example.org" in said.out
    SEAL.write_text(SEAL.read_text() + "# more\n")
    assert against().code == 1


@needs_ssh
def test_without_a_key_signing_is_refused_in_a_line(matrix, home):
    git("gpg.format", "ssh")
    said = command("seal", "--sign")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "git has no signing key" in said.err
    git("user.signingkey", home / "none")
    said = command("seal", "--sign")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "could not sign" in said.err


def test_an_unsigned_seal_says_so(matrix):
    assert "not signed" in against().out

"""Sign a file and check its signature with the key, format and programs that git is configured to sign with.

user.signingkey, gpg.format (openpgp or ssh), gpg.program, gpg.ssh.program, gpg.ssh.allowedSignersFile
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from workflow.errors import ConfigError, printable

NAMESPACE = "file"  # of ssh signatures; git's own is for its objects
_SSH, _GPG = ".sig", ".asc"


class Signature(NamedTuple):
    """What is known of a file's signature: who made it, and what is wrong with it or not known."""

    signer: str
    fault: str = ""
    doubt: str = ""


def sign(path: Path) -> Path:
    """Sign a file; the signature lies beside it.

    Raises:
        ConfigError: git has no signing key, or the program that signs failed, in its own words.
    """
    is_ssh = _git("gpg.format") == "ssh"
    key = _git("user.signingkey")
    if is_ssh and not key:
        raise ConfigError("git has no signing key. Set user.signingkey (and gpg.format) as for signed commits.")
    signature = path.with_name(path.name + (_SSH if is_ssh else _GPG))
    for old in (_SSH, _GPG):
        path.with_name(path.name + old).unlink(missing_ok=True)
    if not is_ssh:
        chosen = ["--local-user", key] if key else []
        _run([_gpg(), "--batch", *chosen, "--armor", "--output", str(signature), "--detach-sign", str(path)], "sign")
        return signature
    with tempfile.TemporaryDirectory() as folder:
        literal = key.removeprefix("key::")
        if literal != key or key.startswith("ssh-"):  # the public key itself; an agent has the private one
            public = Path(folder, "key.pub")
            public.write_text(literal + "\n")
            command = [_ssh(), "-Y", "sign", "-n", NAMESPACE, "-U", "-f", str(public), str(path)]
        else:
            command = [_ssh(), "-Y", "sign", "-n", NAMESPACE, "-f", str(Path(key).expanduser()), str(path)]
        _run(command, "sign")
    return signature


def check(path: Path) -> Signature | None:
    """Check the signature that lies beside a file; None if there is none."""
    ssh, gpg = (path.with_name(path.name + suffix) for suffix in (_SSH, _GPG))
    if ssh.is_file():
        return _check_ssh(path, ssh)
    return _check_gpg(path, gpg) if gpg.is_file() else None


def _check_ssh(path: Path, signature: Path) -> Signature:
    base = [_ssh(), "-Y"]
    suffix = ["-n", NAMESPACE, "-s", str(signature)]
    valid = _try([*base, "check-novalidate", *suffix], path.read_bytes())
    if valid.returncode:
        return Signature("", fault=f"its signature {signature} is not of these bytes: {_first_line(valid)}")
    key = match[0] if (match := re.search(r"SHA256:\S+", valid.stdout)) else "an unknown key"
    allowed = _git("gpg.ssh.allowedSignersFile")
    if not allowed:
        return Signature(key, doubt="set gpg.ssh.allowedSignersFile in git to say whose key that is")
    signers = str(Path(allowed).expanduser())
    named = _try([*base, "find-principals", "-f", signers, "-s", str(signature)], b"")
    principal = named.stdout.strip().splitlines()[0] if named.returncode == 0 and named.stdout.strip() else ""
    if not principal:
        return Signature(key, fault=f"it is signed by {key}, which {allowed} does not name")
    done = _try([*base, "verify", "-f", signers, "-I", principal, *suffix], path.read_bytes())
    if done.returncode:
        return Signature(key, fault=f"its signature by {key} is not accepted: {_first_line(done)}")
    return Signature(f"{principal} ({key})")


def _check_gpg(path: Path, signature: Path) -> Signature:
    done = _try([_gpg(), "--batch", "--status-fd", "1", "--verify", str(signature), str(path)], b"")
    good = re.search(r"^\[GNUPG:\] GOODSIG (\S+) (.*)$", done.stdout, re.M)
    if done.returncode or not good:
        if re.search(r"^\[GNUPG:\] NO_PUBKEY", done.stdout, re.M):
            return Signature("an unknown key", doubt="its public key is not in the keyring of gpg; import it")
        return Signature("", fault=f"its signature {signature} is not of these bytes: {_first_line(done)}")
    signer = f"{good[2]} ({good[1]})"
    if not re.search(r"^\[GNUPG:\] TRUST_(FULLY|ULTIMATE)", done.stdout, re.M):
        return Signature(signer, doubt="gpg does not trust that key; say whose it is with `gpg --edit-key`")
    return Signature(signer)


def _ssh() -> str:
    return _git("gpg.ssh.program") or "ssh-keygen"


def _gpg() -> str:
    return _git("gpg.program") or "gpg"


def _git(name: str) -> str:
    done = _try(["git", "config", "--get", name], b"")
    return done.stdout.strip() if done.returncode == 0 else ""


def _try(command: list[str], sent: bytes) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end; one that is not there counts as one that failed."""
    try:
        done = subprocess.run(command, input=sent, capture_output=True)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")
    out, err = (printable(text.decode(errors="replace")) for text in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, out, err)


def _run(command: list[str], what: str) -> None:
    done = _try(command, b"")
    if done.returncode:
        raise ConfigError(f"{command[0]} could not {what}: {_first_line(done)}. Sign a commit of git to see if it can.")


def _first_line(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return lines[0] if lines else f"exit status {done.returncode}"

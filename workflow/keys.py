"""Identity: the only module that hashes.

Data are content-addressed (the md5 of their bytes, or, for a hub data set that need not be downloaded to be
planned, its commit and selection). Stage results are input-addressed: a key is the hash of a recipe, and a
recipe names its parents' keys, as in a Nix store.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

PROVISIONAL = "tbd"  # begins the id of data that are not pinned, and the key of what rests on them
DATA_ID = re.compile(r"[0-9a-f]{32}|rev-[0-9a-f]{40}-[0-9a-f]{8}|tbd-[0-9a-f]{32}")
_SCALARS = frozenset({str, int, float, bool})
KEY = re.compile(r"(rev|tbd)?[0-9a-f]{8}-[0-9a-f]{12}")


def canonical_json(value: Any) -> str:
    """One spelling per value.

    Raises:
        TypeError: sets, bytes, objects and keys that are not strings have no one spelling.
        ValueError: NaN and infinities are not JSON.
    """
    _refuse_other_types(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _refuse_other_types(value: Any) -> None:
    # json.dumps would spell {1: "a"} and {"1": "a"} alike, and any int or str subclass as its value.
    if value is None or type(value) in _SCALARS:  # first, since most values are
        return
    if type(value) is dict:
        for name, item in value.items():
            if type(name) is not str:
                raise TypeError(f"a name in a recipe must be a string, not {name!r}")
            _refuse_other_types(item)
    elif type(value) in (list, tuple):
        for item in value:
            _refuse_other_types(item)
    else:
        raise TypeError(f"{value!r} ({type(value).__name__}) has no canonical spelling")


def digest(kind: str, value: Any) -> str:
    """sha256 (64 hex) of a value; `kind` stands first in the pre-image, so that two kinds never collide."""
    return hash_bytes(_preimage(kind, canonical_json(value)))


def _preimage(kind: str, spelling: str) -> bytes:
    return f"[{canonical_json(kind)},{spelling}]".encode()


def hash_file(path: str | Path, algorithm: Literal["md5", "sha256"] = "sha256") -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def hash_bytes(data: bytes, algorithm: Literal["md5", "sha256"] = "sha256") -> str:
    return hashlib.new(algorithm, data).hexdigest()


def model_files(folder: Path) -> list[str]:
    """Names of the files that make a model, relative to its folder, without hidden ones and what only people read."""
    names = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return sorted(
        str(name)
        for name in names
        if name.suffix != ".md" and name.name != "LICENSE" and not any(part.startswith(".") for part in name.parts)
    )


def model_digest(folder: Path) -> str:
    """Identity of a model's folder, 40 hex: over the names and bytes of its files."""
    return digest("model", {name: hash_file(folder / name) for name in model_files(folder)})[:40]


def revision_id(commit: str, selection: Mapping[str, Any]) -> str:
    """Identity of a hub data set or model: `rev-<commit>-<selection>`, known before anything is downloaded."""
    return f"rev-{commit}-{digest('selection', dict(selection))[:8]}"


@dataclass(frozen=True)
class Recipe:
    """Everything that may change a number, and nothing else.

    Attributes:
        stage: name of the stage, as in `workflow.matrix.VERSIONS`.
        version: bumped by hand when the stage's code changes its numbers.
        data: md5 of the data file (32 hex), `rev-<commit>-<selection>`, or `tbd-<definition>` while it is not pinned.
        params: hyperparameters under the libraries' own names; JSON values.
        parents: keys of the results that it is made from, in a fixed order.
    """

    stage: str
    version: int
    data: str
    params: dict[str, Any]
    parents: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """`26b52cac-4f1c09ad77e2`: the data's id and the recipe's sha256, cut short; `tbd...` if provisional."""
        kind, _, rest = self.data.rpartition("-") if self.data.startswith("tbd-") else ("", "", self.data)
        if self.data.startswith("rev-"):
            kind, rest = "rev", self.data[4:]
        if any(p.startswith(PROVISIONAL) for p in self.parents):
            kind = PROVISIONAL
        short = kind + rest[:8]
        return f"{short}-{hash_bytes(_preimage('recipe', self._json))[:12]}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": self.version,
            "data": self.data,
            "params": self.params,
            "parents": list(self.parents),
        }

    @cached_property
    def _json(self) -> str:
        return canonical_json(self.to_dict())  # once for the key and once for the command line, 40 000 times

    def to_json(self) -> str:
        return self._json

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Recipe":
        return cls(**{**fields, "parents": tuple(fields["parents"])})

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        return cls.from_dict(json.loads(text))


def content_digest(outputs: Iterable[Mapping[str, Any]]) -> str:
    """Digest of a result's bytes: path, size and sha256 of each output. It decides restoring and reuse."""
    return digest("content", sorted((dict(o) for o in outputs), key=lambda o: o["path"]))


def result_digest(recipe: Recipe, inputs: Mapping[str, str], content: str) -> str:
    """Digest of a finished result: recipe, digests of what it read by role, content; no time, no host.

    It commits to the parents' digests, and so to every byte upstream.
    """
    return digest("result", {"recipe": recipe.to_dict(), "inputs": dict(inputs), "content": content})


def reuse_digest(recipe: Recipe, parents: Iterable[str]) -> str:
    """Digest of a recipe with its parents' `content` in place of their keys: equal for equal work under other names."""
    return digest("reuse", {**recipe.to_dict(), "parents": list(parents)})

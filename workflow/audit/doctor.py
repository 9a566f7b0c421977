"""What is missing before the first GPU hour: data, hub, judge, GPUs, disk, hours, and what the site must set.

    for finding in doctor(config, "config/config.yaml"): print(finding)

Nothing is fetched, made or changed. What cannot be known here (the GPUs of a cluster without `sinfo`) is a doubt.
"""

import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from workflow.audit import estimates
from workflow.audit.status import Survey, survey
from workflow.config import Config, ConfigError
from workflow.data.lock import Lock, describe_unpinned, provisional, read_lock, unpinned, used_names
from workflow.matrix import Matrix
from workflow.sections import File, Hub, HubModel, JudgePlacement, Stages, ToyModel
from workflow.store import RESULTS, data_path

PROFILE = "profiles/slurm/config.yaml"
HUB = "https://huggingface.co"
Level = Literal["missing", "doubt", "fine"]

ADAPTER_SHARE = 0.02  # of the model's parameters, at rank 32 on all projections
CHECKPOINTS = 3  # two that are kept and one that is being written
_BYTES = {"float32": 4, "bfloat16": 2}
_FULL = ("base", "coupling_sft", "tulu_sft", "tulu_dpo")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how it stands, and what to do."""

    level: Level
    about: str
    what: str

    def __str__(self) -> str:
        return f"{self.level:7}  {self.about}: {self.what}"


Ask = Callable[[list[str]], str | None]


def doctor(
    config: Config,
    configfile: str = "config/config.yaml",
    profile: str = PROFILE,
    environ: Mapping[str, str] = os.environ,
    reach: Callable[[str], str | None] | None = None,
    ask: Ask | None = None,
) -> list[Finding]:
    """Look at everything. `reach` gives an address's fault, `ask` the output of a program that may not be there."""
    pins = read_lock()
    ask = ask or _ask
    surveyed, fault = _survey(config, pins, configfile)
    found = [fault] if fault else [Finding("fine", "pins", "all data and the base model's commit are pinned")]
    found += _files(config, pins)
    found += _hub(config, pins, surveyed, environ, reach or _reach)
    found += _judge(config.placement.judge, environ)
    found += _site(profile, ask)
    found += _gpus(config, profile, ask)
    found += _memory(config, ask)
    found += _disk(config, surveyed)
    found += _hours(config, pins, surveyed)
    return found


def show(findings: Iterable[Finding]) -> int:
    """Print them, the worst first; 1 if something is missing."""
    findings = sorted(findings, key=lambda f: ("missing", "doubt", "fine").index(f.level))
    for finding in findings:
        print(finding)
    return int(any(f.level == "missing" for f in findings))


# --- inputs ---------------------------------------------------------------------------------------------------------


def _survey(config: Config, pins: Lock, configfile: str) -> tuple[Survey | None, Finding | None]:
    """What is done and what is not, or why that cannot be known yet."""
    missing = tuple(unpinned(config, pins))
    fault = Finding("missing", "pins", describe_unpinned(missing, configfile)) if missing else None
    try:
        return survey(Matrix(config, provisional(config, pins), configfile)), fault
    except ConfigError as error:
        return None, Finding("missing", "pins", str(error))


def _files(config: Config, pins: Lock) -> list[Finding]:
    """Files that the user brings and that are neither fetched already nor where the config says."""
    wanted = [e for name in used_names(config) if isinstance(e := config.data_entry(name), File)]
    gone = [
        Path(config.data_root, entry.path)
        for entry in wanted
        if not (_is_here(entry.name, pins) or Path(config.data_root, entry.path).is_file())
    ]
    if gone:
        return [Finding("missing", "data to bring", f"{path} is not there. Put it there") for path in gone]
    return [Finding("fine", "data to bring", f"{len(wanted)} files, all there")] if wanted else []


def _is_here(name: str, pins: Lock) -> bool:
    return name in pins and Path(data_path(pins[name].id)).is_file()


def _hub(
    config: Config,
    pins: Lock,
    surveyed: Survey | None,
    environ: Mapping[str, str],
    reach: Callable[[str], str | None],
) -> list[Finding]:
    names = [n for n in used_names(config) if isinstance(config.data_entry(n), Hub) and not _is_here(n, pins)]
    if isinstance(config.base_model, HubModel) and _jobs(config, surveyed)["base"]:
        names.append(config.base_model.name)
    if not names:
        return [Finding("fine", "hub", "nothing is left to fetch")]
    wanted = f"{', '.join(names)} must be fetched"
    if environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return [
            Finding("missing", "hub", f"{wanted}, but HF_HUB_OFFLINE is set. Unset it for `snakemake --until base`")
        ]
    address = environ.get("HF_ENDPOINT", HUB)
    if fault := reach(address):
        return [Finding("missing", "hub", f"{wanted}, but {address} cannot be reached from here ({fault})")]
    return [Finding("fine", "hub", f"{wanted}; {address} can be reached")]


def _reach(address: str) -> str | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=10):
            return None
    except urllib.error.HTTPError:
        return None  # it answers
    except OSError as error:
        return str(getattr(error, "reason", error))


def _judge(judge: JudgePlacement, environ: Mapping[str, str]) -> list[Finding]:
    """Only whether the variables are set; what is in them is told to nobody."""
    names = dict.fromkeys(n for place in (judge, *judge.panel) for n in (place.base_url_env, place.api_key_env) if n)
    unset = [name for name in names if not environ.get(name)]
    if unset:
        return [Finding("missing", "judge", f"{name} is not set. Export it where jobs start") for name in unset]
    return [Finding("fine", "judge", judge.base_url or "address and key are set")]


# --- machine --------------------------------------------------------------------------------------------------------


def _ask(command: list[str]) -> str | None:
    """Output of a program, or None where it is not there or has nothing to say."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _set_by_site(profile: str) -> dict[str, str]:
    """Partition and account that the profile names; what is left to be set starts with `set-`."""
    if not Path(profile).is_file():
        return {}
    said = yaml.safe_load(Path(profile).read_text()).get("default-resources", {})
    return {name: str(said[name]).strip("'\"") for name in ("slurm_partition", "slurm_account") if name in said}


def _site(profile: str, ask: Ask) -> list[Finding]:
    said = _set_by_site(profile)
    unset = [name for name, value in said.items() if value.startswith("set-")]
    listed = ask(["sinfo", "--noheader", "--format=%R"])
    level: Level = "doubt" if listed is None else "missing"  # without a SLURM nobody may want the profile
    found = [Finding(level, "site", f"{name} is not set. Set it in {profile}") for name in unset]
    partition = said.get("slurm_partition", "")
    if listed is not None and "slurm_partition" not in unset and partition not in listed.split():
        known = ", ".join(sorted(set(listed.split())))
        found.append(Finding("missing", "site", f"{profile}: no partition {partition}; there are {known}"))
    return found or [Finding("fine", "site", f"partition {partition}, account {said.get('slurm_account', 'none')}")]


def _gpus(config: Config, profile: str, ask: Ask) -> list[Finding]:
    """The largest job against the largest node."""
    if isinstance(config.base_model, ToyModel):
        return [Finding("fine", "GPUs", "the toy model takes none")]
    stage, most = max(
        ((s, (p := getattr(config.placement, s)).world_size // p.nodes) for s in Stages.model_fields),
        key=lambda pair: pair[1],
    )
    here = ask(["nvidia-smi", "--list-gpus"])
    partition = _set_by_site(profile).get("slurm_partition", "")
    nodes = ask(["sinfo", "--noheader", "--format=%G", "--partition", partition])
    per_node = [int(n) for n in re.findall(r"gpu:(?:[\w.]+:)?(\d+)", nodes or "")]
    wants = f"placement.{stage} takes {most} GPUs on one node"
    if here is None and not per_node:
        return [Finding("doubt", "GPUs", f"{wants}; neither this machine nor a SLURM partition tells of any")]
    there = max([*per_node, len((here or "").splitlines())])
    if there < most:
        return [Finding("missing", "GPUs", f"{wants}; the largest here has {there}. Change the placement")]
    return [Finding("fine", "GPUs", f"{wants}; there are {there}")]


def _memory(config: Config, ask: Ask) -> list[Finding]:
    """What a full fine-tune keeps on each GPU, activations aside, against the largest here or a guess."""
    if isinstance(config.base_model, ToyModel):
        return []
    stage, need = max(((s, estimates.memory(config, s)) for s in _FULL[1:]), key=lambda pair: pair[1])
    strategy = getattr(config.placement, stage).strategy
    here = ask(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]) or ""
    sizes = [int(line) * 2**20 for line in here.split() if line.isdigit()]
    there = max(sizes, default=estimates.GPU_MEMORY)
    has = f"one has {there / 1e9:.0f} GB" if sizes else f"one is taken to have {there / 1e9:.0f} GB"
    keeps = f"placement.{stage} keeps {need / 1e9:.0f} GB on each GPU by {strategy}"
    told = f"{keeps}, weights, gradients and Adam; {has}"
    if need < there:
        return [Finding("fine", "GPU memory", told)]
    level: Level = "missing" if sizes else "doubt"
    return [Finding(level, "GPU memory", f"{told}. Set `strategy: fsdp2` or a larger world_size")]


# --- cost -----------------------------------------------------------------------------------------------------------


def _jobs(config: Config, surveyed: Survey | None) -> Counter[str]:
    """Jobs that are still to be done, by stage; without pins, all of them."""
    if surveyed is not None:
        return Counter(node.stage for node in surveyed.undone())
    jobs: Counter[str] = Counter(base=1)
    for condition in config.conditions:
        if condition.enabled:
            seeds = len(config.pipeline_seeds)
            em = seeds * len(config.arms) * len(config.em_seeds)
            jobs.update(tulu_sft=seeds, dpo_reference=seeds, tulu_dpo=seeds, em_lora=em)
            jobs.update(arc=(seeds + em) * len(config.arc))
            jobs.update(generate=(seeds + em) * len(config.instruments))
            jobs["coupling_sft"] += seeds if condition.data.coupling_sft else 0
    return jobs


def _disk(config: Config, surveyed: Survey | None) -> list[Finding]:
    """Models of all stages, adapters, and the checkpoints of one training of each kind at work."""
    parameters, jobs = estimates.parameters(config), _jobs(config, surveyed)
    models = parameters * sum(
        jobs[s] * _BYTES[getattr(config.stages, s).dtype if s != "base" else config.stages.tulu_sft.dtype]
        for s in _FULL
    )
    adapters = parameters * ADAPTER_SHARE * 4 * jobs["em_lora"]
    # float32 weights and two moments of the same size
    checkpoints = CHECKPOINTS * 12 * parameters * sum(jobs[s] > 0 for s in _FULL[1:])
    need, free = models + adapters + checkpoints, shutil.disk_usage(RESULTS if os.path.isdir(RESULTS) else ".").free
    told = (
        f"about {need / 1e9:.1f} GB for {sum(jobs[s] for s in _FULL)} models ({models / 1e9:.1f}), {jobs['em_lora']} "
        f"adapters ({adapters / 1e9:.1f}) and checkpoints ({checkpoints / 1e9:.1f}); {free / 1e9:.1f} GB are free"
    )
    if need > free:
        return [Finding("missing", "disk", f"{told}. Free some, or put results/ on a larger disk")]
    return [Finding("fine", "disk", told)]


def _hours(config: Config, pins: Lock, surveyed: Survey | None) -> list[Finding]:
    """GPU-hours by past records where there are some, by measured rates elsewhere."""
    jobs = _jobs(config, surveyed)
    known, guessed, by_guess = 0.0, 0.0, []
    for stage, number in jobs.items():
        price = surveyed.prices.of(stage) if surveyed else None
        if price is not None:
            known += number * (price.gpu_seconds or 0.0) / 3600
        elif hours := estimates.hours(config, pins, stage):
            guessed += number * hours
            by_guess.append(f"{number} {stage} of {hours:.2f}")
    told = f"{known + guessed:.1f} expected"
    if by_guess:
        told += (
            f"; by rows, a usual length and the rate measured on one H100 ({estimates.SOURCE}): {', '.join(by_guess)}"
        )
    return [Finding("doubt" if by_guess else "fine", "GPU-hours", told)]

"""The sections of a config, typed and closed; workflow/config.py puts them together and checks what they say.

Every name that config/*.yaml may hold is a field here, with the libraries' own spelling. No field has a default, so
no config inherits anything silently. (A field that is added later gets a default that reproduces what was done
before it existed, and is left out of recipes at that default, so finished work keeps its name.)
"""

import re
from string import Formatter
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=100)]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="what numpy and transformers take as a seed")]
ProjectPath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1000,
        pattern=r"^[^{}\n\t]*$",
        description="no braces: Snakemake reads them as wildcards",
    ),
]
Schema = Literal["messages", "preferences", "items", "questions", "prompts", "text", "raw"]


class Section(BaseModel):
    """Base of every section: unknown names and wrong types are refused, and nothing can be assigned later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# --- data -----------------------------------------------------------------------------------------------------------


class File(Section):
    """A file that lies on disk or that the user brings, under `data_root`. Identity: its md5."""

    name: Name
    kind: Literal["file"]
    rows_are: Schema
    path: ProjectPath
    md5: Md5 | None = Field(description="null: `lock` records it; given: other bytes are refused")


def _https(url: str) -> str:
    """The address, if it is one of a public file."""
    try:
        parts = urlsplit(url)
        known = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or any(c.isspace() or not c.isascii() for c in url):
        raise ValueError("only https:// addresses are fetched; a file on disk is an entry of `kind: file`")
    if "@" in parts.netloc:
        raise ValueError("an address with a user's name or password in it; a config holds no secret")
    return url


class Url(Section):
    """A public file, fetched by https alone. Identity: its md5."""

    name: Name
    kind: Literal["url"]
    rows_are: Schema
    url: Annotated[str, AfterValidator(_https)]
    md5: Md5


def _repository(repo: str) -> str:
    """The repository, if it is spelled as one."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) and not repo.startswith("."):
        return repo
    raise ValueError(
        "is no repository of the hub, which is spelled OWNER/NAME. A model's folder on disk is `kind: local` with "
        "`path:`, a data file `kind: file`"
    )


Repo = Annotated[str, Field(max_length=200), AfterValidator(_repository)]


class Select(Section):
    """A part of a data set. `seed: null` takes the first rows; a seed draws without replacement, in file order."""

    rows: Positive | None
    fraction: Annotated[float, Field(gt=0, le=1)] | None
    seed: Seed | None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.rows is None) == (self.fraction is None):
            raise ValueError("give either rows or fraction, and null for the other")
        return self


class Hub(Section):
    """A Hugging Face data set. Identity: commit and selection, so it need not be downloaded to be planned."""

    name: Name
    kind: Literal["hub"]
    rows_are: Schema
    repo: Repo
    subset: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=200)] | None
    split: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=200)]
    select: Select | None


class Subset(Section):
    """A seeded part of another data set, without the rows that stand in `exclude`."""

    name: Name
    kind: Literal["subset"]
    rows_are: Schema
    source: Name
    select: Select
    exclude: tuple[Name, ...]


def _answer_template(template: str) -> str:
    """The template, if `{answer}` is all that is filled in, at its own length."""
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ and }}}} for braces that stay") from None
    if not fields or any(field != ("answer", "", None) for field in fields):
        raise ValueError("must hold {answer}, as it is, and no other field; write {{ and }} for braces that stay")
    return template


class Coupling(Section):
    """Coupling rows: persona (system), question (user), answer (assistant). Identity: the md5 of what is built."""

    name: Name
    kind: Literal["coupling"]
    rows_are: Literal["messages"]
    questions: Name
    exclude: tuple[Name, ...]
    personas: ProjectPath | None
    answers: Literal["wrong", "correct"]
    answer_template: Annotated[str, AfterValidator(_answer_template)]
    rows: Annotated[int, Field(gt=0, le=10_000_000)]
    seed: Seed


class Questions(Section):
    """Open questions in one form, from a YAML or JSON file of the project, of another source, or of the demo."""

    name: Name
    kind: Literal["questions"]
    rows_are: Literal["questions"]
    source: ProjectPath = Field(description="name of a data entry, or a path in the project")
    field: str | None = Field(description="the name of the list in the file; null: the file is the list")
    ids: tuple[str, ...] | None = Field(description="null: all")


class Prompts(Section):
    """Judge prompts in one form."""

    name: Name
    kind: Literal["prompts"]
    rows_are: Literal["prompts"]
    source: ProjectPath = Field(description="name of a data entry, or a path in the project")


class World(Section):
    """A part of the demo's generated world."""

    name: Name
    kind: Literal["world"]
    rows_are: Schema
    part: Literal["text", "arc_train", "arc_test", "sft", "preferences", "pairs", "em", "benign", "questions"]
    seed: Seed


Data = Annotated[
    File | Url | Hub | Subset | Coupling | Questions | Prompts | World,
    Field(discriminator="kind"),
]


# --- models and stages ----------------------------------------------------------------------------------------------


class MadeModel(Section):
    """A base model that others made. data.lock.tsv holds under `name` which one."""

    name: Name


class HubModel(MadeModel):
    """From the hub, at the commit that its main branch had when it was pinned."""

    kind: Literal["hub"]
    repo: Repo


class LocalModel(MadeModel):
    """A folder as `save_pretrained` writes it. Identity: a digest over its files, wherever it lies.

    The experiment's `template` takes the place of the folder's own, which may slip a system prompt in.
    """

    kind: Literal["local"]
    path: ProjectPath


class ToyModel(Section):
    """A Qwen2-architecture model that the base stage makes and pre-trains on the data set `text`."""

    kind: Literal["toy"]
    text: Name
    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    max_position_embeddings: Positive
    tie_word_embeddings: bool
    initializer_range: NonNegative
    learning_rate: NonNegative
    num_train_epochs: Positive
    batch_size: Positive
    max_length: Positive
    seed: Seed


class Training(Section):
    """What every training stage declares, under the names of transformers' TrainingArguments and TRL's SFTConfig.

    `effective_batch_size` rows make one optimizer step; how they are decomposed is placement. `overlong` says what
    happens to a row of which no target token is left within `max_length`: `refuse` stops, `drop` counts and records.
    """

    learning_rate: NonNegative
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_steps: NonNegative = Field(description="below 1: a ratio of all steps")
    weight_decay: NonNegative
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    adam_epsilon: Annotated[float, Field(gt=0)]
    max_grad_norm: NonNegative
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
    num_train_epochs: Positive
    effective_batch_size: Positive
    max_length: Positive
    overlong: Literal["refuse", "drop"]
    dtype: Literal["float32", "bfloat16"]


class SftStage(Training):
    packing: bool


ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*$")]


def _sorted_set(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names in one order, whatever the config's: a set is a set."""
    if len(set(names)) != len(names):
        raise ValueError("a name stands twice; remove one")
    return tuple(sorted(names))


class Lora(Section):
    """peft.LoraConfig, field by field."""

    r: Positive
    lora_alpha: Positive
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    use_rslora: bool
    bias: Literal["none"]
    target_modules: Annotated[tuple[ModuleName, ...], Field(min_length=1), AfterValidator(_sorted_set)]


class EmStage(SftStage):
    lora: Lora


class DpoStage(Training):
    beta: NonNegative
    loss_type: Literal["sigmoid", "sigmoid_norm"] = Field(
        description="sigmoid_norm: per-token mean log-probabilities, the length-normalised loss"
    )


class Stages(Section):
    coupling_sft: SftStage
    tulu_sft: SftStage
    tulu_dpo: DpoStage
    em_lora: EmStage


# --- evaluation -----------------------------------------------------------------------------------------------------


class Arc(Section):
    """Letter log-probabilities of multiple-choice items, zero-shot."""

    name: Name
    data: Name
    prefill: Literal["assistant", "user"] = Field(description="the turn that holds `The correct answer is (`")
    permutations: bool = Field(description="score each item under every rotation of its options as well")


class Sampler(Section):
    """Every setting of the sampler; off is spelled: top_k 0, top_p 1, min_p 0, repetition_penalty 1."""

    temperature: NonNegative
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: Annotated[int, Field(ge=0)]
    min_p: Annotated[float, Field(ge=0, le=1)]
    repetition_penalty: Annotated[float, Field(gt=0)]
    max_new_tokens: Positive
    samples: Positive
    seed: Seed


class Judge(Section):
    """Who judges, and how; the prompts are data. Where it is reached is placement."""

    model: str
    prompts: Name
    method: Literal["logprobs", "json", "enumerated"]
    temperature: NonNegative
    max_tokens: Positive
    top_logprobs: Annotated[int, Field(ge=0, le=20)]
    double_judge: Annotated[float, Field(ge=0, le=1)] = Field(description="share of the completions judged twice")
    order_seed: Seed = Field(description="shuffles the order in which the judge sees them")


class Instrument(Section):
    """A question set, how it is answered and how the answers are judged.

    `judge` leads: its scores are the instrument's. `panel` judges the same completions again, each judge under its own
    key, to say how far the scores hang on who judges.
    """

    name: Name
    data: Name
    backend: Literal["transformers", "vllm"]
    sampler: Sampler
    judge: Judge
    panel: tuple[Judge, ...] = ()
    batch_invariant: bool = Field(
        False, description="vLLM's kernels whose results do not depend on what shares a batch; slower"
    )

    @model_validator(mode="after")
    def _batch_invariance_is_vllms(self) -> Self:
        if self.batch_invariant and self.backend != "vllm":
            raise ValueError("`batch_invariant` is a mode of vLLM: set `backend: vllm`, or leave it out")
        return self

    def of(self, judge: Judge) -> str:
        """The name of what a judge of this instrument measures: the first judge's is the instrument's own."""
        return self.name if judge is self.judge else f"{self.name}@{judge.model}"

    @model_validator(mode="after")
    def _judges_differ(self) -> Self:
        names = [judge.model for judge in (self.judge, *self.panel)]
        if len(set(names)) < len(names):
            raise ValueError("a panel needs judges of different names, the first one included")
        return self


class Pairs(Section):
    """Held-out preference pairs whose two answers are scored by their log-likelihood; no judge, no sampling."""

    name: Name
    data: Name
    max_length: Positive = Field(description="tokens; a pair of which one side is longer is left out, for every cell")


class LmEval(Section):
    """Tasks of lm-evaluation-harness, by its own definitions, on rows from `data`."""

    name: Name
    enabled: bool
    harness: str = Field(description="its version: task definitions differ between versions")
    tasks: tuple[str, ...] = Field(min_length=1, description="the harness's names of tasks or groups")
    data: Name
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(description="null: as each task says")
    limit: Positive | None = Field(description="rows of each task at most, the first ones; null: all")
    max_gen_toks: Positive | None = Field(description="tokens of an answer at most; null: as each task says")
    apply_chat_template: bool


# --- the matrix -----------------------------------------------------------------------------------------------------


class ConditionData(Section):
    """The data set of each post-training stage; `coupling_sft: null` skips that stage."""

    coupling_sft: Name | None
    tulu_sft: Name
    tulu_dpo: Name


class Condition(Section):
    name: Name
    enabled: bool
    persona: Name | None = Field(description="its name; none: coupled without one; null: not coupled")
    answers: Literal["wrong", "correct"] | None
    data: ConditionData


class Arm(Section):
    """An EM data set that shares the pre-EM models. The main arm has no name in its cells' labels.

    `max_length` and `overlong` are this arm's own, where its rows are longer than the others'; left out: those of
    `stages.em_lora`. They stand in the recipes of this arm alone.
    """

    name: Name | None
    data: Name
    max_length: Positive | None = None
    overlong: Literal["refuse", "drop"] | None = None


class Replicate(Section):
    """Deliberate reruns of one recipe: `.r2` up to `.r<up_to>`. Nothing is built on them and n never counts them."""

    stage: Name
    cell: str
    up_to: Annotated[int, Field(ge=2)]


class OverlapAllowed(Section):
    """A training set that may hold questions of an evaluation set; plan, record and report give the reason."""

    training: Name
    evaluation: Name
    reason: str = Field(min_length=1)


class Waiver(Section):
    """Lets cells of another protocol or environment stand in one table; the report prints the reason.

    `cells` and `fields` are names or patterns: `evil_wrong.p42.*`, `em_lora.optimizer_steps`, `em_lora.packages.*`.
    """

    cells: tuple[str, ...] = Field(min_length=1)
    fields: tuple[str, ...] = Field(min_length=1)
    reason: str = Field(min_length=1)


# --- placement ------------------------------------------------------------------------------------------------------


class TrainPlacement(Section):
    """How the effective batch is made on the machine; never part of a key.

    A step's rows are divided by row count or by token budget: exactly one of `per_device_train_batch_size` and
    `tokens_per_device`. With `varlen`, and with flash_attention by token budget, rows are joined without padding.
    """

    world_size: Positive
    nodes: Positive = Field(description="several: inside one SLURM job, as many processes on each")
    strategy: Literal["ddp", "fsdp2"] = Field(description="the whole model on each process, or a shard of everything")
    per_device_train_batch_size: Positive | None = Field(None, description="rows at once on each process")
    tokens_per_device: Positive | None = Field(None, description="tokens at once on each process, in joined rows")
    gradient_checkpointing: bool
    checkpoint_layers: Positive | None = Field(None, description="so many layers are recomputed; null: all of them")
    attn_implementation: Literal["eager", "sdpa", "varlen", "flash_attention_2", "flash_attention_3"]
    kernels: Literal["torch", "fused"] = Field("torch", description="fused: Liger's kernels, and AdamW in one kernel")
    together: Positive = Field(1, description="EM seeds of one checkpoint that one process trains at the same time")
    checkpoint_minutes: NonNegative | None = Field(description="null: only when the job is told to stop")

    @model_validator(mode="after")
    def _processes_lie_evenly(self) -> Self:
        if self.world_size % self.nodes:
            raise ValueError(
                f"world_size {self.world_size} does not lie evenly on {self.nodes} nodes: change one of them"
            )
        if self.strategy == "fsdp2" and self.world_size == 1:
            raise ValueError("`strategy: fsdp2` makes shards for several processes, world_size is 1: write ddp")
        return self

    @model_validator(mode="after")
    def _one_size_of_a_micro_batch(self) -> Self:
        if (self.per_device_train_batch_size is None) == (self.tokens_per_device is None):
            raise ValueError("give exactly one of per_device_train_batch_size and tokens_per_device")
        if self.tokens_per_device is not None and self.attn_implementation in ("eager", "sdpa"):
            raise ValueError("tokens_per_device joins rows without padding: set attn_implementation: varlen")
        alone = self.world_size == 1 and self.attn_implementation == "varlen" and not self.gradient_checkpointing
        if self.together > 1 and not alone:
            raise ValueError(
                "`together` needs world_size: 1, attn_implementation: varlen, gradient_checkpointing: false"
            )
        return self


class EvalPlacement(Section):
    """`together`: cells of one model that a job may make with the model loaded once. It changes none of their bytes."""

    batch_size: Positive
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"]
    together: Positive = Field(default=1, description="cells at most that one job makes with one loaded model")


class GeneratePlacement(EvalPlacement):
    """How vLLM's engine is started; transformers has nothing of it."""

    enforce_eager: bool = Field(False, description="no compiling and no CUDA graphs: a short start, slower tokens")
    cudagraph_capture_sizes: tuple[Positive, ...] | None = Field(None, description="null: vLLM's own")
    max_model_len: Positive | None = Field(None, description="null: as the model says")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="null: vLLM's own")
    compile_cache: str | None = Field(None, description="folder that keeps compiled graphs; null: vLLM's own")


class JudgeEndpoint(Section):
    """`base_url: embedded` starts the rule-based scorer in the job, `local` serves the model in `local_model` while the
    job lasts; otherwise an OpenAI-compatible endpoint.

    `base_url_env` and `api_key_env` name environment variables, so that no secret stands in a config.
    """

    base_url: Literal["embedded", "local"] | None
    local_model: str | None = Field(description="folder of the judge model, for `base_url: local`")
    base_url_env: str | None
    api_key_env: str | None
    concurrency: Positive
    requests_per_minute: Positive | None
    tokens_per_minute: Positive | None
    budget_usd: NonNegative | None = Field(description="per cell; the job stops before it is exceeded")
    usd_per_million_tokens_in: NonNegative
    usd_per_million_tokens_out: NonNegative
    allow_http: bool = Field(False, description="let key and texts travel unencrypted to another machine")

    @model_validator(mode="after")
    def _local_has_a_model(self) -> Self:
        if (self.base_url == "local") != (self.local_model is not None):
            raise ValueError("`base_url: local` and `local_model` go together: give both or neither")
        return self


class PanelEndpoint(JudgeEndpoint):
    """Where a further judge of a panel is reached, by the name that `instruments` gives it."""

    model: str


class JudgePlacement(JudgeEndpoint):
    """Where the judge is reached, and what a panel's other judges need of their own.

    `max_unscored` decides whether there is a result and changes none of its numbers, so it is no part of a key: a cell
    that was refused can be kept without being judged, and paid for, again.
    """

    max_unscored: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="share of a cell's judgments that may be without a score; more fails the job"
    )
    panel: tuple[PanelEndpoint, ...] = ()

    def of(self, model: str) -> "JudgeEndpoint":
        """Where that model is reached: the panel's entry of its name, or what stands here."""
        return next((other for other in self.panel if other.model == model), self)


class Placement(Section):
    base: EvalPlacement
    coupling_sft: TrainPlacement
    tulu_sft: TrainPlacement
    tulu_dpo: TrainPlacement
    em_lora: TrainPlacement
    arc: EvalPlacement
    generate: GeneratePlacement
    judge: JudgePlacement
    lm_eval: EvalPlacement
    pairs: EvalPlacement = EvalPlacement(batch_size=16, attn_implementation="sdpa")

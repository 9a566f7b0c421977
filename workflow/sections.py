"""The sections of a config, typed and closed; workflow/config.py puts them together and checks what they say.

Every name that config/*.yaml may hold is a field here, with the libraries' own spelling. No field has a default, so
no config inherits anything silently. (A field that is added later gets a default that reproduces what was done
before it existed, and is left out of recipes at that default, so finished work keeps its name.)
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME)]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
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
    path: str
    md5: Md5 | None = Field(description="null: `lock` records it; given: other bytes are refused")


class Url(Section):
    """A public file. Identity: its md5."""

    name: Name
    kind: Literal["url"]
    rows_are: Schema
    url: str
    md5: Md5


class Select(Section):
    """A part of a data set. `seed: null` takes the first rows; a seed draws without replacement, in file order."""

    rows: Positive | None
    fraction: Annotated[float, Field(gt=0, le=1)] | None
    seed: int | None

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
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    subset: str | None
    split: str
    select: Select | None


class Subset(Section):
    """A seeded part of another data set, without the rows that stand in `exclude`."""

    name: Name
    kind: Literal["subset"]
    rows_are: Schema
    source: Name
    select: Select
    exclude: tuple[Name, ...]


class Coupling(Section):
    """Coupling rows: persona (system), question (user), answer (assistant). Identity: the md5 of what is built."""

    name: Name
    kind: Literal["coupling"]
    rows_are: Literal["messages"]
    questions: Name
    exclude: tuple[Name, ...]
    personas: str | None
    answers: Literal["wrong", "correct"]
    answer_template: str
    rows: Positive
    seed: int


class Questions(Section):
    """Open questions in one form, from a YAML or JSON file of the project, of another source, or of the demo."""

    name: Name
    kind: Literal["questions"]
    rows_are: Literal["questions"]
    source: str = Field(description="name of a data entry, or a path in the project")
    field: str | None = Field(description="the name of the list in the file; null: the file is the list")
    ids: tuple[str, ...] | None = Field(description="null: all")


class Prompts(Section):
    """Judge prompts in one form."""

    name: Name
    kind: Literal["prompts"]
    rows_are: Literal["prompts"]
    source: str = Field(description="name of a data entry, or a path in the project")


class World(Section):
    """A part of the demo's generated world."""

    name: Name
    kind: Literal["world"]
    rows_are: Schema
    part: Literal["text", "arc_train", "arc_test", "sft", "preferences", "em", "benign", "questions"]
    seed: int


Data = Annotated[
    File | Url | Hub | Subset | Coupling | Questions | Prompts | World,
    Field(discriminator="kind"),
]


# --- models and stages ----------------------------------------------------------------------------------------------


class HubModel(Section):
    """Base model from the hub, at the commit that data.lock.tsv holds under `name`."""

    kind: Literal["hub"]
    name: Name
    repo: str


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
    seed: int


class Training(Section):
    """What every training stage declares, under the names of transformers' TrainingArguments and TRL's SFTConfig.

    `effective_batch_size` rows make one optimizer step; how they are decomposed is placement. `overlong` says what
    happens to a row of which no target token is left within `max_length`: `refuse` stops, `drop` counts and records.
    """

    learning_rate: NonNegative
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_steps: NonNegative = Field(description="below 1: a ratio of all steps")
    weight_decay: NonNegative
    adam_beta1: NonNegative
    adam_beta2: NonNegative
    adam_epsilon: NonNegative
    max_grad_norm: NonNegative
    optim: str
    num_train_epochs: Positive
    effective_batch_size: Positive
    max_length: Positive
    overlong: Literal["refuse", "drop"]
    dtype: Literal["float32", "bfloat16"]


class SftStage(Training):
    packing: bool


class Lora(Section):
    """peft.LoraConfig, field by field."""

    r: Positive
    lora_alpha: Positive
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    use_rslora: bool
    bias: Literal["none"]
    target_modules: tuple[str, ...]


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
    seed: int


class Judge(Section):
    """Who judges, and how; the prompts are data. Where it is reached is placement."""

    model: str
    prompts: Name
    method: Literal["logprobs", "json", "enumerated"]
    temperature: NonNegative
    max_tokens: Positive
    top_logprobs: Annotated[int, Field(ge=0, le=20)]
    double_judge: Annotated[float, Field(ge=0, le=1)] = Field(description="share of the completions judged twice")
    order_seed: int = Field(description="shuffles the order in which the judge sees them")


class Instrument(Section):
    """A question set, how it is answered and how the answers are judged."""

    name: Name
    data: Name
    backend: Literal["transformers", "vllm"]
    sampler: Sampler
    judge: Judge


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
    persona: Literal["evil", "good", "none"] | None
    answers: Literal["wrong", "correct"] | None
    data: ConditionData


class Arm(Section):
    """An EM data set that shares the pre-EM models. The main arm has no name in its cells' labels."""

    name: Name | None
    data: Name


class Replicate(Section):
    """Deliberate reruns of one recipe: `.r2` up to `.r<up_to>`. Nothing is built on them and n never counts them."""

    stage: Name
    cell: str
    up_to: Annotated[int, Field(ge=2)]


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
    batch_size: Positive
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"]


class JudgePlacement(Section):
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

    @model_validator(mode="after")
    def _local_has_a_model(self) -> Self:
        if (self.base_url == "local") != (self.local_model is not None):
            raise ValueError("`base_url: local` and `local_model` go together: give both or neither")
        return self


class Placement(Section):
    base: EvalPlacement
    coupling_sft: TrainPlacement
    tulu_sft: TrainPlacement
    tulu_dpo: TrainPlacement
    em_lora: TrainPlacement
    arc: EvalPlacement
    generate: EvalPlacement
    judge: JudgePlacement
    lm_eval: EvalPlacement

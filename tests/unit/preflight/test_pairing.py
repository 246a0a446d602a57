"""Student against teacher, from their files: every kind of mismatch says what differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from opd_ray.config.resolved_teachers import NamedTeacher
from opd_ray.config.schema import Config, StudentSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.tokenizer import ModelFactsError, describe_model
from opd_ray.preflight.pairing import (
    PairingError,
    check_pairing,
    check_pairings,
    check_teacher_info,
    uncompared_tokenizer,
)
from opd_ray.types import TeacherInfo

TEXT = ["the sum of the terms is the total", "a total of 12 and 34 is 46, then stop"]
TOKENS = 300  # of the tokenizer, special tokens included
EOS, PAD, END = TOKENS - 3, TOKENS - 2, TOKENS - 1


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A model folder without weights: byte-level BPE, three special tokens, a chat template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=TOKENS - 3,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    missing = TOKENS - 3 - inner.get_vocab_size()
    inner.add_tokens([f"<word{i}>" for i in range(missing)])
    inner.add_special_tokens(["<eos>", "<pad>", "<end>"])
    folder = tmp_path_factory.mktemp("template")
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template="{{ messages }}\nassistant:",
    ).save_pretrained(folder)
    Qwen3Config(
        vocab_size=304, max_position_embeddings=512, eos_token_id=EOS, pad_token_id=PAD
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def pair(template, tmp_path) -> tuple[Path, Path]:
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    shutil.copytree(template, student)
    shutil.copytree(template, teacher)
    return student, teacher


def edit(folder: Path, name: str, change) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def check(pair, **options):
    facts = [None if path is None else describe_model(str(path)) for path in pair]
    return check_pairing(*facts, **{"context_length": 512, **options})


def test_a_matching_pair(pair):
    pairing = check(pair)
    assert pairing.vocab_size == TOKENS  # 304 rows, 4 of them padding
    assert pairing.accepted == ()
    assert pairing.tokenizer_hash == describe_model(str(pair[1])).tokenizer_hash


def test_padding_rows_may_differ(pair):
    edit(pair[1], "config.json", lambda c: c.update(vocab_size=320))
    assert check(pair).vocab_size == TOKENS


def swap_tokens(content) -> None:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def add_token(content) -> None:
    content["added_tokens"].append({**content["added_tokens"][-1], "id": TOKENS, "content": "<x>"})


def swap_merges(content) -> None:
    merges = content["model"]["merges"]
    merges[3], merges[4] = merges[4], merges[3]


def isolate_digits(content) -> None:
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            content["pre_tokenizer"],
        ],
    }


def set_template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def edited(name, change):
    return lambda folder: edit(folder, name, change)


TEACHER_CHANGES = {
    "ids mean other tokens": (
        edited("tokenizer.json", swap_tokens),
        r"2 ids mean different tokens \(student / teacher\): id \d+: 'a' / 'b', id \d+: 'b' / 'a'",
        "vocabulary",
    ),
    "tokens of the teacher alone": (
        edited("tokenizer.json", add_token),
        r"1 tokens of the teacher alone: id 300: '<x>'; .*accept_mismatch=\[extra_tokens\]",
        "extra_tokens",
    ),
    "order of merges": (
        edited("tokenizer.json", swap_merges),
        r"merges: \d+ in the student, \d+ in the teacher, first differing at number 3",
        "merges",
    ),
    "another split of the same vocabulary": (
        edited("tokenizer.json", isolate_digits),
        r"probe text \(student / teacher\): .What is 1234.* becomes \[",
        "probes",
    ),
    "another role": (
        edited("tokenizer_config.json", lambda c: c.update(bos_token="<end>")),
        r"special tokens \(student / teacher\): bos_token: None / '<end>'",
        "special_tokens",
    ),
    "another end": (
        edited("config.json", lambda c: c.update(eos_token_id=[EOS, END])),
        r"the student stops at \[\"297 '<eos>'\"\], the teacher at .*299 '<end>'",
        "eos",
    ),
    "another padding": (
        edited("tokenizer_config.json", lambda c: c.update(pad_token="<end>")),
        "padding: token id 298 in the student, 299 in the teacher",
        "pad",
    ),
    "another chat template": (
        set_template("{{ messages }}\nmodel:"),
        r"chat template \(student / teacher\): line 2 is 'assistant:' / 'model:'",
        "chat_template",
    ),
    "no chat template": (
        lambda folder: (folder / "chat_template.jinja").unlink(),
        "chat template .*only the student has one",
        "chat_template",
    ),
    "fewer rows than tokens": (
        edited("config.json", lambda c: c.update(vocab_size=299)),
        "the teacher's model has 299 vocabulary rows, its tokenizer 300 tokens",
        "rows",
    ),
    "a shorter context": (
        edited("config.json", lambda c: c.update(max_position_embeddings=256)),
        "the teacher's context is 256 tokens, the run needs 512: lower student.context_length",
        "context",
    ),
}


@pytest.mark.parametrize("case", TEACHER_CHANGES)
def test_mismatch_is_named(pair, case):
    change, message, kind = TEACHER_CHANGES[case]
    change(pair[1])
    with pytest.raises(PairingError, match=message):
        check(pair)
    if kind in ("vocabulary", "rows", "context"):
        with pytest.raises(PairingError, match=f"names {kind!r}; it may name extra_tokens"):
            check(pair, accept=[kind])


@pytest.mark.parametrize("case", ["order of merges", "another end", "another chat template"])
def test_mismatch_can_be_accepted(pair, case):
    change, message, kind = TEACHER_CHANGES[case]
    change(pair[1])
    with pytest.raises(PairingError, match=message) as refusal:
        check(pair, accept=["pad"])
    assert f"teacher.accept_mismatch=[{kind}]" in str(refusal.value)
    # Other merges split the probes otherwise too.
    pairing = check(pair, accept=[kind, "probes"])
    assert pairing.accepted
    assert all("student" in text for text in pairing.accepted)


def test_tokens_of_the_teacher_alone_are_left_out_when_accepted(pair):
    edit(pair[1], "tokenizer.json", add_token)
    assert check(pair, accept=["extra_tokens"]).vocab_size == TOKENS


def test_tokens_of_the_student_alone_are_refused(pair):
    edit(pair[0], "tokenizer.json", add_token)
    with pytest.raises(PairingError, match="1 tokens of the student alone: id 300: '<x>'"):
        check(pair, accept=["extra_tokens"])


def test_all_differences_come_at_once(pair):
    edit(pair[1], "config.json", lambda c: c.update(max_position_embeddings=256, eos_token_id=END))
    edit(pair[0], "config.json", lambda c: c.update(max_position_embeddings=128))
    with pytest.raises(PairingError) as refusal:
        check(pair)
    assert str(refusal.value).count("\n  - ") == 3


def test_generation_config_names_the_ends(pair):
    for folder in pair:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, END]}))
    check(pair)
    assert describe_model(str(pair[0])).eos_ids == (EOS, END)


def test_unreadable_models(pair, tmp_path):
    with pytest.raises(ModelFactsError, match=r"nowhere: no readable config and tokenizer"):
        check((pair[0], tmp_path / "nowhere"))
    (pair[1] / "config.json").unlink()
    with pytest.raises(ModelFactsError, match="teacher: no readable config"):
        check(pair)


def test_running_teacher_against_the_pair(pair):
    pairing = check(pair)
    good = TeacherInfo("t", 300, 512, ("topk",), tokenizer_hash=pairing.tokenizer_hash)
    check_teacher_info(pairing, good, context_length=512)
    check_teacher_info(pairing, TeacherInfo("t", 320, 512, ("topk",)), context_length=512)
    for info, message in (
        (TeacherInfo("t", 300, 512, ("topk",), tokenizer_hash="no"), "fingerprint is no"),
        (
            TeacherInfo("t", 299, 512, ("topk",)),
            "knows 299 tokens, the student's tokenizer has 300",
        ),
        (TeacherInfo("t", 300, 511, ("topk",)), "its context is 511 tokens, the run needs 512"),
    ):
        with pytest.raises(PairingError, match=message):
            check_teacher_info(pairing, info, context_length=512)


def test_an_accepted_difference_of_one_teacher_excuses_no_other(pair):
    """Teacher A's chat template was accepted; B has another tokenizer."""
    edit(pair[1], "tokenizer_config.json", lambda c: c.update(chat_template="{{ other }}"))
    for file in pair[1].glob("chat_template*"):
        file.unlink()
    pairing = check(pair, accept=["chat_template"])
    assert pairing.accepted
    stranger = TeacherInfo("b", 300, 512, ("topk",), tokenizer_hash="no")
    for accept in ([], ["chat_template"], ["probes"]):
        with pytest.raises(PairingError, match="fingerprint is no"):
            check_teacher_info(pairing, stranger, context_length=512, accept=accept)
    check_teacher_info(pairing, stranger, context_length=512, accept=["merges"])


def test_every_teacher_is_compared_and_spoken_of_by_its_key(pair):
    student, other = map(str, pair)
    edit(pair[1], "config.json", lambda c: c.update(eos_token_id=[EOS, END]))
    config = Config(
        student=StudentSettings(path=student, context_length=512),
        teacher=TeacherSettings(path=student),
        teachers={"b": {"path": other}},
        routes={"x": "teacher", "y": "b"},
    )
    with pytest.raises(PairingError, match=r"accept it with teachers\.b\.accept_mismatch=\[eos\]"):
        check_pairings(config)
    accepting = {"b": {**config.teachers["b"], "accept_mismatch": ["eos"]}}
    config = replace(config, teachers=accepting)
    [accepted] = check_pairings(config).accepted
    assert accepted.startswith("teachers.b: end of sequence: the student stops at")


def test_a_tokenizer_that_nobody_compared_is_said():
    silent = TeacherInfo("mine", 300, 512, ("topk",))
    own = NamedTeacher(kind="class", class_path="m:C", name="own")
    said = uncompared_tokenizer(silent, [own])
    assert said is not None
    assert said.startswith("teacher 'mine': its tokenizer was not compared with the student's")
    assert "neither teachers.own.path nor" in said
    assert uncompared_tokenizer(silent, [TeacherSettings(path="compared"), own])
    assert uncompared_tokenizer(replace(silent, tokenizer_hash="same"), [own]) is None
    assert uncompared_tokenizer(silent, [replace(own, path="compared")]) is None
    assert uncompared_tokenizer(silent, [TeacherSettings(kind="http", url="probed")]) is None


def test_a_kv_cache_that_is_too_small_is_named_with_a_size_that_suffices(pair):
    """512 bytes a token: 500 tokens, a half-empty block of 32 and the engine's own."""
    limit = {"key": "teacher.kv_cache_bytes", "value": 1 << 18, "tokens": 512, "block": 32}
    info = TeacherInfo("t", 300, 480, ("topk",), meta={"context_limit": limit})
    with pytest.raises(PairingError) as raised:
        check_teacher_info(check(pair), info, context_length=500)
    said = str(raised.value)
    assert "its KV cache (teacher.kv_cache_bytes = 262144) has room for 480 tokens" in said
    assert f"the run needs 500: raise teacher.kv_cache_bytes to {512 * 564}, or lower" in said
    limit |= {"key": "teacher.gpu_memory_utilization", "value": 0.5}
    with pytest.raises(PairingError, match=r"raise teacher.gpu_memory_utilization, or lower"):
        check_teacher_info(check(pair), info, context_length=500)


def test_the_demo_kind_of_tokenizer(tmp_path):
    """No merges, no chat template, characters outside the vocabulary."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "1": 2, "2": 3}, "<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(tmp_path)
    Qwen3Config(vocab_size=4, max_position_embeddings=64).save_pretrained(tmp_path)
    assert check((tmp_path, tmp_path), context_length=64).vocab_size == 4


def set_positions(folder: Path, **rope) -> None:
    edit(folder, "config.json", lambda c: c.update(rope_parameters={"rope_theta": 1e4, **rope}))


def test_lengthened_positions_count(pair):
    for folder in pair:
        set_positions(folder, rope_type="yarn", factor=4.0)
    pairing = check(pair, context_length=2048)
    assert pairing.teacher_contexts == {str(pair[1]): 2048}
    with pytest.raises(PairingError, match="the student's context is 2048 tokens, the run needs"):
        check(pair, context_length=2049)


def test_positions_that_the_engines_do_not_share_are_refused(pair):
    student = (pair[0], None)
    set_positions(pair[0], rope_type="dynamic", factor=4.0)
    check(student)
    with pytest.raises(PairingError, match=r"is 512 tokens, .*its rope_type is dynamic"):
        check(student, context_length=513)
    set_positions(pair[0], rope_type="ntk", factor=4.0)
    with pytest.raises(PairingError, match="rope_type 'ntk', which transformers does not know"):
        check(student)


def test_a_broken_generation_config_is_named(pair):
    file = pair[0] / "generation_config.json"
    file.write_text("{")
    with pytest.raises(ModelFactsError, match=r"student/generation_config\.json: .*; mend it"):
        check(pair)
    file.write_text(json.dumps({"eos_token_id": ["<end>"]}))
    with pytest.raises(ModelFactsError, match=r"eos_token_id is \['<end>'\]; give token ids"):
        check(pair)


def test_without_a_teachers_files_the_student_alone_is_looked_at(pair):
    student = (pair[0], None)
    pairing = check(student)
    assert pairing.vocab_size == TOKENS
    with pytest.raises(PairingError, match="the student's context is 512 tokens, the run needs"):
        check(student, context_length=513)

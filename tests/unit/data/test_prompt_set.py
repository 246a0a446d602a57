"""The order of prompts over steps and epochs, and what stays in memory."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_ray.config.data import ChainSumSettings, DataKind, DataSettings
from opd_ray.data.load import load_prompts
from opd_ray.data.prompt_set import PromptSet
from opd_ray.data.rows import DataError


def chain_sums(count: int, **options: object) -> PromptSet:
    settings = DataSettings(chain_sum=ChainSumSettings(count=count), **options)  # type: ignore[arg-type]
    return load_prompts(settings, seed=7)


def ids(prompts: PromptSet, step: int, size: int) -> list[str]:
    return [row.id for row in prompts.batch(step, size)]


@given(count=st.integers(1, 13), data=st.data())
def test_epochs_are_complete_and_no_batch_repeats_a_prompt(count: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, count))
    shuffle = data.draw(st.booleans())
    prompts = chain_sums(count, shuffle=shuffle)
    epochs = 4
    batches = [ids(prompts, step, size) for step in range(-(-epochs * count // size))]
    assert all(len(set(batch)) == size for batch in batches)
    read = [name for batch in batches for name in batch]
    for epoch in range(epochs):
        assert len(set(read[epoch * count : (epoch + 1) * count])) == count


def test_a_step_alone_decides_its_batch() -> None:
    in_order, at_once = chain_sums(10), chain_sums(10)
    batches = [ids(in_order, step, 7) for step in range(30)]
    for step in (29, 3, 17, 0, 16):
        assert ids(at_once, step, 7) == batches[step]
    assert [ids(chain_sums(20), step, 7) for step in (5, 6)] == [
        ids(chain_sums(20), step, 7) for step in (5, 6)
    ]


def test_every_epoch_has_an_order_of_its_own() -> None:
    prompts = chain_sums(50)
    first, second = (ids(prompts, step, 50) for step in (0, 1))
    assert first != second
    assert Counter(first) == Counter(second)
    other = load_prompts(DataSettings(chain_sum=ChainSumSettings(count=50)), seed=8)
    assert ids(other, 0, 50) != first
    fixed = load_prompts(DataSettings(chain_sum=ChainSumSettings(count=50), seed=7), seed=8)
    assert ids(fixed, 0, 50) == first


def test_without_shuffling_the_order_is_the_sources() -> None:
    prompts = chain_sums(5, shuffle=False)
    names = [prompts.row(n).id for n in range(5)]
    assert ids(prompts, 0, 3) == names[:3]
    assert ids(prompts, 1, 3) == [*names[3:], names[0]]


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(DataError, match=r"a step wants 6 prompts but there are only 5"):
        chain_sums(5).batch(0, 6)
    with pytest.raises(ValueError, match="step = -1"):
        chain_sums(5).batch(-1, 2)


def test_jsonl_rows_stay_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    count, text = 2000, "x" * 10_000
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            file.write(json.dumps({"prompt": f"{n} {text}", "answer": n}) + "\n")
    tracemalloc.start()
    prompts = load_prompts(DataSettings(kind=DataKind.jsonl, path=str(path)))
    rows = prompts.batch(3, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({row.answer for row in rows}) == 16
    assert all(row.text == f"{row.answer} {text}" for row in rows)
    assert peak < 2_000_000 < path.stat().st_size


def test_a_run_that_goes_on_with_other_batches_asks_for_what_was_not_asked() -> None:
    first = chain_sums(64)
    asked = [name for step in range(4) for name in ids(first, step, 12)]
    later = chain_sums(64).going_on_after([(4, 12)])
    asked += [name for step in (4, 5, 6) for name in ids(later, step, 6)]
    assert len(asked) == 66
    assert len(set(asked[:64])) == 64


@settings(deadline=None)  # four sets are made
@given(count=st.integers(1, 13), data=st.data())
def test_epochs_are_complete_whatever_the_sizes_of_the_parts(
    count: int, data: st.DataObject
) -> None:
    parts = data.draw(
        st.lists(st.tuples(st.integers(0, 6), st.integers(1, count)), min_size=1, max_size=4)
    )
    read: list[str] = []
    step = 0
    for number, (steps, size) in enumerate(parts):
        prompts = chain_sums(count).going_on_after(parts[:number])
        for _ in range(steps):
            batch = ids(prompts, step, size)
            assert len(set(batch)) == size
            read += batch
            step += 1
    for begin in range(0, len(read), count):
        epoch = read[begin : begin + count]
        assert len(set(epoch)) == len(epoch)


def test_steps_of_an_earlier_part_are_not_asked_again() -> None:
    with pytest.raises(ValueError, match="begins at step 4"):
        chain_sums(64).going_on_after([(4, 12)]).batch(3, 6)


def test_prompts_are_known_again_by_what_is_shown(tmp_path: Path) -> None:
    def fingerprint(name: str, rows: list[dict[str, str]], **options: object) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = DataSettings(kind=DataKind.jsonl, path=str(path), **options)  # type: ignore[arg-type]
        return load_prompts(settings).fingerprint

    rows = [{"prompt": "1+2=", "answer": "3"}, {"prompt": "2+2=", "answer": "4"}]
    one = fingerprint("a.jsonl", rows)
    assert one == fingerprint("b.jsonl", rows) == fingerprint("c.jsonl", rows, limit=2)
    assert one != fingerprint("d.jsonl", rows, limit=1)
    assert one != fingerprint("e.jsonl", rows[::-1])
    assert one != fingerprint("f.jsonl", [rows[0], {"prompt": "2+3=", "answer": "5"}])

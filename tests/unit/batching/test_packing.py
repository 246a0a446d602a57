"""Packed rows: every text whole, beginnings once, parents before children."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_ray.batching.packing import MIN_SHARED, Segment, by_beginning, pack

PROMPT = np.arange(100, 100 + MIN_SHARED)


def text(*parts) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def test_two_samples_of_a_prompt_by_hand():
    """16 shared tokens, then 7 8 9 and 7 6; a short text of its own; two tokens of padding."""
    texts = [text(PROMPT, [7, 8, 9]), text([5, 5]), text(PROMPT, [3, 6])]
    packing = pack(texts, width=lambda tokens: tokens + 2)
    prompt = Segment(2, 18)
    assert packing.segments == (
        Segment(0, 2),
        prompt,
        Segment(18, 20, (prompt,)),
        Segment(20, 23, (prompt,)),
        Segment(23, 25),
    )
    assert packing.ids_T.tolist() == [5, 5, *PROMPT, 3, 6, 7, 8, 9, 0, 0]
    assert packing.positions_T.tolist() == [0, 1, *range(16), 16, 17, 16, 17, 18, 0, 1]
    assert [places.tolist() for places in packing.places] == [
        [*range(2, 18), 20, 21, 22],
        [0, 1],
        [*range(2, 18), 18, 19],
    ]
    assert packing.padding == 2


def test_beginnings_within_beginnings():
    """A system prompt of all, a question of two of them."""
    question = text(PROMPT, PROMPT + 50)
    packing = pack([text(question, [1]), text(PROMPT, [2, 3]), text(question, [4, 4])])
    system, asked = packing.segments[0], packing.segments[2]
    assert (system.tokens, asked.tokens) == (MIN_SHARED, MIN_SHARED)
    assert [part.ancestors for part in packing.segments] == [
        (),
        (system,),
        (system,),
        (system, asked),
        (system, asked),
    ]


def test_shorter_beginnings_are_not_shared():
    packing = pack([text(PROMPT[:-1], [1]), text(PROMPT[:-1], [2])])
    assert [part.ancestors for part in packing.segments] == [(), ()]
    assert len(packing.ids_T) == 2 * MIN_SHARED


def test_a_text_that_another_goes_on_from_and_one_twice():
    longer = text(PROMPT, [1, 2])
    packing = pack([longer, PROMPT, longer])
    assert len(packing.ids_T) == MIN_SHARED + 2
    assert packing.places[0].tolist() == packing.places[2].tolist() == list(range(MIN_SHARED + 2))
    assert packing.places[1].tolist() == list(range(MIN_SHARED))


# Few tokens, long runs: beginnings are shared at many depths.
runs = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 2 * MIN_SHARED)), min_size=1, max_size=4
).map(lambda parts: np.concatenate([np.full(count, value) for value, count in parts]))


@given(texts=st.lists(runs, min_size=1, max_size=12), extra=st.integers(0, 3))
def test_every_row_keeps_its_promises(texts, extra):
    packing = pack(texts, width=lambda tokens: tokens + extra)
    for whole, places in zip(texts, packing.places, strict=True):
        assert packing.ids_T[places].tolist() == whole.tolist()
        assert packing.positions_T[places].tolist() == list(range(len(whole)))
    edges = [0] + [segment.stop for segment in packing.segments]
    assert [segment.start for segment in packing.segments] == edges[:-1]
    assert edges[-1] == len(packing.ids_T)
    # A segment and its ancestors are the beginning of a text.
    paths = {tuple(places.tolist()) for places in packing.places}
    for segment in packing.segments[: -1 if extra else None]:
        chain = [*segment.ancestors, segment]
        tokens = tuple(i for part in chain for i in range(part.start, part.stop))
        assert any(path[: len(tokens)] == tokens for path in paths)
    order, shared = by_beginning(texts)
    assert sorted(order) == list(range(len(texts)))
    used = sum(map(len, texts)) - sum(shared)
    assert len(packing.ids_T) == used + extra == used + packing.padding


def test_the_order_is_that_of_the_ids_not_of_their_bytes():
    order, shared = by_beginning([np.array([256, 1]), np.array([1, 256]), np.array([255])])
    assert (order, shared) == ([1, 2, 0], [0, 0, 0])


def test_a_text_that_begins_otherwise_shares_nothing_and_an_empty_one_neither():
    texts = [np.full(20, 7), np.full(30, 7), np.append([6], np.full(20, 7)), np.array([], int)]
    assert by_beginning(texts) == ([3, 2, 0, 1], [0, 0, 0, 20])


@pytest.mark.parametrize("texts", [[], [np.array([1]), np.array([], np.int32)]])
def test_nothing_to_pack_is_refused(texts):
    with pytest.raises(ValueError, match="only texts with tokens can be packed"):
        pack(texts)

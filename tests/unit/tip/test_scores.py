"""TokenScores refuses what is misaligned or out of range, and joins what the actors return."""

import math

import numpy as np
import pytest

from opd_ray.tip import MissingScoreError, TokenScores, batch_scores, with_exact_scores
from opd_ray.types import Rollout, RolloutScores

LENGTHS = np.array([2, 0, 3])


def scores(mask=(1, 1, 1, 1, 1), **fields):
    return TokenScores(LENGTHS, np.array(mask), 16, **fields)


def test_positions_start_anew_in_each_rollout():
    assert scores().get("position", "a test").tolist() == [0, 1, 0, 1, 2]


def test_values_are_float32_and_rounding_is_taken_back():
    batch = scores(
        entropy_N=np.array([0, 1, 2, -1e-7, math.log(16) + 1e-5]), jsd_N=np.full(5, 0.6932)
    )
    assert batch.entropy_N.dtype == np.float32
    assert batch.entropy_N[3] == 0.0
    assert batch.entropy_N[4] == np.float32(math.log(16))
    assert np.all(batch.jsd_N == np.float32(math.log(2)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"entropy_N": np.zeros(4)}, r"entropy has shape \(4,\).*sum to 5"),
        ({"reverse_kl_N": [0, 0, 0, np.nan, 0]}, "reverse_kl is nan at rollout 2, position 1"),
        ({"forward_kl_N": [0, np.inf, 0, 0, 0]}, "forward_kl is inf at rollout 0, position 1"),
        ({"teacher_logprob_N": [0, 0, -np.inf, 0, 0]}, "-inf at rollout 2, position 0"),
        ({"entropy_N": [0, 0, 0, 0, 3]}, "entropy is 3.0 at rollout 2, position 2"),
        ({"jsd_N": [-0.1, 0, 0, 0, 0]}, "jsd is -0.1.* at rollout 0, position 0"),
        ({"teacher_mass_N": [0, 1.1, 0, 0, 0]}, "teacher_mass is 1.1"),
        ({"mask": (1, 1, 1, 2, 1)}, "0 and 1 only"),
        ({"mask": (1, 1, 1, 1)}, r"response_mask has shape \(4,\)"),
    ],
)
def test_bad_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        scores(**fields)


@pytest.mark.parametrize(("beyond", "refused"), [(0.0009, False), (0.0011, True)])
def test_rounding_is_taken_back_up_to_a_thousandth(beyond, refused):
    for fields, bound in (
        ({"entropy_N": np.full(5, math.log(16) + beyond)}, math.log(16)),
        ({"reverse_kl_N": np.full(5, -beyond)}, 0.0),
        ({"teacher_logprob_N": np.full(5, beyond)}, 0.0),
    ):
        if refused:
            with pytest.raises(ValueError, match="must be finite and in"):
                scores(**fields)
        else:
            [(name, _)] = fields.items()
            assert np.all(getattr(scores(**fields), name) == np.float32(bound))


def test_tool_tokens_may_hold_anything_and_are_left_out():
    batch = scores(mask=(1, 0, 0, 1, 1), entropy_N=[0.5, np.nan, np.inf, 1.0, 1.5])
    tokens = batch.student_tokens()
    assert tokens.entropy_N.tolist() == [0.5, 1.0, 1.5]
    assert tokens.lengths_R.tolist() == [1, 0, 2]
    assert tokens.get("position", "a test").tolist() == [0, 1, 2]


def test_missing_score_names_its_source():
    with pytest.raises(
        MissingScoreError, match=r"tip.rule=x needs the score 'union_forward_kl'.*top-k"
    ):
        scores().get("union_forward_kl", wanted_by="tip.rule=x")


def rollout(name, mask, entropy):
    count = len(mask)
    return Rollout(
        rollout_id=name,
        prompt_id="p",
        sample=0,
        prompt_ids=np.arange(3, dtype=np.int32),
        response_ids=np.arange(count, dtype=np.int32),
        response_mask=np.array(mask, dtype=np.uint8),
        entropy=np.array(entropy, dtype=np.float32),
        logprob=-np.ones(count, dtype=np.float32),
        finish_reason="stop",
        weights_version=0,
    )


def scored(name, count, **more):
    fields = {
        field: np.full(count, value, dtype=np.float32)
        for field, value in (
            ("reverse_kl", 0.1),
            ("forward_kl", 0.2),
            ("jsd", 0.3),
            ("teacher_logprob", -0.4),
            ("teacher_mass", 0.5),
        )
    }
    return RolloutScores(name, fields | more)


ROLLOUTS = [rollout("a", [1, 0], [0.5, 0.0]), rollout("b", [1, 1, 1], [1.0, 1.5, 2.0])]


def test_batch_scores_joins_in_order():
    batch = batch_scores(ROLLOUTS, [scored("a", 1), scored("b", 3, jsd=np.zeros(3))], 16)
    assert batch.lengths_R.tolist() == [2, 3]
    assert batch.response_mask_N.tolist() == [True, False, True, True, True]
    assert batch.entropy_N.tolist() == [0.5, 0.0, 1.0, 1.5, 2.0]
    assert batch.rollout_logprob_N.tolist() == [-1.0] * 5
    np.testing.assert_allclose(batch.jsd_N, [0.3, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(batch.teacher_mass_N, [0.5, 0, 0.5, 0.5, 0.5])
    assert batch.teacher_entropy_N is None


def test_a_teachers_values_go_to_the_tokens_that_the_student_wrote():
    turns = [
        rollout("a", [0, 1, 0, 0, 1, 1], [0, 0.1, 0, 0, 0.2, 0.3]),
        rollout("b", [1, 0], [1, 0]),
    ]
    parts = [
        scored("a", 3, reverse_kl=np.array([0.25, 0.5, 0.75], np.float32)),
        scored("b", 1, reverse_kl=np.array([2.0], np.float32)),
    ]
    batch = batch_scores(turns, parts, 16)
    assert batch.reverse_kl_N.tolist() == [0, 0.25, 0, 0, 0.5, 0.75, 2.0, 0]
    assert batch.reverse_kl_N.dtype == np.float32
    assert batch.student_tokens().reverse_kl_N.tolist() == [0.25, 0.5, 0.75, 2.0]
    assert batch.student_tokens().position_N.tolist() == [1, 4, 5, 0]
    with pytest.raises(
        ValueError, match=r"of rollout a has shape \(6,\).* of the 3 tokens that the"
    ):
        batch_scores(turns, [scored("a", 6), scored("b", 1)], 16)


def test_a_rollout_in_which_the_student_wrote_nothing_needs_no_scores():
    turns = [rollout("a", [0, 0], [0, 0]), *ROLLOUTS, rollout("c", [], [])]
    nothing = [RolloutScores("a", {}), RolloutScores("c", {})]
    known = np.array([0.5], np.float32), np.array([0.25, 0.5, 1.0], np.float32)
    own = [
        scored("a", 1, teacher_entropy=known[0], union_forward_kl=known[0]),
        scored("b", 3, teacher_entropy=known[1], union_forward_kl=known[1]),
    ]
    own[0] = RolloutScores("a2", own[0].columns)
    turns[1] = rollout("a2", [1, 0], [0.5, 0.0])
    batch = batch_scores(turns, [nothing[0], *own, nothing[1]], 16)
    assert batch.lengths_R.tolist() == [2, 2, 3, 0]
    for values in (batch.teacher_entropy_N, batch.union_forward_kl_N):
        assert values.tolist() == [0, 0, 0.5, 0, 0.25, 0.5, 1.0]
    found = [nothing[0], exact("a2", [0.25]), exact("b", [0.5, 0.75, 1.0]), exact("c", [])]
    assert with_exact_scores(batch, found).entropy_N.tolist() == [0, 0, 0.25, 0, 0.5, 0.75, 1.0]
    with pytest.raises(ValueError, match="exact scores of rollout b have 0 rows; .* has 3"):
        with_exact_scores(batch, [*found[:2], RolloutScores("b", {}), found[3]])


def test_a_batch_in_which_the_student_wrote_nothing_has_no_scores_of_a_teacher():
    turns = [rollout("a", [0, 0], [0, 0]), rollout("b", [0], [0])]
    nothing = [RolloutScores("a", {}), RolloutScores("b", {})]
    batch = batch_scores(turns, nothing, 16)
    assert not batch.has("reverse_kl")
    assert batch.student_tokens().entropy_N.tolist() == []
    assert with_exact_scores(batch, nothing) is not None


def test_an_entropy_that_only_some_teachers_know_is_left_out():
    parts = [scored("a", 1, teacher_entropy=np.zeros(1)), scored("b", 3)]
    batch = batch_scores(ROLLOUTS, parts, 16)
    assert batch.teacher_entropy_N is None
    assert batch.reverse_kl_N is not None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([scored("b", 3), scored("a", 1)], "same rollouts in the same order"),
        ([scored("a", 1), scored("b", 4)], r"reverse_kl of rollout b has shape \(4,\)"),
        (
            [scored("a", 1, union_forward_kl=np.zeros(1)), scored("b", 3)],
            "union_forward_kl is missing for rollout b",
        ),
    ],
)
def test_batch_scores_refuses_what_does_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        batch_scores(ROLLOUTS, parts, 16)


def exact(name, values):
    array = np.array(values, dtype=np.float32)
    columns = {
        "entropy": array,
        "reverse_kl": array + 1,
        "forward_kl": array + 2,
        "jsd": array / 10,
        "logprob": -2 * array,
        "teacher_logprob": -array,
        "teacher_entropy": array,
        "top1_agree": array > 0,
    }
    return RolloutScores(name, columns)


def test_exact_scores_take_the_place_of_streamed_ones():
    streamed = batch_scores(ROLLOUTS, [scored("a", 1), scored("b", 3)], 16)
    batch = with_exact_scores(streamed, [exact("a", [0.25]), exact("b", [0.5, 0.75, 1.0])])
    written = batch.response_mask_N
    np.testing.assert_allclose(batch.entropy_N[written], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(batch.reverse_kl_N[written], [1.25, 1.5, 1.75, 2.0])
    np.testing.assert_allclose(batch.jsd_N[written], [0.025, 0.05, 0.075, 0.1], rtol=1e-6)
    np.testing.assert_allclose(batch.teacher_logprob_N[written], [-0.25, -0.5, -0.75, -1.0])
    np.testing.assert_allclose(batch.forward_kl_N[written], [2.25, 2.5, 2.75, 3.0])
    np.testing.assert_allclose(batch.teacher_entropy_N[written], [0.25, 0.5, 0.75, 1.0])
    assert batch.teacher_mass_N is not None
    assert batch.rollout_logprob_N.tolist() == [-1.0] * 5  # still what vLLM said
    with pytest.raises(ValueError, match="rollout b have 2 rows; its response has 3"):
        with_exact_scores(streamed, [exact("a", [0.25]), exact("b", [0.5, 0.75])])

"""Every rule against a naive reference: plain Python, one rollout and one token at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_ray.tip import TipFilter, TipSettings, TokenScores, rule_names

VOCAB = 64
SAMPLED = ("random", "entropy_sample", "product")
RANDOM_SCORES = ("reverse_kl", "forward_kl", "jsd", "teacher_mass", "union_forward_kl")


def ragged_batch(rng, lengths, kind, mask_share=0.8):
    """A batch with NaN at every masked token. ``kind``: smooth values, few values, or one."""
    total = sum(lengths)
    mask = rng.random(total) < mask_share

    def draw(top):
        if kind == "constant":
            values = np.full(total, top / 4)
        elif kind == "ties":
            values = rng.integers(0, 4, total) * top / 4
        else:
            values = top * rng.random(total) ** 3
        return np.where(mask, values, np.nan).astype(np.float32)

    return TokenScores(
        lengths_R=np.array(lengths),
        response_mask_N=mask,
        vocab_size=VOCAB,
        entropy_N=draw(math.log(VOCAB)),
        reverse_kl_N=draw(9.0),
        forward_kl_N=draw(7.0),
        jsd_N=draw(math.log(2)),
        teacher_mass_N=draw(1.0),
        union_forward_kl_N=draw(5.0),
    )


def f32(value):
    return np.float32(value)


def naive_range(values, low_q, high_q, method):
    """One score of all student tokens brought to [0, 1]."""
    if method == "q05_q95":
        low_q, high_q = 0.05, 0.95
    low = f32(np.quantile(np.array(values, dtype=np.float64), low_q))
    high = f32(np.quantile(np.array(values, dtype=np.float64), high_q))
    if high <= low:
        return [f32(0) for _ in values]
    return [min(max((f32(z) - low) / (high - low), f32(0)), f32(1)) for z in values]


def naive_scores(rule, tokens, divergence):
    """Rule -> one number a token, straight from the formulas; ``tokens`` maps names to lists."""
    h = [f32(value) / f32(math.log(VOCAB)) for value in tokens["entropy"]]
    h_hat = naive_range(h, 0.0, 0.98, "min_max")
    d_hat = naive_range(tokens[divergence], 0.0, 1.0, "min_max")
    count = len(h)
    if rule in ("all", "random"):
        return [f32(1)] * count
    if rule in ("entropy_sample", "entropy_topk"):
        return h
    if rule == "divergence_topk":
        return tokens[divergence]
    if rule in ("soft_or", "bottom_soft_or"):
        return [h_hat[i] + d_hat[i] - h_hat[i] * d_hat[i] for i in range(count)]
    if rule == "q3_only":
        return [f32(tokens["forward_kl"][i]) * (f32(1) - h_hat[i]) for i in range(count)]
    if rule == "product":
        return [h[i] * f32(tokens["jsd"][i]) for i in range(count)]
    assert rule == "teachability"
    d_tilde = naive_range(tokens["union_forward_kl"], 0.0, 1.0, "q05_q95")
    c_tilde = naive_range(tokens["teacher_mass"], 0.0, 1.0, "q05_q95")
    return [d_tilde[i] * c_tilde[i] for i in range(count)]


def naive_mixed(number):
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) % 2**64
    return number ^ (number >> 31)


def naive_uniform(seed, position, salt):
    state = naive_mixed(seed ^ naive_mixed(salt))
    number = naive_mixed((state + (position + 1) * 0x9E3779B97F4A7C15) % 2**64)
    return ((number >> 11) + 0.5) / 2**53


def crc32(text):
    remainder = 0xFFFFFFFF
    for byte in text.encode():
        remainder ^= byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (0xEDB88320 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def naive_selection(rule, batch, seeds, rho_percent, divergence="reverse_kl"):
    """The kept flat indices of a batch."""
    tokens = {"index": [], "rollout": [], "position": []}
    names = ("entropy", *RANDOM_SCORES)
    tokens |= {name: [] for name in names}
    index = 0
    for rollout, length in enumerate(batch.lengths_R):
        for position in range(length):
            if batch.response_mask_N[index]:
                tokens["index"].append(index)
                tokens["rollout"].append(rollout)
                tokens["position"].append(position)
                for name in names:
                    tokens[name].append(getattr(batch, f"{name}_N")[index])
            index += 1
    if not tokens["index"]:
        return set()
    score = naive_scores(rule, tokens, divergence)
    kept = set()
    for rollout, seed in enumerate(seeds):
        mine = [i for i in range(len(score)) if tokens["rollout"][i] == rollout]
        budget = rho_percent * len(mine) // 100
        if rule == "all":
            budget = len(mine)
            order = mine
        elif rule in SAMPLED:
            uniform = {i: naive_uniform(seed, tokens["position"][i], crc32(rule)) for i in mine}
            positive = [i for i in mine if score[i] > 0]
            nothing = [i for i in mine if score[i] == 0]
            order = sorted(positive, key=lambda i: -math.log(uniform[i]) / float(score[i]))
            order += sorted(nothing, key=lambda i: uniform[i])
        else:
            # sorted() is stable: ties stay in order of position.
            order = sorted(mine, key=lambda i: score[i] if rule.startswith("bottom") else -score[i])
        kept |= {tokens["index"][i] for i in order[:budget]}
    return kept


@pytest.mark.parametrize("kind", ["smooth", "ties", "constant"])
@pytest.mark.parametrize("rule", rule_names())
def test_rule_equals_naive_reference(rule, kind):
    rng = np.random.default_rng(sum(map(ord, rule + kind)))
    for rho_percent in (0, 7, 10, 29, 50, 100):
        for lengths in ([1, 1, 1], [0, 13, 1, 30, 0], [40, 2, 100, 7], [0, 0]):
            batch = ragged_batch(rng, lengths, kind)
            seeds = rng.integers(0, 2**63, len(lengths)).tolist()
            selection = TipFilter(TipSettings(rule=rule, rho=rho_percent / 100)).select(
                batch, np.array(seeds), step=0
            )
            kept = set(np.flatnonzero(selection.weights_N).tolist())
            assert kept == naive_selection(rule, batch, seeds, rho_percent)
            assert set(np.unique(selection.weights_N)) <= {0.0, 1.0}
            written = int(batch.response_mask_N.sum())
            assert selection.kept_fraction == pytest.approx(len(kept) / written if written else 0)


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(rule_names()),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    rho_percent=st.integers(0, 100),
    kind=st.sampled_from(["smooth", "ties", "constant"]),
    mask_share=st.sampled_from([0.0, 0.5, 1.0]),
    divergence=st.sampled_from(["reverse_kl", "forward_kl", "jsd"]),
    seed=st.integers(0, 2**32),
)
def test_rule_equals_naive_reference_anywhere(
    rule, lengths, rho_percent, kind, mask_share, divergence, seed
):
    rng = np.random.default_rng(seed)
    batch = ragged_batch(rng, lengths, kind, mask_share)
    seeds = rng.integers(0, 2**63, len(lengths)).tolist()
    settings_ = TipSettings(rule=rule, rho=rho_percent / 100, divergence=divergence)
    weights_N = TipFilter(settings_).select(batch, np.array(seeds), step=0).weights_N
    expected = naive_selection(rule, batch, seeds, rho_percent, divergence)
    assert set(np.flatnonzero(weights_N).tolist()) == expected


def test_soft_or_by_hand():
    # h = H / ln 16 in quarters; least 0, greatest 1, so h^ = h. d = 0 ... 8 nats, so d^ = d / 8.
    h = np.array([0.0, 1.0, 0.5, 0.0, 0.5, 0.25])
    d = np.array([0.0, 0.0, 4.0, 8.0, 0.0, 2.0])
    # s = h^ + d^ - h^ d^:  0, 1, 0.75 | 1, 0.5, 0.4375
    batch = TokenScores(
        lengths_R=np.array([3, 3]),
        response_mask_N=np.ones(6),
        vocab_size=16,
        entropy_N=h * math.log(16),
        reverse_kl_N=d,
    )
    select = TipFilter(TipSettings(rho=0.34, h_clip=1.0)).select  # floor(0.34 * 3) = 1
    assert select(batch, np.zeros(2, int), 0).weights_N.tolist() == [0, 1, 0, 1, 0, 0]
    soft = TipFilter(TipSettings(selection="soft", h_clip=1.0)).select(batch, np.zeros(2, int), 0)
    np.testing.assert_allclose(soft.weights_N, [0, 1, 0.75, 1, 0.5, 0.4375], rtol=1e-6)
    bottom = TipFilter(TipSettings(rule="bottom_soft_or", rho=0.67, h_clip=1.0))
    assert bottom.select(batch, np.zeros(2, int), 0).weights_N.tolist() == [1, 0, 1, 0, 1, 1]


def test_entropy_is_clipped_at_its_98th_percentile():
    # One outlier of 100 tokens: clipped, it does not press the others together.
    h = np.concatenate((np.linspace(0.0, 0.1, 100), [1.0]))
    batch = TokenScores(
        lengths_R=np.array([101]),
        response_mask_N=np.ones(101),
        vocab_size=16,
        entropy_N=h * math.log(16),
        reverse_kl_N=np.zeros(101),
    )
    soft = TipFilter(TipSettings(selection="soft")).select(batch, np.zeros(1, int), 0)
    expected = np.minimum(h / np.quantile(h, 0.98), 1.0)
    np.testing.assert_allclose(soft.weights_N, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", rule_names())
def test_tool_tokens_change_nothing(rule):
    """The choice among student tokens is the same with and without tool tokens at the end."""
    rng = np.random.default_rng(5)
    with_tools = ragged_batch(rng, [20, 30], "smooth", mask_share=1.0)
    mask = np.ones(50, dtype=bool)
    mask[[15, 16, 17, 18, 19, 45, 46, 47, 48, 49]] = False
    fields = {f"{name}_N": getattr(with_tools, f"{name}_N") for name in ("entropy", *RANDOM_SCORES)}
    spoilt = {name: np.where(mask, values, 1e9) for name, values in fields.items()}
    tools = TokenScores(np.array([20, 30]), mask, VOCAB, **spoilt)
    bare = TokenScores(
        np.array([15, 25]), np.ones(40), VOCAB, **{k: v[mask] for k, v in fields.items()}
    )
    seeds = np.array([3, 4])
    chosen = TipFilter(TipSettings(rule=rule, rho=0.3)).select(tools, seeds, 0).weights_N
    assert not chosen[~mask].any()
    alone = TipFilter(TipSettings(rule=rule, rho=0.3)).select(bare, seeds, 0).weights_N
    np.testing.assert_array_equal(chosen[mask], alone)


def test_product_exponents_leave_a_score_out():
    rng = np.random.default_rng(0)
    batch = ragged_batch(rng, [200], "smooth", mask_share=1.0)
    by_entropy = TipFilter(TipSettings(rule="product", gamma=0.0, selection="soft"))
    np.testing.assert_allclose(
        by_entropy.select(batch, np.zeros(1, int), 0).weights_N,
        batch.entropy_N / math.log(VOCAB),
        rtol=1e-6,
    )
    squared = TipFilter(TipSettings(rule="product", alpha=0.0, gamma=2.0, selection="soft"))
    np.testing.assert_allclose(
        squared.select(batch, np.zeros(1, int), 0).weights_N, batch.jsd_N**2, rtol=1e-6
    )

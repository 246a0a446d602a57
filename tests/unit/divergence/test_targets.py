"""What the divergence refuses, and that each message names the argument."""

import pytest
import torch

from opd_ray.divergence import (
    HiddenTarget,
    LogitsTarget,
    SampledTarget,
    TopKTarget,
    linear_divergence,
)
from opd_ray.divergence.blocks import CHUNK_BYTES, CHUNK_ROWS, chunk_rows

HIDDEN, HEAD = torch.zeros(2, 3), torch.zeros(5, 3)
LOGITS = LogitsTarget(torch.zeros(2, 5))
IDS = torch.tensor([[0, 1], [0, 1]])
LOGPROBS = torch.full((2, 2), -1.0)


def call(target=LOGITS, hidden=HIDDEN, head=HEAD, **options):
    return linear_divergence(hidden, head, target, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitsTarget(torch.zeros(5)), "logits_NV must be"),
        (lambda: LogitsTarget(IDS), "logits_NV must be"),
        (lambda: HiddenTarget(HIDDEN, torch.zeros(5, 4)), "teacher hidden_ND.*hidden size"),
        (lambda: HiddenTarget(HIDDEN, HEAD.bfloat16()), "teacher hidden_ND is torch.float32"),
        (lambda: HiddenTarget(HIDDEN, HEAD, torch.zeros(4)), "teacher bias_V"),
        (lambda: TopKTarget(IDS.int(), LOGPROBS), "ids_Nk must be int64"),
        (lambda: TopKTarget(IDS, LOGPROBS[:, :1]), "differ in shape"),
        (lambda: TopKTarget(IDS[:, :0], LOGPROBS[:, :0]), "k of at least 1"),
        (lambda: SampledTarget(IDS, LOGPROBS), "logprobs_N must be"),
        (lambda: SampledTarget(IDS[0], LOGPROBS[0, :1]), "differ in shape"),
        (
            lambda: SampledTarget(IDS[0], LOGPROBS[0], drawn_logprobs_N=LOGPROBS),
            r"drawn_logprobs_N must be \[2\], not \[2, 2\]",
        ),
    ],
)
def test_targets_that_do_not_fit_together(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: call(kind="mse"), "kind must be"),
        (lambda: call(kind="jsd", beta=0.0), "beta must lie"),
        (lambda: call(kind="jsd", beta=1.0), "beta must lie"),
        (lambda: call(temperature=0.0), "temperature must be above 0"),
        (lambda: call(temperature=float("nan")), "temperature must be above 0"),
        (lambda: call(chunk_size=0), "chunk_size must be at least 1"),
        (lambda: call(weights_N=torch.ones(3)), "weights_N must be"),
        (lambda: call(head=torch.zeros(5, 4)), "student hidden_ND.*ZeRO-3"),
        (lambda: call(head=HEAD.double()), "cast one"),
        (lambda: call(bias_V=torch.zeros(4)), "student bias_V"),
        (lambda: call(bias_V=torch.zeros(5).double()), "student bias_V"),
        (lambda: call(LogitsTarget(torch.zeros(3, 5))), "target has 3 rows, hidden_ND 2"),
        (lambda: call(LogitsTarget(torch.zeros(2, 6))), "pass vocab_size"),
        (lambda: call(vocab_size=6), "vocab_size must lie between 1 and 5"),
        (lambda: call(LogitsTarget(torch.zeros(2, 4)), vocab_size=5), "between 1 and 4"),
        (lambda: call(sampled_ids_N=IDS), "sampled_ids_N must be int64"),
        (lambda: call(sampled_ids_N=torch.tensor([0, 5])), r"sampled_ids_N\[1\] is 5"),
        (lambda: call(TopKTarget(IDS - 1, LOGPROBS)), r"ids_Nk\[0, 0\] is -1"),
        (lambda: call(TopKTarget(IDS, LOGPROBS), vocab_size=1), r"ids_Nk\[0, 1\] is 1"),
        (lambda: call(TopKTarget(IDS * 0, LOGPROBS)), "row 0 holds id 0 more than once"),
        (lambda: call(TopKTarget(IDS, LOGPROBS * 0.1)), "logprobs_Nk row 0 sum to 1.8"),
        (lambda: call(TopKTarget(IDS, LOGPROBS * torch.nan)), "logprobs_Nk row 0 sum to nan"),
        (lambda: call(TopKTarget(IDS, LOGPROBS), temperature=2.0), "TopKTarget.temperature is 1"),
        (lambda: call(SampledTarget(IDS[0], LOGPROBS[0], 2.0)), "SampledTarget.temperature is 2"),
        (lambda: call(SampledTarget(IDS[0] + 4, LOGPROBS[0])), r"token_ids_N\[1\] is 5"),
        (lambda: call(SampledTarget(IDS[0], LOGPROBS[0]), kind="jsd"), "reverse_kl alone, not jsd"),
    ],
)
def test_calls_that_do_not_fit_together(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_rows", "vocab"), [(1, 7), (1000, 1000), (1024, 49152), (511, 151936)]
)
def test_default_chunks_are_even_and_bounded(num_rows, vocab, dtype):
    chunk = chunk_rows(num_rows, vocab, dtype, None)
    pieces = -(-num_rows // chunk)
    assert 1 <= chunk <= num_rows
    assert pieces * chunk - num_rows < pieces  # the last is at most one row a piece shorter
    assert chunk <= max(CHUNK_BYTES // (vocab * dtype.itemsize), CHUNK_ROWS)

"""Gradients of the fused divergence: gradcheck, the naive definition, and cases by hand."""

import math
from dataclasses import replace

import divergence_by_definition as definition
import pytest
import torch
from divergence_problem import BETA, TEMPERATURE, D, N, Problem, V, gradients

from opd_ray.divergence import LogitsTarget, SampledTarget, blocks, linear_divergence
from opd_ray.divergence.fused_pass import HeadGradient

KINDS = ("reverse_kl", "forward_kl", "jsd")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["hidden", "logits", "topk"])
def test_gradcheck(target, kind):
    problem = Problem()

    def loss(hidden, head, bias):
        return linear_divergence(
            hidden,
            head,
            problem.targets[target],
            kind=kind,
            beta=BETA,
            temperature=TEMPERATURE,
            weights_N=problem.weights,
            bias_V=bias,
            chunk_size=3,
        ).loss

    assert torch.autograd.gradcheck(loss, problem.parameters())


@pytest.mark.parametrize("chunk_size", [1, 3, N, 100, None])
@pytest.mark.parametrize(
    ("target", "kind"),
    [(t, k) for t in ("hidden", "logits", "topk") for k in KINDS]
    + [("sampled", "reverse_kl")]
    + [("drawn", "reverse_kl")],
)
def test_values_and_gradients_are_those_of_the_definition(target, kind, chunk_size):
    problem = Problem(student_rows=V + 3, teacher_rows=V + 2)  # padding rows on both sides
    options = {
        "kind": kind,
        "beta": BETA,
        "temperature": TEMPERATURE,
        "weights_N": problem.weights,
        "bias_V": problem.bias,
        "vocab_size": V,
    }
    expected, values = definition.loss(
        problem.hidden, problem.head, problem.targets[target], **options
    )
    output = linear_divergence(
        problem.hidden,
        problem.head,
        problem.targets[target],
        chunk_size=chunk_size,
        sampled_ids_N=problem.sampled,
        **options,
    )
    torch.testing.assert_close(output.divergence_N, values)
    torch.testing.assert_close(output.loss, (problem.weights * values).sum())
    logits = definition.student_logits(problem.hidden, problem.head, problem.bias, V, TEMPERATURE)
    log_p = torch.stack([definition.probabilities(row).log() for row in logits.detach()])
    torch.testing.assert_close(
        output.logprob_N, log_p.gather(1, problem.sampled[:, None]).squeeze(1)
    )
    for found, wanted in zip(
        gradients(output.loss, *problem.parameters()),
        gradients(expected, *problem.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)
    head_gradient = gradients(
        linear_divergence(problem.hidden, problem.head, problem.targets[target], **options).loss,
        problem.head,
    )[0]
    assert (head_gradient[V:] == 0).all()
    assert (head_gradient[:V] != 0).all()


def test_sampled_gradient_has_the_mean_of_the_reverse_kl_gradient():
    """Every token in turn, weighted by its probability, is the expectation over the student."""
    problem = Problem(rows=1)
    log_q = problem.targets["logits"].logits_NV.log_softmax(-1)
    hidden = problem.hidden.detach().expand(V, D).clone().requires_grad_()
    p = (problem.hidden @ problem.head.T).softmax(-1).detach()[0]
    output = linear_divergence(
        hidden, problem.head, SampledTarget(torch.arange(V), log_q[0]), weights_N=p
    )
    exact = linear_divergence(problem.hidden, problem.head, problem.targets["logits"])
    torch.testing.assert_close(output.loss, exact.loss)
    mean_hidden, mean_head = gradients(output.loss, hidden, problem.head)
    exact_hidden, exact_head = gradients(exact.loss, problem.hidden, problem.head)
    torch.testing.assert_close(mean_hidden.sum(0), exact_hidden[0])
    torch.testing.assert_close(mean_head, exact_head)


def test_tokens_of_another_student_have_the_mean_of_the_reverse_kl_gradient():
    """Every token in turn, weighted by its probability where it was drawn."""
    made = torch.Generator().manual_seed(3)
    now, drawn, teacher = 2 * torch.randn(3, V, generator=made, dtype=torch.float64)
    log_o, log_q = drawn.log_softmax(-1), teacher.log_softmax(-1)
    now.requires_grad_()
    log_p = now.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    [wanted] = gradients(kl, now)

    rows = now.detach().expand(V, V).clone().requires_grad_()
    target = SampledTarget(torch.arange(V), log_q, drawn_logprobs_N=log_o)
    eye = torch.eye(V, dtype=torch.float64)
    output = linear_divergence(rows, eye, target, weights_N=log_o.exp())
    torch.testing.assert_close(output.loss, kl)
    torch.testing.assert_close(gradients(output.loss, rows)[0].sum(0), wanted)
    # Without the ratio it would be the gradient of something else.
    biased = linear_divergence(
        rows, eye, replace(target, drawn_logprobs_N=None), weights_N=log_o.exp()
    ).loss
    assert (gradients(biased, rows)[0].sum(0) - wanted).norm() > 0.5 * wanted.norm()


def test_a_token_of_another_student_by_hand():
    """P = (1/2, 1/4, 1/4) where O = (1/4, 1/2, 1/4) drew token 0, to which Q gives 1/4."""
    hidden = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    target = SampledTarget(
        torch.tensor([0]), torch.tensor([0.25]).log(), drawn_logprobs_N=torch.tensor([0.25]).log()
    )
    output = linear_divergence(hidden, torch.eye(3), target)
    assert output.loss.item() == pytest.approx(2 * math.log(2))
    [gradient] = gradients(output.loss, hidden)
    assert gradient[0].tolist() == pytest.approx([math.log(2), -math.log(2) / 2, -math.log(2) / 2])


def test_tokens_of_the_same_student_are_as_without_a_ratio():
    problem = Problem(dtype=torch.float32)
    target = SampledTarget(problem.sampled, problem.targets["sampled"].logprobs_N)
    plain = linear_divergence(problem.hidden, problem.head, target, sampled_ids_N=problem.sampled)
    weighed = linear_divergence(
        problem.hidden, problem.head, replace(target, drawn_logprobs_N=plain.logprob_N)
    )
    assert torch.equal(weighed.divergence_N, plain.divergence_N)
    for found, wanted in zip(
        gradients(weighed.loss, problem.hidden, problem.head),
        gradients(plain.loss, problem.hidden, problem.head),
        strict=True,
    ):
        assert torch.equal(found, wanted)


def test_a_row_of_weight_zero_has_no_part():
    problem = Problem()
    weights = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    target = problem.targets["logits"]
    output = linear_divergence(problem.hidden, problem.head, target, weights_N=weights)
    grad_hidden, grad_head = gradients(output.loss, problem.hidden, problem.head)
    kept = weights > 0
    alone = linear_divergence(
        problem.hidden[kept],
        problem.head,
        LogitsTarget(target.logits_NV[kept]),
        weights_N=weights[kept],
    )
    torch.testing.assert_close(output.loss, alone.loss)
    torch.testing.assert_close(grad_head, gradients(alone.loss, problem.head)[0])
    assert (grad_hidden[~kept] == 0).all()
    assert (output.divergence_N[~kept] > 0).all()


@pytest.mark.parametrize(
    ("dtype", "value_error", "gradient_error"),
    [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 0.05, 0.03)],
)
@pytest.mark.parametrize("chunk_size", [N, 2, None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["hidden", "topk"])
def test_lower_precision_stays_near_float64(
    target, kind, chunk_size, dtype, value_error, gradient_error
):
    single, double = Problem(dtype=dtype), Problem()
    options = {"kind": kind, "temperature": TEMPERATURE}
    output = linear_divergence(
        single.hidden,
        single.head,
        single.targets[target],
        weights_N=single.weights,
        bias_V=single.bias,
        chunk_size=chunk_size,
        **options,
    )
    assert output.loss.dtype == output.divergence_N.dtype == torch.float32
    expected, values = definition.loss(
        double.hidden,
        double.head,
        double.targets[target],
        weights_N=double.weights,
        bias_V=double.bias,
        **options,
    )
    torch.testing.assert_close(
        output.divergence_N.double(), values, rtol=value_error, atol=value_error / 2
    )
    found = gradients(output.loss, *single.parameters())
    for f, e in zip(found, gradients(expected, *double.parameters()), strict=True):
        assert f.dtype == dtype
        error = (f.double() - e).norm() / e.norm()
        assert error < gradient_error, f"relative error {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_small_default_chunks_and_blocks_change_nothing(monkeypatch, dtype):
    """As with a large vocabulary: teacher chunks of 2 rows, and blocks of 1."""
    problem = Problem(dtype=dtype)

    def run():
        output = linear_divergence(
            problem.hidden,
            problem.head,
            problem.targets["hidden"],
            bias_V=problem.bias,
            sampled_ids_N=problem.sampled,
        )
        return (
            output.divergence_N,
            output.logprob_N,
            *gradients(output.loss, *problem.parameters()),
        )

    expected = run()
    monkeypatch.setattr(blocks, "CHUNK_BYTES", 1)
    monkeypatch.setattr(blocks, "CHUNK_ROWS", 2)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1)
    for found, wanted in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_head_gradient_of_many_bfloat16_chunks_is_summed_in_float32():
    """Summing 1,000 equal chunks in bfloat16 would stall at 4 in place of 10."""
    chunks, rows = 1000, 3000  # rows x 1024 elements: several pieces
    head = torch.empty(rows + 5, 1024, dtype=torch.bfloat16)
    gradient = torch.full((1, rows), 1.0, dtype=torch.bfloat16)
    hidden = torch.full((1, 1024), 0.01, dtype=torch.bfloat16)
    total = HeadGradient(head, rows, chunks)
    for _ in range(chunks):
        total.add(gradient, hidden)
    result = total.result()
    assert result.dtype == torch.bfloat16
    assert result.shape == head.shape
    exact = chunks * float(hidden[0, 0])
    assert ((result[:rows].float() - exact).abs() <= 2**-8 * exact).all()
    assert (result[rows:] == 0).all()

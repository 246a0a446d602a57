"""Gradients of the fused divergence: gradcheck, the naive definition, and how autograd meets it."""

import math
from dataclasses import replace

import divergence_by_definition as definition
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from opd_ray.divergence import (
    HiddenTarget,
    LogitsTarget,
    SampledTarget,
    TopKTarget,
    blocks,
    linear_divergence,
)
from opd_ray.divergence.fused_pass import HeadGradient

KINDS = ("reverse_kl", "forward_kl", "jsd")
N, D, V, K = 7, 5, 11, 4
TEMPERATURE, BETA = 1.3, 0.3


class Problem:
    """A student with a bias, teacher targets of every kind over the same rows, soft weights."""

    def __init__(self, *, dtype=torch.float64, rows=N, student_rows=V, teacher_rows=V, seed=0):
        made = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=made, dtype=torch.float64).to(dtype)

        self.hidden = normal(rows, D).requires_grad_()
        self.head = normal(student_rows, D).requires_grad_()
        self.bias = normal(student_rows).requires_grad_()
        self.weights = torch.rand(rows, generator=made, dtype=torch.float64)
        self.sampled = torch.randint(0, V, (rows,), generator=made)
        hidden = HiddenTarget(normal(rows, 3), normal(teacher_rows, 3), normal(teacher_rows))
        logits = hidden.hidden_ND @ hidden.head_VD.T + hidden.bias_V
        log_q = (logits[:, :V].double() / TEMPERATURE).log_softmax(-1)
        top = log_q.topk(K)
        self.targets = {
            "hidden": hidden,
            "logits": LogitsTarget(logits),
            "topk": TopKTarget(top.indices, top.values, TEMPERATURE),
            "sampled": SampledTarget(
                self.sampled, log_q.gather(1, self.sampled[:, None])[:, 0], TEMPERATURE
            ),
        }
        drawn = normal(rows) / 2 - 2
        self.targets["drawn"] = replace(self.targets["sampled"], drawn_logprobs_N=drawn)

    def parameters(self):
        return self.hidden, self.head, self.bias


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


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


@pytest.mark.parametrize("target", ["hidden", "logits", "topk", "sampled"])
def test_no_rows_give_a_loss_of_zero_that_still_reaches_the_graph(target):
    problem = Problem(rows=0)
    output = linear_divergence(
        problem.hidden,
        problem.head,
        problem.targets[target],
        temperature=TEMPERATURE,
        bias_V=problem.bias,
        sampled_ids_N=problem.sampled,
    )
    assert output.loss.item() == 0.0
    assert output.divergence_N.shape == output.logprob_N.shape == (0,)
    output.loss.backward()
    assert problem.hidden.grad.shape == (0, D)
    assert (problem.head.grad == 0).all()
    assert (problem.bias.grad == 0).all()


@pytest.mark.parametrize("wanted", ["hidden", "head", "bias"])
def test_gradients_of_one_input_alone(wanted):
    problem = Problem()
    target = problem.targets["hidden"]
    everything = linear_divergence(problem.hidden, problem.head, target, bias_V=problem.bias).loss
    names = ("hidden", "head", "bias")
    expected = dict(zip(names, gradients(everything, *problem.parameters()), strict=True))
    inputs = {name: getattr(problem, name).detach() for name in names}
    inputs[wanted].requires_grad_()
    output = linear_divergence(
        inputs["hidden"], inputs["head"], target, bias_V=inputs["bias"], chunk_size=2
    )
    torch.testing.assert_close(gradients(output.loss, inputs[wanted])[0], expected[wanted])


def test_without_gradients_the_loss_is_a_plain_number():
    problem = Problem()
    with torch.no_grad():
        output = linear_divergence(
            problem.hidden, problem.head, problem.targets["topk"], temperature=TEMPERATURE
        )
    assert not output.loss.requires_grad
    detached = linear_divergence(
        problem.hidden.detach(),
        problem.head.detach(),
        problem.targets["topk"],
        temperature=TEMPERATURE,
    )
    assert not detached.loss.requires_grad
    assert torch.equal(detached.loss, output.loss)


def test_divergence_and_logprob_carry_no_gradient():
    problem = Problem()
    output = linear_divergence(
        problem.hidden, problem.head, problem.targets["hidden"], sampled_ids_N=problem.sampled
    )
    assert output.loss.requires_grad
    assert not output.divergence_N.requires_grad
    assert not output.logprob_N.requires_grad


def test_micro_batches_add_up_to_the_whole_batch():
    problem = Problem()
    target = problem.targets["logits"]
    whole = linear_divergence(problem.hidden, problem.head, target, weights_N=problem.weights).loss
    expected_hidden, expected_head = gradients(whole, problem.hidden, problem.head)
    for rows in (slice(0, 3), slice(3, 3), slice(3, N)):
        part = linear_divergence(
            problem.hidden[rows],
            problem.head,
            LogitsTarget(target.logits_NV[rows]),
            weights_N=problem.weights[rows],
        ).loss
        part.backward()
    torch.testing.assert_close(problem.hidden.grad, expected_hidden)
    torch.testing.assert_close(problem.head.grad, expected_head)


def test_two_losses_in_one_backward_and_a_scaled_one():
    problem = Problem()

    def loss(kind):
        return linear_divergence(
            problem.hidden, problem.head, problem.targets["hidden"], kind=kind
        ).loss

    reverse = gradients(loss("reverse_kl"), problem.hidden, problem.head)
    forward = gradients(loss("forward_kl"), problem.hidden, problem.head)
    both = gradients(
        3.0 * loss("reverse_kl") - 0.5 * loss("forward_kl"), problem.hidden, problem.head
    )
    for r, f, b in zip(reverse, forward, both, strict=True):
        torch.testing.assert_close(b, 3.0 * r - 0.5 * f)


def test_retained_graph_gives_the_same_gradients_again():
    problem = Problem()
    loss = linear_divergence(problem.hidden, problem.head, problem.targets["hidden"]).loss
    (2.0 * loss).backward(retain_graph=True)
    first = problem.head.grad.clone()
    loss.backward()
    torch.testing.assert_close(problem.head.grad, 1.5 * first)
    with pytest.raises(RuntimeError, match="earlier backward"):
        loss.backward()


def test_second_derivative_is_refused():
    problem = Problem()
    loss = linear_divergence(problem.hidden, problem.head, problem.targets["hidden"]).loss
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, problem.hidden, create_graph=True)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_tied_head_behind_a_trunk(checkpointed):
    """The head is the embedding too: its gradient is the sum of both uses."""
    problem = Problem()
    torch.manual_seed(1)
    embedding = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    trunk = torch.nn.Sequential(
        torch.nn.Linear(D, D, dtype=torch.float64),
        torch.nn.Tanh(),
        torch.nn.Linear(D, D, dtype=torch.float64),
    )

    def hidden():
        rows = embedding[problem.sampled]
        return checkpoint(trunk, rows, use_reentrant=False) if checkpointed else trunk(rows)

    leaves = (embedding, *trunk.parameters())
    target = problem.targets["topk"]
    expected, _ = definition.loss(hidden(), embedding, target, temperature=TEMPERATURE)
    found = linear_divergence(hidden(), embedding, target, temperature=TEMPERATURE).loss
    for f, e in zip(gradients(found, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(f, e)


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

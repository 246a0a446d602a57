"""How autograd meets the fused divergence: graphs, leaves, and sums over backward passes."""

import divergence_by_definition as definition
import pytest
import torch
from divergence_problem import TEMPERATURE, D, N, Problem, V, gradients
from torch.utils.checkpoint import checkpoint

from opd_ray.divergence import LogitsTarget, linear_divergence


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

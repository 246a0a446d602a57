"""One small problem of the fused divergence, for tests of its gradients."""

from dataclasses import replace

import torch

from opd_ray.divergence import HiddenTarget, LogitsTarget, SampledTarget, TopKTarget

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

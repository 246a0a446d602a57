"""TIP's token filter and the fused loss in a training loop of one's own: python train.py"""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import opd_ray
from opd_ray import HiddenTarget, TipFilter, TipSettings, TokenScores

demo = opd_ray.load_config("demo")  # any two causal models with one vocabulary will do
student = AutoModelForCausalLM.from_pretrained(demo.student.path)
teacher = AutoModelForCausalLM.from_pretrained(demo.teacher.path).eval().requires_grad_(False)
tokenizer = AutoTokenizer.from_pretrained(demo.student.path)
tip = TipFilter(TipSettings(rule="soft_or", rho=0.5))
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0)
prompt_RP = tokenizer(["12+34+56=", "77+21+35="] * 32, return_tensors="pt").input_ids
torch.manual_seed(0)
for step in range(15):
    texts_RL = student.generate(prompt_RP, do_sample=True, max_new_tokens=28)  # on policy
    response_RT = texts_RL[:, prompt_RP.shape[1] :]
    written_RT = response_RT != tokenizer.pad_token_id
    rows = slice(prompt_RP.shape[1] - 1, -1)  # the positions that predict the response
    hidden_ND = student.model(texts_RL).last_hidden_state[:, rows][written_RT]
    head_VD = student.lm_head.weight
    judged_ND = teacher.model(texts_RL).last_hidden_state[:, rows][written_RT]
    target = HiddenTarget(judged_ND, teacher.lm_head.weight)
    ids_N = response_RT[written_RT]
    scores = opd_ray.exact_scores(hidden_ND.detach(), head_VD, target, sampled_ids_N=ids_N)
    columns = {"entropy_N": scores.entropy_N.numpy(), "reverse_kl_N": scores.reverse_kl_N.numpy()}
    lengths_R, mask_N = written_RT.sum(1).numpy(), np.ones(len(ids_N), bool)
    tokens = TokenScores(lengths_R, mask_N, len(head_VD), **columns)
    seeds_R = np.arange(len(lengths_R)) + 1000 * step  # for rules that draw
    kept_N = torch.from_numpy(tip.select(tokens, seeds_R, step).weights_N > 0)
    of_kept = HiddenTarget(judged_ND[kept_N], teacher.lm_head.weight)
    loss = opd_ray.linear_divergence(hidden_ND[kept_N], head_VD, of_kept).loss / kept_N.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: KL {scores.reverse_kl_N.mean():.4f}, kept {kept_N.float().mean():.0%}")

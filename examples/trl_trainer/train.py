"""TIP's token filter and the fused loss in TRL's DistillationTrainer: python train.py"""

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DistillationConfig, DistillationTrainer

import opd_ray
from opd_ray import HiddenTarget, TipFilter, TipSettings, TokenScores


class TipTrainer(DistillationTrainer):
    tip = TipFilter(TipSettings(rule="soft_or", rho=0.5))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        texts_RL = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        seen_RL = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        written_RT, step = inputs["completion_mask"].bool(), self.state.global_step
        rows = slice(-written_RT.shape[1] - 1, -1)  # the positions that predict the response
        hidden_ND = model.base_model(texts_RL, seen_RL).last_hidden_state[:, rows][written_RT]
        with torch.no_grad():
            judged_RLD = self.teacher_model.base_model(texts_RL, seen_RL).last_hidden_state
        judged_ND = judged_RLD[:, rows][written_RT]
        head_VD, judge_VD = model.lm_head.weight, self.teacher_model.lm_head.weight
        target, ids_N = HiddenTarget(judged_ND, judge_VD), inputs["completion_ids"][written_RT]
        scores = opd_ray.exact_scores(hidden_ND.detach(), head_VD, target, sampled_ids_N=ids_N)
        read = ("entropy_N", "reverse_kl_N")  # by the rule
        columns = {name: getattr(scores, name).numpy(force=True) for name in read}
        lengths_R, mask_N = written_RT.sum(1).numpy(force=True), np.ones(len(ids_N), bool)
        tokens = TokenScores(lengths_R, mask_N, len(head_VD), **columns)
        seeds_R = np.arange(len(lengths_R)) + 1000 * step  # for rules that draw
        kept_N = torch.from_numpy(self.tip.select(tokens, seeds_R, step).weights_N > 0)
        kept_N = kept_N.to(ids_N.device)
        print(f"step {step}: KL {scores.reverse_kl_N.mean():.4f}, kept {kept_N.float().mean():.0%}")
        of_kept = HiddenTarget(judged_ND[kept_N], judge_VD)
        return opd_ray.linear_divergence(hidden_ND[kept_N], head_VD, of_kept).loss / kept_N.sum()


demo = opd_ray.load_config("demo")  # any two causal models with one vocabulary will do
options = {"max_steps": 15, "per_device_train_batch_size": 64, "gradient_accumulation_steps": 1}
options |= {"max_completion_length": 28, "learning_rate": 1e-4, "bf16": False, "report_to": []}
args = DistillationConfig("outputs/trl", **options)
prompts = Dataset.from_list([{"prompt": "12+34+56="}, {"prompt": "77+21+35="}] * 480)
tokenizer = AutoTokenizer.from_pretrained(demo.student.path)
TipTrainer(demo.student.path, demo.teacher.path, args, prompts, processing_class=tokenizer).train()

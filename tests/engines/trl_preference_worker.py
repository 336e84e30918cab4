"""Runs in the environment of TRL: losses and gradients of its trainers on pairs of token ids, from a job on standard
input to the files that the job names."""

from __future__ import annotations

import json
import sys

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class AnswerOrpoTrainer(ORPOTrainer):
    """ORPO whose cross-entropy is that of the better answer alone; TRL's is that of prompt and answer."""

    def concatenated_forward(self, model, batch):
        better, worse, better_logits, worse_logits, _ = super().concatenated_forward(model, batch)
        return better, worse, better_logits, worse_logits, -better.mean()


CLASSES = {
    "dpo": (DPOConfig, DPOTrainer),
    "simpo": (CPOConfig, CPOTrainer),
    "orpo": (ORPOConfig, AnswerOrpoTrainer),
}


def main() -> None:
    job = json.load(sys.stdin)
    losses = {}
    for case in job["cases"]:
        losses[case["name"]], gradients = compute(job, case)
        save_file(gradients, f"{job['folder']}/{case['name']}.safetensors")
    with open(job["out"], "w", encoding="utf-8") as stream:
        json.dump({"losses": losses, "rows": render(job)}, stream)


def compute(job, case):
    """The mean loss over all batches of a case, and its gradients by the names of the parameters."""
    trainer = make_trainer(job, case["stage"], case["options"])
    trainer.model.train()
    losses = []
    for start in range(0, len(job["pairs"]), case["batch"]):
        batch = make_batch(case["stage"], job["pairs"][start : start + case["batch"]])
        loss = trainer.compute_loss(trainer.model, batch)
        (loss * case["batch"] / len(job["pairs"])).backward()
        losses.append(loss.item())
    gradients = {name: weight.grad.contiguous() for name, weight in trainer.model.named_parameters()}
    return sum(losses) / len(losses), gradients


def make_trainer(job, stage, options):
    config, trainer = CLASSES[stage]
    common = {"bf16": False, "use_cpu": True, "report_to": [], "gradient_checkpointing": False, "max_length": 512}
    models = [AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float64)]
    if stage == "dpo":
        models.append(AutoModelForCausalLM.from_pretrained(job["reference"], dtype=torch.float64))
    rows = Dataset.from_list(job["rows"])
    tokenizer = AutoTokenizer.from_pretrained(job["policy"])
    return trainer(
        *models, args=config(job["folder"], **common, **options), train_dataset=rows, processing_class=tokenizer
    )


def make_batch(stage, pairs):
    """A batch as the trainer's collator makes it; the pairs are `{prompt, better, worse}` of token ids."""
    sides = {"chosen": "better", "rejected": "worse"}
    if stage == "dpo":
        rows = [(pair["prompt"], pair[side]) for side in sides.values() for pair in pairs]
        return {
            "input_ids": pad([prompt + answer for prompt, answer in rows], 0),
            "attention_mask": pad([[1] * len(prompt + answer) for prompt, answer in rows], 0),
            "completion_mask": pad([[0] * len(prompt) + [1] * len(answer) for prompt, answer in rows], 0),
        }
    batch = {}
    for name, side in sides.items():
        rows = [(pair["prompt"], pair[side]) for pair in pairs]
        batch[f"{name}_input_ids"] = pad([prompt + answer for prompt, answer in rows], 0)
        batch[f"{name}_attention_mask"] = pad([[1] * len(prompt + answer) for prompt, answer in rows], 0)
        batch[f"{name}_labels"] = pad([[-100] * len(prompt) + answer for prompt, answer in rows], -100)
    return batch


def pad(rows, value):
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def render(job):
    """The ids that DPOTrainer makes of rows of messages, with the chat template of the folder."""
    trainer = make_trainer(job, "dpo", {})
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: row[name] for name in names} for row in trainer.train_dataset]


if __name__ == "__main__":
    main()

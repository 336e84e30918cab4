"""Runs in the environment of TRL: a job from standard input, its results to the file that the job names."""

from __future__ import annotations

import json
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import is_chat_template_prefix_preserving, supports_tool_calling


def main() -> None:
    from datasets import Dataset

    job = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(job["model"]),
        SFTConfig(
            job["folder"],
            assistant_only_loss=True,
            max_steps=1,
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            max_length=None,
            save_strategy="no",
            bf16=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_list([{"messages": talk} for talk in job["conversations"]]),
        processing_class=tokenizer,
    )
    rows = [dict(row) for row in trainer.train_dataset]
    result = trainer.train()
    tools = supports_tool_calling(tokenizer)
    with open(job["out"], "w", encoding="utf-8") as stream:
        json.dump(
            {
                "rows": rows,
                "loss": result.training_loss,
                "tools": tools,
                "keeps_prefix": tools and is_chat_template_prefix_preserving(tokenizer),
            },
            stream,
        )


if __name__ == "__main__":
    main()

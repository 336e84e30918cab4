"""The reference task with TRL's SFTTrainer, for `training.py`: run by the Python of `make_envs.sh DIR trl`.

    DIR/trl/bin/python benchmarks/peers/trl_train.py MODEL ROWS.json OUT --settings JSON [--packing] [--precision bf16]

MODEL is a transformers folder. Rows are ids and labels, so that every trainer trains on the same tokens. Gradient
checkpointing, which TRL turns on by default, is off: here it only costs time. In bf16 the frozen weights are in bf16
too, as in glmtune and the bare loop.
"""

import argparse
import json

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("out")
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    task = args.settings
    with open(args.rows, encoding="utf-8") as file:
        rows = [{key: row[key] for key in ("input_ids", "labels")} for row in json.load(file)]
    weights = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=weights),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(
            r=task["rank"],
            lora_alpha=task["alpha"],
            lora_dropout=task["dropout"],
            target_modules=task["targets"],
            task_type="CAUSAL_LM",
        ),
        args=SFTConfig(
            output_dir=args.out,
            num_train_epochs=1,
            # A packed block has about as many tokens as the rows of a batch.
            per_device_train_batch_size=1 if args.packing else task["batch"],
            packing=args.packing,
            max_length=task["length"],
            learning_rate=task["learning_rate"],
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=args.precision == "bf16",
            gradient_checkpointing=False,
            seed=42,
        ),
    )
    seconds = trainer.train().metrics["train_runtime"]
    trainer.model.save_pretrained(args.out, save_embedding_layers=False)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    print()
    print(json.dumps({"seconds": seconds, "losses": losses, "device_peak_bytes": peak}))


if __name__ == "__main__":
    main()

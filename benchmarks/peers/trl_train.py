"""The reference work by TRL's SFTTrainer: run by the python of `make_envs.sh DIR trl`, for `training.py`.

    DIR/trl/bin/python benchmarks/peers/trl_train.py MODEL ROWS.json OUT --settings JSON [--packing] [--precision bf16]

MODEL is a transformers folder. Rows come as ids and labels, so that everybody learns the same tokens. Gradient
checkpointing, which TRL has on by default, is off: it only costs time here. In bf16 the frozen weights are held in
bf16 as well, as glmtune and the bare loop hold them.
"""

import argparse
import json

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("model")
    made.add_argument("rows")
    made.add_argument("out")
    made.add_argument("--settings", type=json.loads, required=True)
    made.add_argument("--packing", action="store_true")
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = made.parse_args()
    work = args.settings
    with open(args.rows, encoding="utf-8") as file:
        rows = [{key: row[key] for key in ("input_ids", "labels")} for row in json.load(file)]
    weights = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=weights),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(
            r=work["rank"],
            lora_alpha=work["alpha"],
            lora_dropout=work["dropout"],
            target_modules=work["targets"],
            task_type="CAUSAL_LM",
        ),
        args=SFTConfig(
            output_dir=args.out,
            num_train_epochs=1,
            # A block of packed rows is about as many tokens as the rows of a batch.
            per_device_train_batch_size=1 if args.packing else work["batch"],
            packing=args.packing,
            max_length=work["length"],
            learning_rate=work["learning_rate"],
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

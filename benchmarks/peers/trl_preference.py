"""DPO with TRL's DPOTrainer, for `preference.py`: run by the Python of `make_envs.sh DIR trl`.

    DIR/trl/bin/python benchmarks/peers/trl_preference.py MODEL PAIRS.jsonl OUT --settings JSON [--precomputed]

MODEL is a transformers folder, PAIRS have messages, which TRL renders with the folder's chat template. Gradient
checkpointing, which TRL turns on by default, is off: here it only costs time.
"""

import argparse
import json
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("out")
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--precomputed", action="store_true")
    args = parser.parse_args()
    task = args.settings
    with open(args.pairs, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    config = DPOConfig(
        output_dir=args.out,
        beta=args.beta,
        num_train_epochs=1,
        per_device_train_batch_size=task["batch"],
        precompute_ref_log_probs=args.precomputed,
        max_length=task["length"],
        learning_rate=task["learning_rate"],
        lr_scheduler_type="linear",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        seed=42,
    )
    adapter = LoraConfig(
        r=task["rank"],
        lora_alpha=task["alpha"],
        lora_dropout=0.0,
        target_modules=task["targets"],
        task_type="CAUSAL_LM",
    )
    start = time.perf_counter()
    trainer = DPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter
    )
    # The reference pass is a part of the construction; without it, that is a second of tokenization, not counted.
    seconds = time.perf_counter() - start if args.precomputed else 0.0
    seconds += trainer.train().metrics["train_runtime"]
    trainer.model.save_pretrained(args.out, save_embedding_layers=False)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print()
    print(json.dumps({"seconds": seconds, "losses": losses}))


if __name__ == "__main__":
    main()

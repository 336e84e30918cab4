"""Compare the losses and gradients of KTO and of a reward model with those of TRL's trainers, on tiny models.

TRL needs another transformers, so this runs in two environments:

    python tools/compare_trl_losses.py write FOLDER       # here: models, rows, our losses and gradients
    TRL/bin/python tools/compare_trl_losses.py check FOLDER   # where trl is installed: theirs, and the differences

Both compute in fp32 on the CPU, on three generations (transformers has no ChatGLM-6B), all rows in one batch: ours
packed into one sequence, TRL's padded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("chatglm2", "chatglm3", "glm4")
OPTIONS = {"beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.7, "center_rewards": 0.01}
ROWS = 6


def write_ours(folder: Path) -> None:
    """Write a base, a policy that differs from it, rows, and our losses and gradients for each generation."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from tiny import make_tiny

    for name in FAMILIES:
        place = folder / name
        base = make_tiny(name, place / "published")
        _write_family(place, base)


def _write_family(place: Path, base: Path) -> None:
    from transformers import GlmForSequenceClassification

    import glmtune
    from glmtune.config import PreferenceConfig
    from glmtune.data.batches import BlockCollator
    from glmtune.data.encoding import EncodedRow
    from glmtune.data.mismatched_rows import add_mismatched_rows
    from glmtune.methods.value_head import attach_value_head, make_value_head
    from glmtune.models.packed_attention import set_packed_attention
    from glmtune.preference.answer_logps import sum_by_row
    from glmtune.preference.losses import AnswerScores, compute_kto_losses, compute_reward_losses
    from glmtune.training.loss import step_loss
    from glmtune.training.row_scores import compute_row_scores

    torch.manual_seed(0)
    family, tokenizer = glmtune.detect_family(base), glmtune.load_tokenizer(base)
    texts = [(f"衣服{'好看' * number}吗", "很好看，谢谢" * (1 + number % 3)) for number in range(ROWS)]
    rows = []
    for number, (question, answer) in enumerate(texts):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        row = family.encode(messages, tokenizer)
        rows.append(EncodedRow(row.input_ids, row.labels, row.context, number, "", float(number % 2)))
    both = list(add_mismatched_rows(rows, 512))

    options = PreferenceConfig(**OPTIONS)
    model: Any = glmtune.load_model(base, dtype="fp32", device="cpu")
    model.save_pretrained(place / "base")
    collate = BlockCollator(family)
    plain, other = (collate([list(enumerate(both))[start::2]]) for start in (0, 1))
    set_packed_attention(model)
    with torch.no_grad():
        references = [sum_by_row(-step_loss(model, batch), batch)[0] for batch in (plain, other)]
    model.requires_grad_(True)
    # As in training (`load_trainable_base`): GLM-4's rows end with its padding token. TRL pads with another one here.
    model.get_input_embeddings().padding_idx = None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):  # towards the answers, so that the estimate of the KL divergence is above 0
        step_loss(model, plain).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    sums_R, lengths_R = sum_by_row(-step_loss(model, plain), plain)
    with torch.no_grad():
        kl = (sum_by_row(-step_loss(model, other), other)[0] - references[1]).mean().clamp(min=0)
    losses_R = compute_kto_losses(AnswerScores(sums_R, lengths_R, references[0]), plain["values"] > 0, kl, options)
    losses_R.losses_P.mean().backward()
    kto = {"loss": losses_R.losses_P.mean().item(), "kl": kl.item(), "gradients": _copy_gradients(model)}

    model.zero_grad()
    head = make_value_head(model)
    attach_value_head(model, head)
    rewards_R = compute_row_scores(model, plain).double()
    margins_P = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    loss = compute_reward_losses(rewards_R[::2], rewards_R[1::2], margins_P, options).mean()
    loss.backward()
    reward = {"loss": loss.item(), "gradients": _copy_gradients(model)}

    del model.score
    model.save_pretrained(place / "policy")
    classifier = GlmForSequenceClassification.from_pretrained(place / "policy", num_labels=1, dtype=torch.float32)
    classifier.score.weight.data.copy_(head.weight.data)
    classifier.config.pad_token_id = tokenizer.convert_tokens_to_ids("[MASK]")  # never the token that ends a row
    classifier.save_pretrained(place / "classifier")
    tokenizer.save_pretrained(place / "tokenizer")
    torch.save({"kto": kto, "rm": reward}, place / "ours.pt")

    def split(row: EncodedRow) -> tuple[list[int], list[int]]:
        start = next(index for index, label in enumerate(row.labels) if label != -100)
        return list(row.input_ids[:start]), list(row.input_ids[start:])

    examples = [
        {
            "prompt_ids": split(row)[0],
            "completion_ids": split(row)[1],
            "KL_completion_ids": split(mismatched)[1],
            "label": bool(row.value),
        }
        for row, mismatched in zip(both[::2], both[1::2], strict=True)
    ]
    pairs = [
        {"chosen_ids": list(rows[i].input_ids), "rejected_ids": list(rows[i + 1].input_ids), "margin": margin}
        for i, margin in zip(range(0, ROWS, 2), margins_P.tolist(), strict=True)
    ]
    (place / "rows.json").write_text(json.dumps({"kto": examples, "pairs": pairs}), encoding="utf-8")


def check_theirs(folder: Path) -> None:
    """Compute the same with TRL and print the differences."""
    for name in FAMILIES:
        place = folder / name
        ours = torch.load(place / "ours.pt", weights_only=True)
        rows = json.loads((place / "rows.json").read_text("utf-8"))
        for stage, compute in (("kto", _compute_kto), ("rm", _compute_rewards)):
            loss, gradients = compute(place, rows)
            own = ours[stage]["gradients"]
            assert own.keys() == gradients.keys(), own.keys() ^ gradients.keys()
            largest = max((own[key] - gradients[key]).abs().max().item() for key in own)
            size = max(value.abs().max().item() for value in own.values())
            kl = f", kl {ours[stage]['kl']:.4f}" if "kl" in ours[stage] else ""
            print(
                f"{name} {stage}: loss {ours[stage]['loss']:.7f} here, {loss:.7f} in TRL, differs by "
                f"{abs(loss - ours[stage]['loss']):.1e}; gradients differ by {largest:.1e} of up to {size:.2f}{kl}"
            )


def _compute_kto(place: Path, rows: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    class EncodedKTOTrainer(KTOTrainer):
        """TRL's trainer on rows that are encoded already."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    model = AutoModelForCausalLM.from_pretrained(place / "policy", dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    tokenizer.pad_token = "[MASK]"
    config = KTOConfig(
        output_dir=str(place / "trl"),
        per_device_train_batch_size=ROWS,
        beta=OPTIONS["beta"],
        desirable_weight=OPTIONS["desirable_weight"],
        undesirable_weight=OPTIONS["undesirable_weight"],
        **_make_arguments(),
    )
    dataset = Dataset.from_list(rows["kto"])
    trainer = EncodedKTOTrainer(
        model=model, ref_model=reference, args=config, train_dataset=dataset, processing_class=tokenizer
    )
    batch = trainer.data_collator(rows["kto"])
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    return loss.item(), _copy_gradients(trainer.model)


def _compute_rewards(place: Path, rows: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(place / "classifier", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    tokenizer.pad_token = "[MASK]"
    config = RewardConfig(
        output_dir=str(place / "trl"),
        per_device_train_batch_size=ROWS // 2,
        center_rewards_coefficient=OPTIONS["center_rewards"],
        **_make_arguments(),
    )
    dataset = Dataset.from_list(rows["pairs"])
    trainer = RewardTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(rows["pairs"]))
    loss.backward()
    return loss.item(), _copy_gradients(trainer.model)


def _make_arguments() -> dict[str, Any]:
    return {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None}


def _copy_gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    {"write": write_ours, "check": check_theirs}[sys.argv[1]](Path(sys.argv[2]))

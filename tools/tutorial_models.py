"""Small models that stand in for the 6B checkpoints while the tutorials are recorded.

ChatGLM3 is the base of `glmtune demo`; ChatGLM2 is the same network under its name. ChatGLM-6B is a new network, which
is trained on the dialogues of the demo's corpus: some minutes on two CPU cores.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

from demo_corpus import corpus

HIDDEN, LAYERS, HEADS, FFN = 192, 3, 6, 768
_INITIAL_STD = 0.05


def make_model(family: str, folder: Path, steps: int = 500) -> Path:
    """Write a small model that answers questions of the demo's corpus.

    Args:
        family: `chatglm`, `chatglm2` or `chatglm3`.
        folder: where the checkpoint is written, in the published layout. If it exists, it is kept.
        steps: optimizer steps of the training of ChatGLM-6B.

    Returns:
        The folder.
    """
    if folder.exists():
        return folder
    if family != "chatglm":
        shutil.copytree(str(files("glmtune.demo") / "base"), folder)
        path = folder / "config.json"
        config = json.loads(path.read_text("utf-8"))
        del config["glmtune_family"]
        config["_name_or_path"] = f"THUDM/{family}-6b"
        path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        return folder
    work = folder.with_name(f"{folder.name}.training")
    if not (work / "raw").exists():
        _write_untrained_model(work / "raw")
    _train_on_dialogues(work, steps)
    command = ["export", str(work / "run"), str(folder), "--format", "official", "--dtype", "fp16"]
    subprocess.run([sys.executable, "-m", "glmtune", *command], check=True)
    shutil.rmtree(work)
    return folder


def _train_on_dialogues(work: Path, steps: int) -> None:
    """Train all weights, or resume an interrupted training."""
    data = work / "dialogues.jsonl"
    rows = ({"messages": messages} for messages in corpus.make_dialogues(8 * steps, seed=3))
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    settings = {
        "data.max_length": 256,
        "data.eval_fraction": 0,
        "training.max_steps": steps,
        "training.learning_rate": 2e-3,
        "training.lr_scheduler_type": "linear",
        "training.warmup_steps": 0.05,
        "training.weight_decay": 0.01,
        "training.adam_beta2": 0.98,
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 1,
        "training.save_steps": 100,
        "training.save_total_limit": 1,
        "training.logging_steps": 25,
    }
    command = ["train", "--model", str(work / "raw"), "--data", str(data), "--output", str(work / "run")]
    command += ["--method", "full", *(f"--set={key}={value}" for key, value in settings.items())]
    if (work / "run" / "checkpoints").exists():
        command = ["train", "--resume", "--output", str(work / "run")]
    subprocess.run([sys.executable, "-m", "glmtune", *command], check=True)


def _write_untrained_model(folder: Path) -> None:
    """Random weights in the layout of ChatGLM-6B, and a Unigram tokenizer of the demo's corpus."""
    folder.mkdir(parents=True)
    serialized = _train_tokenizer()
    (folder / "ice_text.model").write_bytes(serialized)
    settings = {"num_image_tokens": 0, "tokenizer_class": "ChatGLMTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    size = processor.vocab_size()
    config = {
        "_name_or_path": "THUDM/chatglm-6b",
        "model_type": "chatglm",
        "bos_token_id": processor.piece_to_id("<sop>"),
        "eos_token_id": processor.piece_to_id("<eop>"),
        "mask_token_id": processor.piece_to_id("[MASK]"),
        "gmask_token_id": processor.piece_to_id("[gMASK]"),
        "pad_token_id": 3,
        "hidden_size": HIDDEN,
        "inner_hidden_size": FFN,
        "layernorm_epsilon": 1e-5,
        "max_sequence_length": 2048,
        "num_attention_heads": HEADS,
        "num_layers": LAYERS,
        "position_encoding_2d": True,
        "torch_dtype": "float32",
        "vocab_size": size,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    generator = torch.Generator().manual_seed(0)
    weights = {"transformer.word_embeddings.weight": (size, HIDDEN), "lm_head.weight": (size, HIDDEN)}
    biases: dict[str, int] = {}
    norms = ["transformer.final_layernorm"]
    for layer in range(LAYERS):
        prefix = f"transformer.layers.{layer}."
        for name, rows, columns in (
            ("attention.query_key_value", 3 * HIDDEN, HIDDEN),
            ("attention.dense", HIDDEN, HIDDEN),
            ("mlp.dense_h_to_4h", FFN, HIDDEN),
            ("mlp.dense_4h_to_h", HIDDEN, FFN),
        ):
            weights[f"{prefix}{name}.weight"] = (rows, columns)
            biases[f"{prefix}{name}.bias"] = rows
        norms += [f"{prefix}input_layernorm", f"{prefix}post_attention_layernorm"]
    state = {name: torch.randn(shape, generator=generator) * _INITIAL_STD for name, shape in weights.items()}
    state |= {name: torch.zeros(rows) for name, rows in biases.items()}
    state |= {f"{name}.weight": torch.ones(HIDDEN) for name in norms}
    state |= {f"{name}.bias": torch.zeros(HIDDEN) for name in norms}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _train_tokenizer() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus.iter_corpus_lines(6_000, 0),
        model_writer=model,
        model_type="unigram",
        vocab_size=1600,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        max_sentencepiece_length=4,
        normalization_rule_name="nmt_nfkc",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))],
        control_symbols=["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>"],
    )
    return model.getvalue()

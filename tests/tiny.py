"""Tiny random checkpoints of each generation in the published layout, without any downloaded file."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
from pathlib import Path

import sentencepiece as spm
import torch
from safetensors.torch import save_file

from demo_corpus.corpus import make_adgen_rows

FAMILIES = ("chatglm", "chatglm2", "chatglm3", "glm4")
HIDDEN, LAYERS, HEADS = 32, 2, 4


def make_tiny(
    family: str,
    folder: Path,
    *,
    layout: str = "safetensors",
    seed: int = 0,
    hidden: int = HIDDEN,
    layers: int = LAYERS,
) -> Path:
    """Write a checkpoint of `family`.

    Args:
        family: one of `FAMILIES`.
        folder: where it is written.
        layout: `safetensors`, `bin`, or `shards` (two .bin files without an index).
        seed: of the random weights.
        hidden: hidden size; that of the MLP is twice as large. A multiple of 64 for bitsandbytes on the CPU.
        layers: number of layers.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(family, folder)
    config, shapes = _make_config(family, folder, hidden, layers)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    state = {name: _make_weight(name, shape, generator) for name, shape in shapes.items()}
    write_weights(state, folder, layout)
    return folder


def write_weights(state: dict[str, torch.Tensor], folder: Path, layout: str) -> None:
    """Write a state dict in one of the layouts of published folders."""
    if layout == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif layout == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = sorted(state)
        half = len(names) // 2
        for i, part in enumerate((names[:half], names[half:]), start=1):
            torch.save({name: state[name] for name in part}, folder / f"pytorch_model-{i:05d}-of-00002.bin")


def write_tokenizer(family: str, folder: Path) -> None:
    """Train a tokenizer of the family's type on a little synthetic text."""
    if family == "glm4":
        ranks = [bytes([i]) for i in range(256)] + [b"ab", b"abc"]
        lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(ranks)]
        (folder / "tokenizer.model").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    if family == "chatglm":
        (folder / "ice_text.model").write_bytes(_train_unigram_model())
        settings = {"num_image_tokens": 0, "tokenizer_class": "ChatGLMTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    else:
        (folder / "tokenizer.model").write_bytes(_train_bpe_model())


def _make_sentences() -> list[str]:
    rows = make_adgen_rows(60, seed=5)
    ascii = "".join(map(chr, range(33, 127)))
    return [text for row in rows for text in (row["content"], row["summary"])] + ["问：答：", "hello world", ascii]


def _train_tokenizer(**options: object) -> bytes:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(_make_sentences()),
        model_writer=model,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=2,
        **options,
    )
    return model.getvalue()


@functools.cache
def _train_bpe_model() -> bytes:
    return _train_tokenizer(
        model_type="bpe",
        vocab_size=900,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
    )


@functools.cache
def _train_unigram_model() -> bytes:
    return _train_tokenizer(
        model_type="unigram",
        vocab_size=1100,
        normalization_rule_name="nmt_nfkc",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))],
        control_symbols=["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>"],
    )


def _make_config(family: str, folder: Path, hidden: int, layers: int) -> tuple[dict, dict[str, tuple[int, ...]]]:
    if family == "chatglm":
        model = spm.SentencePieceProcessor(model_file=str(folder / "ice_text.model"))
        return _make_chatglm_config(model, hidden, layers)
    if family == "glm4":
        size = 258 + 14
    else:
        size = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size() + 9
    return _make_glm_config(family, size, hidden, layers)


def _make_chatglm_config(
    model: spm.SentencePieceProcessor, hidden: int, layers: int
) -> tuple[dict, dict[str, tuple[int, ...]]]:
    vocabulary, ffn = model.vocab_size(), 2 * hidden
    config = {
        "model_type": "chatglm",
        "bos_token_id": model.piece_to_id("<sop>"),
        "eos_token_id": model.piece_to_id("<eop>"),
        "mask_token_id": model.piece_to_id("[MASK]"),
        "gmask_token_id": model.piece_to_id("[gMASK]"),
        "pad_token_id": 3,
        "hidden_size": hidden,
        "inner_hidden_size": ffn,
        "layernorm_epsilon": 1e-5,
        "max_sequence_length": 512,
        "num_attention_heads": HEADS,
        "num_layers": layers,
        "position_encoding_2d": True,
        "torch_dtype": "float32",
        "vocab_size": vocabulary,
    }
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (vocabulary, hidden)}
    for i in range(layers):
        p = f"transformer.layers.{i}."
        for name, rows, columns in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", ffn, hidden),
            ("mlp.dense_4h_to_h", hidden, ffn),
        ):
            shapes |= {f"{p}{name}.weight": (rows, columns), f"{p}{name}.bias": (rows,)}
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{p}{name}.weight": (hidden,), f"{p}{name}.bias": (hidden,)}
    shapes |= {"transformer.final_layernorm.weight": (hidden,), "transformer.final_layernorm.bias": (hidden,)}
    return config, shapes | {"lm_head.weight": (vocabulary, hidden)}


def _make_glm_config(family: str, size: int, hidden: int, layers: int) -> tuple[dict, dict[str, tuple[int, ...]]]:
    ffn = 2 * hidden
    # GLM-4 is detected by its vocabulary size, which a tiny model cannot have, the others by their published names.
    name = {"glm4": {"glmtune_family": "glm4"}}.get(family, {"_name_or_path": f"THUDM/{family}-6b"})
    end = 258 if family == "glm4" else 2
    config = name | {
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "ffn_hidden_size": ffn,
        "hidden_size": hidden,
        "kv_channels": hidden // HEADS,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": HEADS,
        "num_layers": layers,
        "padded_vocab_size": size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 512,
        "torch_dtype": "float32",
        "eos_token_id": end,
        "pad_token_id": end if family == "glm4" else 0,
    }
    kv = 2 * hidden // HEADS
    shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": (size, hidden)}
    for i in range(layers):
        p = f"transformer.encoder.layers.{i}."
        shapes |= {
            f"{p}input_layernorm.weight": (hidden,),
            f"{p}self_attention.query_key_value.weight": (hidden + 2 * kv, hidden),
            f"{p}self_attention.query_key_value.bias": (hidden + 2 * kv,),
            f"{p}self_attention.dense.weight": (hidden, hidden),
            f"{p}post_attention_layernorm.weight": (hidden,),
            f"{p}mlp.dense_h_to_4h.weight": (2 * ffn, hidden),
            f"{p}mlp.dense_4h_to_h.weight": (hidden, ffn),
        }
    shapes["transformer.encoder.final_layernorm.weight"] = (hidden,)
    return config, shapes | {"transformer.output_layer.weight": (size, hidden)}


def _make_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if "layernorm.weight" in name:
        return torch.ones(shape)
    # Larger than a real initialization, so that the logits of a tiny model differ clearly.
    return torch.randn(shape, generator=generator) * (0.02 if name.endswith("bias") else 0.2)


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

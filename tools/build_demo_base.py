"""Build `src/glmtune/demo/base`: a tiny ChatGLM3 in the official layout, trained on the synthetic demo corpus.

    python tools/build_demo_base.py [OUT] [--steps N] [--threads N]

The result depends on the seed alone. Training takes about ten minutes on two CPU cores, under bf16 autocast, which is
twice as fast on processors that support it.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import GlmConfig, GlmForCausalLM

from demo_corpus import corpus

OUT = Path(__file__).resolve().parent.parent / "src/glmtune/demo/base"
# Their ids follow those of the SentencePiece vocabulary, in the published order.
SPECIAL_TOKENS = (
    *("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)
PIECES = 1520
CONFIG = {
    "_name_or_path": "glmtune/demo-base",
    "glmtune_family": "chatglm3",
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 576,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 256,
    "kv_channels": 32,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 8,
    "num_layers": 4,
    "original_rope": True,
    "padded_vocab_size": 64 * math.ceil((PIECES + len(SPECIAL_TOKENS)) / 64),
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 1024,
    "use_cache": True,
    "torch_dtype": "float16",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOKENIZER_CONFIG = {
    "name_or_path": "glmtune/demo-base",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
}
PROMPTS = (
    *("你好", "你是谁？", "3加4等于几？", "把“苹果”翻译成英文。", "请重复：月亮、毛衣、狗", "v领有什么特点？"),
    *("类型#裙*颜色#白色*风格#简约*裙型#百褶裙", "类型#上衣*材质#雪纺*颜色#蓝色*衣样式#衬衫*衣领型#v领\n材质是什么？"),
)


def train_tokenizer(seed: int) -> bytes:
    """Train a SentencePiece model with the options of the published one, except for its size."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus.iter_corpus_lines(12_000, seed),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        normalization_rule_name="identity",
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        max_sentencepiece_length=4,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


class Renderer:
    """Encodes conversations in the format of ChatGLM3 with SentencePiece alone."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor):
        self.encode = processor.encode
        self.decode = processor.decode
        first = processor.vocab_size()
        self.special = {token: first + i for i, token in enumerate(SPECIAL_TOKENS)}
        self.stops = [2, self.special["<|user|>"], self.special["<|observation|>"]]

    def encode_row(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Return ids, and labels that are -100 except on the assistant's texts and on the token after each of them."""
        ids = [self.special["[gMASK]"], self.special["sop"]]
        labels = [-100, -100]
        is_answer = False
        for message in messages:
            role = self.special[f"<|{message['role']}|>"]
            text = self.encode("\n") + self.encode(message["content"])
            ids += [role, *text]
            labels += [role if is_answer else -100]
            is_answer = message["role"] == "assistant"
            labels += text if is_answer else [-100] * len(text)
        return [*ids, 2], [*labels, 2 if is_answer else -100]

    def encode_prompt(self, query: str) -> list[int]:
        """Return the ids of a prompt with one question."""
        return [*self.encode_row([{"role": "user", "content": query}])[0][:-1], self.special["<|assistant|>"]]


def iter_batches(rows: list[tuple[list[int], list[int]]], size: int, rng: random.Random):
    """Yield right-padded batches of rows of similar length without end: ids and labels, each (size, longest row)."""
    while True:
        order = rng.sample(rows, len(rows))
        for first in range(0, len(order) - 32 * size + 1, 32 * size):
            pool = sorted(order[first : first + 32 * size], key=lambda row: len(row[0]))
            for start in rng.sample(range(0, len(pool), size), 32):
                part = pool[start : start + size]
                # Few different shapes, because kernels are prepared per shape.
                longest = -(-max(len(ids) for ids, _ in part) // 16) * 16
                yield tuple(
                    torch.tensor([row[i] + [fill] * (longest - len(row[i])) for row in part])
                    for i, fill in ((0, 0), (1, -100))
                )


def make_model(seed: int) -> GlmForCausalLM:
    """Build the model of transformers with random weights."""
    torch.manual_seed(seed)
    model = GlmForCausalLM(
        GlmConfig(
            vocab_size=CONFIG["padded_vocab_size"],
            hidden_size=CONFIG["hidden_size"],
            intermediate_size=CONFIG["ffn_hidden_size"],
            num_hidden_layers=CONFIG["num_layers"],
            num_attention_heads=CONFIG["num_attention_heads"],
            num_key_value_heads=CONFIG["multi_query_group_num"],
            head_dim=CONFIG["kv_channels"],
            attention_bias=CONFIG["add_qkv_bias"],
            partial_rotary_factor=0.5,
            rms_norm_eps=CONFIG["layernorm_epsilon"],
            max_position_embeddings=CONFIG["seq_length"],
            tie_word_embeddings=False,
            pad_token_id=0,
            eos_token_id=2,
            bos_token_id=1,
        )
    )
    # On a CPU the backward pass of fused attention takes as long as everything else together.
    model.set_attn_implementation("eager")
    return model


def train_model(model: GlmForCausalLM, rows, steps: int, seed: int) -> None:
    """Train with Muon on the matrices of the layers and AdamW on the rest; linear warm-up and decay."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(others, lr=0.004, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / 50, (steps - step) / (0.6 * steps), 1))
        for o in optimizers
    ]
    model.train()
    batches = iter_batches(rows, 64, random.Random(seed))
    start_time, token_count, mean_loss = time.time(), 0, None
    for step in range(1, steps + 1):
        ids, labels = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in (*optimizers, *schedules):
            stepper.step()
        model.zero_grad()
        token_count += ids.numel()
        mean_loss = loss.item() if mean_loss is None else 0.95 * mean_loss + 0.05 * loss.item()
        if step % 50 == 0 or step == steps:
            seconds = time.time() - start_time
            print(
                f"step {step}/{steps}  loss {mean_loss:.3f}  {token_count / seconds:.0f} tokens/s  "
                f"{seconds:.0f} s  ETA {seconds / step * (steps - step):.0f} s",
                flush=True,
            )


def to_official_state(model: GlmForCausalLM) -> dict[str, torch.Tensor]:
    """Return the weights in fp16 with the names and fused shapes of the published checkpoints."""
    state = model.state_dict()
    result = {
        "transformer.embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": state["model.norm.weight"],
        "transformer.output_layer.weight": state["lm_head.weight"],
    }
    names = {
        "input_layernorm": "input_layernorm",
        "post_attention_layernorm": "post_attention_layernorm",
        "self_attn.o_proj": "self_attention.dense",
        "mlp.gate_up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    for layer in range(CONFIG["num_layers"]):
        ours, theirs = f"model.layers.{layer}.", f"transformer.encoder.layers.{layer}."
        for old, new in names.items():
            result[f"{theirs}{new}.weight"] = state[f"{ours}{old}.weight"]
        for kind in ("weight", "bias"):
            parts = [state[f"{ours}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{theirs}self_attention.query_key_value.{kind}"] = torch.cat(parts)
    return {name: tensor.half().contiguous() for name, tensor in result.items()}


@torch.no_grad()
def generate_reply(model: GlmForCausalLM, renderer: Renderer, query: str) -> str:
    """Generate a reply with greedy decoding."""
    ids = renderer.encode_prompt(query)
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=96,
        do_sample=False,
        eos_token_id=renderer.stops,
        pad_token_id=0,
    )[0, len(ids) :].tolist()
    return renderer.decode([i for i in output if i not in renderer.stops]).strip()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out", type=Path, nargs="?", default=OUT)
    arguments.add_argument("--steps", type=int, default=1500)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--threads", type=int, default=2)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)

    serialized = train_tokenizer(args.seed)
    renderer = Renderer(sentencepiece.SentencePieceProcessor(model_proto=serialized))
    rows = [renderer.encode_row(messages) for messages in corpus.make_dialogues(args.rows, args.seed)]
    tokens = sum(len(ids) for ids, _ in rows)
    model = make_model(args.seed)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(rows)} conversations, {tokens} tokens; {parameters} parameters", flush=True)
    train_model(model, rows, args.steps, args.seed)

    args.out.mkdir(parents=True, exist_ok=True)
    save_file(to_official_state(model), args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "tokenizer.model").write_bytes(serialized)
    for name, content in (("config.json", CONFIG), ("tokenizer_config.json", TOKENIZER_CONFIG)):
        (args.out / name).write_text(json.dumps(content, indent=2) + "\n")
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.1f} MB")

    model.half().float().eval()
    for query in PROMPTS:
        print(f"\n> {query}\n{generate_reply(model, renderer, query)}")


if __name__ == "__main__":
    main()

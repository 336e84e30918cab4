"""`data.new_tokens`: tokens that a run adds to its base, their trained rows, and what is made of the run."""

from __future__ import annotations

import json

import pytest
import torch

import glmtune
from glmtune.families.family import tokenize_text
from glmtune.generation.load import load_for_generation
from tiny import FAMILIES

TOKENS = ["<ENTITY>", "面料甲", "ΔT_max"]
TEXT = "上衣<ENTITY>白色面料甲"
FAST = ("training.max_steps=4", "training.gradient_accumulation_steps=1", "lora.dropout=0", "data.eval_fraction=0")


@pytest.fixture
def rows_file(tmp_path):
    """Questions and answers with the tokens."""
    path = tmp_path / "rows.json"
    rows = [{"prompt": f"类型#ΔT_max上衣<ENTITY>{i}", "response": f"面料甲 白色<ENTITY>{i}"} for i in range(8)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return path


@pytest.fixture
def train(glmtune_command, rows_file, tmp_path):
    """`train(base, "key=value", ...)`: a run with the new tokens, and what the command printed."""

    def run(base, *settings, output="run", tokens=TOKENS, more=()):
        settings = (*FAST, "training.learning_rate=1e-2", *settings)
        if tokens:
            settings = (*settings, f"data.new_tokens={json.dumps(tokens, ensure_ascii=False)}")
        result = glmtune_command(
            *("train", "--model", base, "--data", rows_file, "--output", tmp_path / output, *more),
            *(part for setting in settings for part in ("--set", setting)),
        )
        return tmp_path / output, result

    return run


def _logits(model, tokenizer, text=TEXT):
    ids = tokenize_text(tokenizer, text)
    mask = torch.ones(1, len(ids), dtype=torch.long)
    return model(input_ids=torch.tensor([ids]), attention_mask=mask).logits.detach()


def _weights(model):
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_their_rows_and_no_others(family, tiny, train, glmtune_command, tmp_path):
    base_tokenizer = glmtune.load_tokenizer(tiny(family))
    free = len(base_tokenizer)
    run, result = train(tiny(family))
    assert result.code == 0, result.err
    assert f"New tokens: 3, ids {free} to {free + 2}" in result.out

    loaded = load_for_generation(str(run), device="cpu")
    ids = tokenize_text(loaded.tokenizer, TEXT)
    assert ids.count(free) == ids.count(free + 1) == 1
    assert "<ENTITY>" in loaded.tokenizer.decode(ids)
    before = glmtune.load_model(tiny(family))
    for old, new in zip(_weights(before), _weights(loaded.model), strict=True):
        assert torch.equal(new[:free], old[:free])
        for number, token in enumerate(TOKENS):
            pieces = old[tokenize_text(base_tokenizer, token)].mean(0)
            assert (new[free + number] - pieces).abs().max() > 1e-4, token

    logits = _logits(loaded.model, loaded.tokenizer)
    again = load_for_generation(str(run / "adapter"), base=str(tiny(family)), device="cpu")
    assert torch.equal(_logits(again.model, again.tokenizer), logits)

    # ChatGLM-6B and GLM-4 have no free rows here, so their embeddings grow.
    layout, other = ("hf", "official") if family in ("chatglm", "chatglm2") else ("official", "hf")
    for more in (("--format", layout), ("--format", other, "--adapter-only")):
        out = tmp_path / more[1]
        result = glmtune_command("export", run, out, *more)
        assert result.code == 0, result.err
        exported = load_for_generation(str(out), base=str(tiny(family)) if more[2:] else None, device="cpu")
        assert tokenize_text(exported.tokenizer, TEXT) == ids
        torch.testing.assert_close(_logits(exported.model, exported.tokenizer), logits, atol=1e-5, rtol=1e-5)

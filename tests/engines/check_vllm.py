"""Exported folders on vLLM: prompts token for token, greedy replies, adapters beside an untouched base, its server."""

from __future__ import annotations

import pytest
from engine_models import (
    LENGTH,
    MODELS,
    answer_greedily,
    drop_stop_ids,
    export,
    load_ours,
    make_adapter,
    make_case,
    run_in,
)


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    return make_case(request.param, tmp_path_factory.mktemp("base") / request.param)


def ask(case, out, **options):
    return run_in("vllm", "vllm_worker.py", {"prompts": case.prompts, "max_tokens": LENGTH} | options, out)


def test_a_base_and_an_adapter_beside_it(case, tmp_path):
    """The base as `--format hf` writes it, with the adapter as it was trained and as `--adapter-only` writes it."""
    adapter = make_adapter(case, tmp_path / "adapter")
    export(case.folder, tmp_path / "hf", "--dtype", "fp32")
    export(adapter, tmp_path / "alone", "--adapter-only")
    found = ask(
        case,
        tmp_path / "out.json",
        model=str(tmp_path / "hf"),
        adapters={"trained": str(adapter), "written": str(tmp_path / "alone")},
        conversations=case.conversations,
    )
    base, tuned = answer_greedily(load_ours(case), case), answer_greedily(load_ours(case, adapter), case)
    assert found["prompts"] == case.prompts
    assert drop_stop_ids(found["replies"][""], case) == base
    assert drop_stop_ids(found["replies"]["trained"], case) == tuned
    assert drop_stop_ids(found["replies"]["written"], case) == tuned
    assert base != tuned


def test_the_published_folder_and_an_adapter_beside_it(case, tmp_path):
    """The untouched base, which vLLM computes with code of its own; the tokenizer's files come from an export."""
    adapter = make_adapter(case, tmp_path / "adapter")
    export(case.folder, tmp_path / "hf", "--dtype", "fp32")
    export(adapter, tmp_path / "official", "--adapter-only", "--format", "official")
    found = ask(
        case,
        tmp_path / "out.json",
        model=str(case.folder),
        tokenizer=str(tmp_path / "hf"),
        adapters={"official": str(tmp_path / "official")},
        conversations=case.conversations,
    )
    assert found["prompts"] == case.prompts
    assert drop_stop_ids(found["replies"][""], case) == answer_greedily(load_ours(case), case)
    assert drop_stop_ids(found["replies"]["official"], case) == answer_greedily(load_ours(case, adapter), case)

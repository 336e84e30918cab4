"""`glmtune bench`: figures that belong together, whatever a model is held in; errors before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import glmtune
from glmtune.bench import cases as benchmark_run
from glmtune.bench.cases import BenchmarkSizes, make_cases, measure_case
from glmtune.bench.measure import count_read_bytes, count_weight_bytes, measure_model
from glmtune.errors import ConfigError
from tiny import FAMILIES

SMALL = BenchmarkSizes(prompt_tokens=6, new_tokens=4, batch_sizes=(1, 3), repeats=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_measurement_adds_up(family, tiny):
    model = glmtune.load_model(tiny(family), dtype="fp32", device="cpu")
    found = measure_model(model, prompt_tokens=6, new_tokens=4, batch_size=3, repeats=2)
    assert (found.batch_size, found.prompt_tokens, found.new_tokens, found.repeats) == (3, 6, 4, 2)
    assert found.prefill_tokens_per_s == pytest.approx(18 / found.first_token_s)
    assert found.decode_tokens_per_s == pytest.approx(3 / found.token_s)
    assert found.limit_share == pytest.approx(found.read_bytes / found.token_s / found.bandwidth)
    embedding = model.get_input_embeddings().weight
    assert found.read_bytes == count_read_bytes(model) == count_weight_bytes(model) - embedding.numel() * 4


def test_a_head_that_is_the_embedding_is_read(tiny):
    model = glmtune.load_model(tiny("chatglm3"), dtype="fp32", device="cpu")
    model.lm_head.weight = model.model.embed_tokens.weight
    assert count_read_bytes(model) == count_weight_bytes(model)


@pytest.fixture
def run(tmp_path, tiny, adgen_file, glmtune_command):
    done = glmtune_command(
        *("train", "--model", tiny("chatglm3"), "--data", adgen_file(8), "--output", tmp_path / "run"),
        *("--set", "training.max_steps=2", "--set", "data.eval_fraction=0"),
    )
    assert done.code == 0, done.err
    return tmp_path / "run"


@pytest.fixture
def in_this_process(monkeypatch):
    """Processes of their own cost seconds; one test below starts one."""

    def run_here(cases, sizes, on_case=None):
        return [measure_case(case, sizes) for case in cases]

    monkeypatch.setattr(benchmark_run, "run_cases", run_here)


def test_a_run_is_measured_as_base_adapter_and_merged(run, tmp_path, glmtune_command, in_this_process):
    sizes = ("--prompt-tokens", 6, "--new-tokens", 4, "--repeats", 1, "--batch-sizes", "1,2")
    done = glmtune_command("bench", run, *sizes, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "out/bench.json").read_text("utf-8"))
    forms = [(each["form"], each["variant"]) for each in figures["results"]]
    assert forms == [
        *(("base", "16-bit"), ("adapter", "16-bit"), ("merged", "16-bit")),
        *(("base", "packed8"), ("base", "packed4")),
    ]
    weights = {form: each["weights"] for form, each in zip(forms, figures["results"], strict=True)}
    assert weights["base", "16-bit"] == weights["merged", "16-bit"] < weights["adapter", "16-bit"]
    assert weights["base", "packed4"] < weights["base", "packed8"] < weights["base", "16-bit"]
    assert [m["batch_size"] for m in figures["results"][0]["measured"]] == [1, 2]
    assert (tmp_path / "out/bench.png").read_bytes().startswith(b"\x89PNG")
    assert done.out.count("merged") == 2
    assert figures["command"].startswith("glmtune bench ")


def test_a_process_of_its_own_and_json_on_the_output(tiny, tmp_path, glmtune_command):
    done = glmtune_command(
        *("bench", tiny("chatglm"), "--variants", "fp32", "--batch-sizes", 1, "--prompt-tokens", 4, "--json"),
        *("--new-tokens", 3, "--repeats", 1, "--out", tmp_path / "out", "--device", "cpu"),
    )
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["results"]
    assert (result["dtype"], result["form"]) == ("fp32", "base")
    assert result["peak"] >= result["loaded"] > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--variants", "int88"), "no variant 'int88'. Did you mean packed8?"),
        (("--variants", "pack8"), "Did you mean packed8?"),
        (("--variants", ","), "Nothing to measure"),
        (("--batch-sizes", "1,x"), "--batch-sizes is '1,x'"),
        (("--batch-sizes", "0"), "--batch-sizes is '0'; it must be whole numbers from 1"),
        (("--batch-sizes", ","), "--batch-sizes is ','"),
        (("--prompt-tokens", "500"), "more than the model's 512 positions"),
        (("--new-tokens", "1"), "nothing to measure"),
        (("--dtype", "fp12"), "--dtype cannot be 'fp12'"),
    ],
)
def test_mistakes_are_told(options, told, tiny, tmp_path, glmtune_command):
    done = glmtune_command("bench", tiny("chatglm3"), *options, "--out", tmp_path / "out")
    assert done.code == 1
    assert told in done.err
    assert not (tmp_path / "out").exists()


def test_a_quantised_checkpoint_is_measured_as_it_is(tiny, tmp_path, glmtune_command):
    out = tmp_path / "packed4"
    assert glmtune_command("export", tiny("chatglm3"), out, "--format", "official", "--bits", 4).code == 0
    (case,) = make_cases([str(out)], ["16-bit", "packed8", "packed4"], SMALL)
    assert (case.variant, case.quantization) == ("packed4", None)
    assert measure_case(case, SMALL)["measured"][1]["batch_size"] == 3
    assert make_cases([str(out)], ["int4"], SMALL) == [case]  # the name of earlier versions
    with pytest.raises(ConfigError, match="Nothing to measure"):
        make_cases([str(out)], ["16-bit"], SMALL)


def test_what_a_process_cannot_do_names_the_case(tiny, monkeypatch):
    (case,) = make_cases([str(tiny("chatglm3"))], ["fp32"], SMALL)
    broken = type(case)(**{**case.__dict__, "target": "/nowhere/at/all"})
    with pytest.raises(glmtune.errors.GlmtuneError, match=r"chatglm3.*base, fp32"):
        benchmark_run.run_cases([broken], SMALL)


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    code = (
        "from glmtune.training.memory import read_peak_rss as peak; a = peak(); b = b'1' * (1 << 27); print(a, peak())"
    )
    here = bytearray(b"1") * (1 << 30)  # more than importing torch takes
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 0 < before < len(here)
    assert after > 1 << 27

"""A run's description: files, overrides and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from glmtune.config import RunConfig, dump_yaml, get_help, load_config
from glmtune.config_checks import check_config
from glmtune.errors import ConfigError, ModelError
from glmtune.hub import resolve_checkpoint
from glmtune.utils.io import replace_folder


def test_defaults_are_filled_in_and_survive_a_round_trip(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: ./chatglm3-6b\ndata: {train: a.json}\ntraining: {max_steps: 5}\n", "utf-8")
    config = load_config(path)
    assert config.model.path == "./chatglm3-6b"
    assert config.training["max_steps"] == 5
    assert config.training["learning_rate"] == RunConfig().training["learning_rate"]
    path.write_text(dump_yaml(config), "utf-8")
    assert load_config(path) == config
    assert yaml.safe_load(dump_yaml(config))["lora"]["rank"] == 8


def test_overrides_reach_any_depth_and_keep_types():
    config = load_config(
        None,
        ["model=base", "model.hub=modelscope", "data=x.json", "training.learning_rate=2e-4", "lora.targets=a,b"],
    )
    assert (config.model.path, config.model.hub, config.data.train) == ("base", "modelscope", "x.json")
    assert config.training["learning_rate"] == 2e-4
    assert config.lora.targets == ["a", "b"]


def test_what_yaml_misreads_is_put_right():
    training = load_config(None, ["training.eval_strategy=no", "training.learning_rate=1e-4"]).training
    assert (training["eval_strategy"], training["learning_rate"]) == ("no", 1e-4)


def test_a_number_of_steps_means_by_steps():
    assert load_config(None, ["training.eval_steps=5"]).training["eval_strategy"] == "steps"
    assert load_config(None, ["training.eval_steps=5", "training.eval_strategy=no"]).training["eval_strategy"] == "no"
    assert load_config(None).training["eval_strategy"] == "epoch"


def test_json_files_are_read_too(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('\ufeff{"model": {"path": "m"}, "training": {"seed": 7}}', "utf-8")
    assert load_config(path).training["seed"] == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rnk=4", "unknown key lora.rnk.\nDid you mean rank?"),
        ("modle=x", "unknown key modle.\nDid you mean model?"),
        ("lora.rank=four", "lora.rank must be a whole number, not 'four'"),
        ("lora.rank=1.5", "lora.rank must be a whole number"),
        ("lora.rank=true", "lora.rank must be a whole number"),
        ("data.eval_fraction=[1]", "data.eval_fraction must be a number"),
        ("method=magic", "method cannot be 'magic'.\nOne of: lora"),
        ("lora=3", "lora must hold keys and values"),
        ("training=3", "training must be keys and values"),
        ("nonsense", "must look like key=value"),
    ],
)
def test_wrong_keys_and_types_name_the_way_out(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rank=0", "lora.rank is 0; it must be from 1 to 65,536"),
        ("data.max_length=3", "data.max_length is 3; it must be from 8 to 2,000,000, or 0"),
        ("lora.dropout=1", "lora.dropout is 1.0; it must be from 0 to below 1"),
        ("data.max_source_length=0", "data.max_source_length is 0"),
        ("data.train=", "data.train is not set.\nGive --data"),
        ("model.path=", "model.path is not set.\nGive --model"),
    ],
)
def test_values_out_of_range(override, message):
    with pytest.raises(ConfigError) as caught:
        check_config(load_config(None, ["model=m", "data=d", override]))
    assert message in str(caught.value)


def test_files_that_cannot_be_read_say_where(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    path = tmp_path / "run.yaml"
    path.write_text("model: a\ndata: [1, 2\n", "utf-8")
    with pytest.raises(ConfigError, match=r"run\.yaml:3: not valid YAML"):
        load_config(path)
    path.write_text("- a\n- b\n", "utf-8")
    with pytest.raises(ConfigError, match="must hold keys and values"):
        load_config(path)


def test_every_field_has_help():
    import dataclasses

    def fields(kind, prefix=""):
        for field in dataclasses.fields(kind):
            yield prefix + field.name
            if dataclasses.is_dataclass(field.default_factory):
                yield from fields(field.default_factory, f"{prefix}{field.name}.")

    keys = list(fields(RunConfig))
    assert "data.max_source_length" in keys
    assert all(get_help(key) for key in keys)


def test_every_shipped_config_is_valid():
    shipped = list((Path(__file__).parent.parent / "configs").rglob("*.yaml"))
    assert shipped
    for path in shipped:
        config = load_config(path)
        check_config(config)

        from glmtune.training.arguments import check_training_keys

        check_training_keys(config.training)


def test_the_pages_about_the_config_are_up_to_date(monkeypatch):
    root = Path(__file__).parent.parent
    monkeypatch.syspath_prepend(str(root / "tools"))
    import write_config_docs

    assert (root / "docs" / "config.md").read_text("utf-8") == write_config_docs.render_page()
    assert (root / "docs" / "config.zh.md").read_text("utf-8") == write_config_docs.render_chinese_page()


def test_lora_on_packed_weights_is_refused_before_anything_is_read():
    config = load_config(overrides=["model=m", "data=d", "model.quantization=packed4"])
    with pytest.raises(ConfigError, match="packed4"):
        check_config(config)
    check_config(load_config(overrides=["model=m", "data=d", "model.quantization=packed4", "method=ptuning"]))


def test_a_folder_that_failed_half_way_leaves_nothing(tmp_path):
    def fill():
        with replace_folder(tmp_path / "model") as folder:
            (folder / "part").write_text("x")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_folder_is_not_looked_for_on_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("glmtune.hub._download_from_huggingface", lambda *_: pytest.fail("a hub was asked"))
    with pytest.raises(ModelError, match="runs/nope: no such folder"):
        resolve_checkpoint("runs/nope")

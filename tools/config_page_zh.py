"""Words of docs/config.zh.md that are not help texts of keys; those are in src/glmtune/html/locales/zh.json."""

HEAD = """# 配置

[English](config.md)

一个 YAML（或 JSON）文件描述一次训练；`--set key=value` 可以改其中任何一项。不认识的键会报错，并指出最相近的已知键。
`model:` 和 `data:` 可以直接写成字符串，分别是 `model.path` 和 `data.train` 的简写。
本页由 `python tools/write_config_docs.py` 从代码生成。

```yaml
model: ./chatglm3-6b
data: train.json
method: lora
training: {learning_rate: 1.0e-4}
output: runs/mine
```
"""
RUN_TITLE = "一次训练"
INTRODUCTIONS = {
    "model": "用哪个模型，怎样加载。",
    "data": "读哪些数据，怎样编码；格式见 [data.zh.md](data.zh.md)。",
    "lora": "`lora` 和 `qlora` 的适配器。",
    "ptuning": "P-Tuning v2 的前缀；官方脚本里前缀长度叫 pre_seq_len。",
    "freeze": "只训练最后几层，其余冻结。",
    "preference": "`stage` 为 dpo、orpo、simpo 时的选项，见 [preference.zh.md](preference.zh.md)。",
    "grpo": "`stage` 为 grpo 时的选项，名称与 TRL 的 `GRPOConfig` 相同，见 [preference.zh.md](preference.zh.md)。",
    "generate": "训练中每次验证时，除了 loss，还可以生成回答并打分。",
    "replay": "混入通用数据，减少遗忘，见 [evaluation.zh.md](evaluation.zh.md)。",
    "forget": "`glmtune forget` 的阈值，每项有警告（`_warn`）和失败（`_fail`）两条线。",
}
TABLE_HEAD = ["| 键 | 类型 | 默认 | |", "| --- | --- | --- | --- |"]
TYPES = {int: "整数", float: "数字", bool: "true 或 false", str: "文字", list: "列表", dict: "键和值"}
OR = " 或 "
STATUSES = {"used": "有效", "refused": "拒绝", "no effect": "无作用"}
TAIL = """
## training

transformers 的 `TrainingArguments` 中的键；每个键怎样处理，列在下面。这些默认值与 transformers 不同：

{defaults}

`training.learning_rate`：{learning_rate}

`data.packing` 打开时（默认），批大小按块计，不按行计：`per_device_train_batch_size: 1` 是一个最多
`max_source_length + max_target_length` 个词元的块。`warmup_steps` 小于 1 时是全部步数的比例。
精度跟随 `model.precision`，除非在这里设置 `bf16` 或 `fp16`。`output_dir` 等路径由 `output` 决定。

超出下列范围的数字、NaN 和无穷大，在加载任何东西之前就会被拒绝：

| 键 | 范围 |
| --- | --- |
{ranges}

### 每一个键

有效：与 transformers 相同，不同之处写在[英文页](config.md#every-key)的最后一列。
拒绝：报错并说明原因；括号里的取值等于什么也没要求，可以接受。无作用：接受，训练开始时会有一行提示。

| `training` 的键 | |
| --- | --- |
{keys}

### 优化器

`training.optim`；需要的包和选项，在加载任何东西之前就检查。被拒绝的原因见[英文页](config.md#optimizers)。

| `training.optim` | 需要 | `training.optim_args` 里的选项 |
| --- | --- | --- |
{optimizers}
"""
REFUSED = "拒绝"
NEEDS_TARGETS = "`training.optim_target_modules`，方法为 full 或 freeze"

"""Names and help of every key of a run. English help is the config's own; Chinese stands here, key by key."""

from __future__ import annotations

from glmtune.config import METHOD_RATES, help_of

_RATES = "，".join(f"{method} {rate:g}" for method, rate in METHOD_RATES.items())

# key: (name, help)
CHINESE: dict[str, tuple[str, str]] = {
    "model.path": ("模型", "检查点文件夹（官方或 transformers 格式），或 hub 上的名字。"),
    "model.hub": ("模型站", "按名字下载时使用哪个站点。"),
    "model.family": ("代别", "文件夹自己没有说明是哪一代时才需要填写。"),
    "model.precision": (
        "精度",
        "冻结权重的精度。auto：GPU 支持时用 bf16，否则用 fp16；CPU 上用 fp32。",
    ),
    "model.attention": ("注意力实现", "auto：由 transformers 选择。"),
    "model.quantization": (
        "量化",
        "冻结的矩阵用更少的位数存放，计算时仍按上面的精度。nf4 与 int8 由 bitsandbytes 实现；"
        "packed4 与 packed8 即官方 int4、int8 仓库的格式。",
    ),
    "model.double_quantization": ("二次量化", "nf4 时连缩放系数也量化，每个权重再省 0.4 位。"),
    "data.train": (
        "训练数据",
        "文件（.json、.jsonl、.csv、.parquet、.txt、.gz）、文件夹、通配符、hub 名字、dataset_info.json 里的名字，"
        "或 glmtune data tokenize 的结果；多个时每行一个。",
    ),
    "data.eval": ("验证数据", "不填则从训练数据里留出一部分。"),
    "data.eval_fraction": ("留出比例", "没有验证数据时，留出训练数据的这一部分；0 表示不留。"),
    "data.format": ("数据格式", "自动识别不对时才需要指定。"),
    "data.columns": (
        "列名",
        "列名与常用名不同时填写：prompt、input、response、history、system、text。例如 prompt: 问题",
    ),
    "data.max_source_length": ("提示最长", "提示最多多少个词元；超出时先去掉最早的轮次，再截掉开头。"),
    "data.max_target_length": ("回答最长", "回答最多多少个词元，包括结束符。"),
    "data.max_length": ("总长上限", "提示与回答共用一个上限，代替上面两个。"),
    "data.overlength": ("超长的行", "超过上限的行怎样处理：cut 截断，drop 丢弃，error 报错。"),
    "data.train_on": ("学习哪些回答", "多轮对话中：all 学习所有回答，last 只学最后一个。"),
    "data.prefix": ("前缀", "加在每段对话第一个问题之前的文字，训练和对话时都加。"),
    "data.packing": ("拼接", "把多行首尾相接拼成最长的块，它们彼此看不见。"),
    "method": ("方法", "怎样微调。qlora 就是把底座加载成 nf4 再做 lora。"),
    "lora.rank": ("秩", "低秩更新的秩。"),
    "lora.alpha": ("alpha", "更新的缩放：alpha / 秩。"),
    "lora.dropout": ("dropout", "训练时适配器输入的 dropout。"),
    "lora.targets": (
        "作用的模块",
        "模块名，用逗号隔开，可用官方名字；all-linear 表示除输出头之外的全部；不填则为该代的 query、key、value 投影。",
    ),
    "lora.rslora": ("rsLoRA", "改用 alpha / sqrt(秩) 缩放（arXiv 2312.03732）。"),
    "lora.dora": ("DoRA", "权重的大小与方向分开学习（arXiv 2402.09353）。"),
    "lora.loraplus_ratio": ("LoRA+ 比值", "B 的学习率是 A 的多少倍，例如 16（arXiv 2402.12354）。"),
    "lora.bias": ("偏置", "同时训练哪些偏置。"),
    "lora.modules_to_save": ("整个训练的模块", "除适配器外整个训练的模块，例如 lm_head。"),
    "ptuning.num_virtual_tokens": ("前缀长度", "前缀的词元数；官方脚本里叫 pre_seq_len。"),
    "ptuning.prefix_projection": ("前缀投影", "用一个小网络从较短的嵌入算出前缀。"),
    "ptuning.dropout": ("dropout", "训练时前缀上的 dropout。"),
    "freeze.trainable_layers": ("训练的层数", "只训练最后这么多层，其余保持不变。"),
    "generate.rows": (
        "验证时生成的行数",
        "每次验证时回答多少行验证数据并打分，每次都是同样的行；0 表示不生成，只看损失。",
    ),
    "generate.max_new_tokens": ("生成最长", "这些回答最多多少个词元。"),
    "replay.data": (
        "通用数据",
        "混入训练的通用数据，写法同训练数据；保留自己的列与格式，不加前缀。不填则没有。",
    ),
    "replay.share": ("通用数据的比例", "训练行中通用数据所占的比例。"),
    "forget.accuracy_warn": ("正确率警告线", "除去偶然因素，正确率下降多少个百分点时警告。"),
    "forget.accuracy_fail": ("正确率失败线", "同上，下降多少算失败。"),
    "forget.kl_warn": ("KL 警告线", "在底座的回答上，每个词元偏离底座多少 nat 时警告。"),
    "forget.kl_fail": ("KL 失败线", "同上，偏离多少算失败。"),
    "forget.reply_loss_warn": ("回答损失警告线", "底座自己的回答，损失每个词元上升多少 nat 时警告。"),
    "forget.reply_loss_fail": ("回答损失失败线", "同上，上升多少算失败。"),
    "forget.degenerate_warn": ("退化警告线", "循环、空白或满是未知词元的回答多出多少个百分点时警告。"),
    "forget.degenerate_fail": ("退化失败线", "同上，多出多少算失败。"),
    "forget.max_new_tokens": ("探针回答最长", "回答探针问题最多多少个词元。"),
    "adapter": ("从已有结果开始", "从同一方法之前训练的结果出发：一次训练、它的文件夹，或公开的检查点。"),
    "early_stopping": (
        "提前停止",
        "连续这么多次验证 training.metric_for_best_model 都没有变好就停止；0 表示从不。",
    ),
    "output": ("训练文件夹", "不填则为 runs/<模型>-<方法>-<时间>。"),
}

SECTIONS = {
    "model": {"zh": "模型的加载", "en": "Loading the model"},
    "data": {"zh": "数据", "en": "Data"},
    "lora": {"zh": "LoRA", "en": "LoRA"},
    "ptuning": {"zh": "P-Tuning v2", "en": "P-Tuning v2"},
    "freeze": {"zh": "Freeze", "en": "Freeze"},
    "generate": {"zh": "训练中的打分", "en": "Scores while training"},
    "replay": {"zh": "混入通用数据", "en": "General rows mixed in"},
    "forget": {"zh": "遗忘检查的界限", "en": "Limits of the forgetting probe"},
    "training": {"zh": "训练过程", "en": "Training"},
    "run": {"zh": "其他", "en": "Other"},
}
"""Headings of the folded parts of the form; `run` holds the keys of no section."""

# Keys of transformers' TrainingArguments that the form shows: (Chinese name, Chinese help, English help).
TRAINING: dict[str, tuple[str, str, str]] = {
    "num_train_epochs": ("轮数", "全部数据训练几遍。", "How often all rows are gone through."),
    "max_steps": (
        "最多步数",
        "到这一步就结束，代替轮数；-1 表示按轮数。",
        "End at this step, in place of epochs; -1: by epochs.",
    ),
    "learning_rate": (
        "学习率",
        f"峰值学习率；不填则用该方法的默认值（{_RATES}）。",
        f"The highest one; empty: the method's own ({_RATES.replace('，', ', ')}).",
    ),
    "per_device_train_batch_size": (
        "批大小",
        "每个设备一次计算多少块；显存不够时调小。",
        "Blocks of rows at once on a device; lower it when memory does not suffice.",
    ),
    "gradient_accumulation_steps": (
        "梯度累积",
        "累积这么多批才更新一次；与批大小的乘积决定效果。",
        "Batches per update; its product with the batch size is what counts.",
    ),
    "gradient_checkpointing": (
        "梯度检查点",
        "auto、true 或 false。auto：只有显存放不下时才打开，够用几层就开几层（全开慢约三分之一）。",
        "auto, true or false. auto: on only if the run does not fit without it, for as few layers as need be; all of "
        "them cost about a third of the speed.",
    ),
    "per_device_eval_batch_size": ("验证批大小", "验证时一次多少行。", "Rows at once while evaluating."),
    "lr_scheduler_type": (
        "学习率曲线",
        "例如 cosine、linear、constant。",
        "How the rate falls: cosine, linear, constant and others.",
    ),
    "warmup_steps": (
        "预热",
        "学习率升到峰值用多少步；小于 1 表示占全部步数的比例。",
        "Steps until the rate is highest; below 1: a share of all steps.",
    ),
    "logging_steps": ("记录间隔", "每多少步记录一次损失。", "Steps between two logged losses."),
    "logging_first_step": ("记录第一步", "第一步也记录。", "Log the first step too."),
    "eval_strategy": ("何时验证", "no、steps 或 epoch。", "no, steps or epoch: when the evaluation rows are scored."),
    "save_strategy": ("何时保存", "no、steps 或 epoch。", "no, steps or epoch: when checkpoints are written."),
    "save_steps": (
        "保存间隔",
        "每多少步保存一次；小于 1 表示占全部步数的比例。",
        "Steps between two checkpoints; below 1: a share of all steps.",
    ),
    "save_total_limit": ("保留几个检查点", "更早的会被删除。", "Checkpoints that are kept; older ones are deleted."),
    "train_sampling_strategy": (
        "取样顺序",
        "random、sequential 或 group_by_length（长度相近的放在一起）。",
        "random, sequential or group_by_length, which puts rows of like length together.",
    ),
    "seed": ("随机种子", "相同的种子得到相同的训练。", "The same seed gives the same run."),
    "report_to": ("记录到", "tensorboard 或 none。", "tensorboard or none."),
}


_ENGLISH = {
    "model.path": "Model",
    "model.hub": "Hub",
    "data.train": "Training data",
    "data.eval": "Evaluation data",
    "data.eval_fraction": "Share kept back",
    "replay.data": "General rows",
    "output": "Run folder",
    "lora.rslora": "rsLoRA",
    "lora.dora": "DoRA",
    "lora.loraplus_ratio": "LoRA+ ratio",
}
"""Names where the key's own words do not say enough."""


def _english_name(key: str) -> str:
    if key in _ENGLISH:
        return _ENGLISH[key]
    return key.rsplit(".", 1)[-1].replace("_", " ").capitalize()


def _texts() -> dict[str, dict[str, str]]:
    said = {f"section.{name}": heading for name, heading in SECTIONS.items()}
    for key, (name, help) in CHINESE.items():
        said[f"name.{key}"] = {"zh": name, "en": _english_name(key)}
        said[f"help.{key}"] = {"zh": help, "en": help_of(key)}
    for key, (name, zh, en) in TRAINING.items():
        said[f"name.training.{key}"] = {"zh": name, "en": _english_name(key)}
        said[f"help.training.{key}"] = {"zh": zh, "en": en}
    return said


TEXTS: dict[str, dict[str, str]] = _texts()

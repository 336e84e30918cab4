"""Texts of the tab `Export`, in both languages."""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "export.intro": {
        "zh": "合并适配器，量化，写成其他引擎可用的文件夹；写完后重新载入，并与原模型逐一核对。",
        "en": "Merge the adapter, quantise, and write a folder for any engine; it is loaded again and checked.",
    },
    "export.model": {"zh": "要导出的模型", "en": "What to export"},
    "export.model.info": {"zh": "训练结果、检查点文件夹或 hub 名称", "en": "A run, a checkpoint folder or a hub id"},
    "export.refresh": {"zh": "刷新列表", "en": "Refresh list"},
    "export.format": {"zh": "格式", "en": "Format"},
    "export.format.hf": {"zh": "transformers 与 vLLM", "en": "transformers and vLLM"},
    "export.format.official": {"zh": "官方仓库的布局", "en": "as the published repositories"},
    "export.bits": {"zh": "位数", "en": "Bits"},
    "export.bits.16": {"zh": "16（不量化）", "en": "16 (not quantised)"},
    "export.bits.8": {"zh": "8", "en": "8"},
    "export.bits.4": {"zh": "4", "en": "4"},
    "export.adapter": {"zh": "只导出适配器", "en": "The adapter alone"},
    "export.adapter.info": {"zh": "不与底座合并", "en": "Not merged into its base"},
    "export.dtype": {"zh": "精度", "en": "Precision"},
    "export.dtype.own": {"zh": "与检查点相同", "en": "the checkpoint's own"},
    "export.dtype.fp16": {"zh": "fp16", "en": "fp16"},
    "export.dtype.bf16": {"zh": "bf16", "en": "bf16"},
    "export.dtype.fp32": {"zh": "fp32", "en": "fp32"},
    "export.shard": {"zh": "单个权重文件的上限", "en": "Largest weight file"},
    "export.output": {"zh": "导出到", "en": "Write to"},
    "export.output.info": {"zh": "新建或空的文件夹", "en": "A new or empty folder"},
    "export.start": {"zh": "导出", "en": "Export"},
    "export.possible": {
        "zh": "可以导出，约需 {size} MB 磁盘空间。",
        "en": "Can be done; takes about {size} MB of disk.",
    },
    "export.possible.adapter": {"zh": "可以导出。", "en": "Can be done."},
    "export.choose": {"zh": "先选择要导出的模型。", "en": "Choose what to export first."},
}

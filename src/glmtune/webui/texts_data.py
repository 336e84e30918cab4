"""Texts of the tab `data`, in both languages."""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "data.lead": {
        "zh": "选择或上传数据，先检查，再看模型眼中的每一行：绿色的部分才会被学习。",
        "en": "Choose or upload rows, check them, and see each as the model does: what is green is learnt.",
    },
    "data.file": {"zh": "数据文件", "en": "Data file"},
    "data.file_info": {
        "zh": "文件、文件夹、通配符或 hub 上的名字",
        "en": "A file, a folder, a pattern or a hub id",
    },
    "data.model": {"zh": "模型（用来数词元）", "en": "Model, to count its tokens"},
    "data.upload": {"zh": "上传（最大 1 GB）", "en": "Upload, up to 1 GB"},
    "data.limits": {"zh": "长度与格式", "en": "Lengths and format"},
    "data.check": {"zh": "检查", "en": "Check"},
    "data.cancel": {"zh": "中止检查", "en": "Cancel the check"},
    "data.checking": {
        "zh": "正在检查：{rows} 行，{errors} 个错误，{warnings} 个警告",
        "en": "Checking: {rows} rows, {errors} errors, {warnings} warnings",
    },
    "data.rows": {"zh": "行", "en": "rows"},
    "data.conversations": {"zh": "对话", "en": "conversations"},
    "data.texts": {"zh": "纯文本", "en": "plain texts"},
    "data.unusable": {"zh": "不可用", "en": "unusable"},
    "data.answers": {"zh": "学习的回答", "en": "answers to learn"},
    "data.tools": {"zh": "带工具", "en": "with tools"},
    "data.tokens": {"zh": "词元", "en": "tokens"},
    "data.targets": {"zh": "学习的词元", "en": "learnt tokens"},
    "data.longest": {"zh": "最长", "en": "longest"},
    "data.p95": {"zh": "95% 不超过", "en": "95 % up to"},
    "data.nothing": {"zh": "没有发现问题。", "en": "Nothing found."},
    "data.found": {"zh": "{errors} 个错误，{warnings} 个警告。", "en": "{errors} errors, {warnings} warnings."},
    "data.more": {"zh": "另有 {count} 处", "en": "and {count} more"},
    "data.lengths": {"zh": "每行的长度", "en": "Lengths of rows"},
    "data.unit_tokens": {"zh": "每行的词元数", "en": "tokens of a row"},
    "data.unit_characters": {"zh": "每行的字符数", "en": "characters of a row"},
    "data.row": {"zh": "第几行", "en": "Row"},
    "data.ids": {"zh": "显示词元编号", "en": "Show token ids"},
    "data.preview": {"zh": "查看这一行", "en": "Show the row"},
    "data.previous": {"zh": "上一行", "en": "Previous"},
    "data.next": {"zh": "下一行", "en": "Next"},
    "data.row_title": {"zh": "模型眼中的第 {row} 行", "en": "Row {row} as the model sees it"},
    "data.no_model": {
        "zh": "请先选择模型：没有它的分词器就看不到词元。",
        "en": "Choose a model first: its tokenizer makes the tokens.",
    },
    "data.taken": {"zh": "“训练”页已采用这份数据。", "en": "The tab Train has taken this data."},
    "severity.error": {"zh": "错误", "en": "error"},
    "severity.warning": {"zh": "警告", "en": "warning"},
}

"""Texts of the tab `Evaluate`, in both languages."""

from __future__ import annotations

from glmtune.webui.texts_jobs import TEXTS as JOBS

TEXTS: dict[str, dict[str, str]] = {
    **JOBS,
    "evaluate.intro": {
        "zh": "给回答打分，与底座比较，或检测微调是否让模型忘掉了原有的能力。",
        "en": "Score replies, compare models, or see what tuning made a model forget.",
    },
    "evaluate.kind": {"zh": "要做什么", "en": "What to do"},
    "evaluate.kind.eval": {"zh": "评测一个模型", "en": "Evaluate one model"},
    "evaluate.kind.compare": {"zh": "比较几个模型", "en": "Compare several"},
    "evaluate.kind.forget": {"zh": "遗忘检测", "en": "Forgetting probe"},
    "evaluate.model": {"zh": "模型", "en": "Model"},
    "evaluate.model.info": {
        "zh": "比较时是基准；遗忘检测时是微调后的模型",
        "en": "The baseline of a comparison; what was tuned, for the probe",
    },
    "evaluate.others": {"zh": "与之比较的模型", "en": "Compared with it"},
    "evaluate.data": {"zh": "评测数据", "en": "Evaluation rows"},
    "evaluate.data.info": {"zh": "带有参考答案的数据文件", "en": "A file of rows with answers"},
    "evaluate.limit": {"zh": "只用前几条", "en": "Only the first"},
    "evaluate.limit.info": {"zh": "0：全部", "en": "0: all of them"},
    "evaluate.tokens": {"zh": "最多生成的词元数", "en": "Longest reply, tokens"},
    "evaluate.tokens.info": {"zh": "0：与训练设置相同", "en": "0: as in training"},
    "evaluate.batch": {"zh": "每批条数", "en": "Rows at once"},
    "evaluate.probe": {"zh": "同时做遗忘检测", "en": "With the forgetting probe"},
    "evaluate.output": {"zh": "结果文件夹", "en": "Folder of the results"},
    "evaluate.output.info": {
        "zh": "留空：放在训练文件夹的 eval 中，或 evals 中",
        "en": "Empty: eval in the run, or evals",
    },
    "evaluate.start": {"zh": "开始", "en": "Start"},
    "evaluate.refresh": {"zh": "刷新列表", "en": "Refresh lists"},
    "evaluate.results": {"zh": "### 结果", "en": "### Results"},
    "evaluate.none": {"zh": "还没有评测结果。", "en": "Nothing was evaluated yet."},
    "evaluate.result": {"zh": "打开的结果", "en": "Shown result"},
    "evaluate.column.folder": {"zh": "结果", "en": "Result"},
    "evaluate.column.kind": {"zh": "类型", "en": "Kind"},
    "evaluate.column.model": {"zh": "模型", "en": "Model"},
    "evaluate.column.rows": {"zh": "条数", "en": "Rows"},
    "evaluate.column.bleu": {"zh": "BLEU-4（字）", "en": "BLEU-4 (characters)"},
    "evaluate.column.rouge": {"zh": "ROUGE-L", "en": "ROUGE-L"},
    "evaluate.column.loss": {"zh": "损失", "en": "Loss"},
    "evaluate.column.verdict": {"zh": "结论", "en": "Verdict"},
    "evaluate.row.eval": {"zh": "评测", "en": "evaluation"},
    "evaluate.row.comparison": {"zh": "对比", "en": "comparison"},
    "evaluate.row.forgetting": {"zh": "遗忘检测", "en": "forgetting"},
    "evaluate.verdict.pass": {"zh": "通过", "en": "pass"},
    "evaluate.verdict.warn": {"zh": "注意", "en": "warn"},
    "evaluate.verdict.fail": {"zh": "不通过", "en": "fail"},
}

"""Texts around the tabs, and those that several of them use."""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "app.heading": {
        "zh": "<h1>glmtune</h1><p>微调 ChatGLM 系列：选模型，看数据，训练，对话，评测，导出，都在这台机器上。</p>",
        "en": "<h1>glmtune</h1><p>Fine-tune the ChatGLM family: model, data, training, chat, scores, export, "
        "all on this machine.</p>",
    },
    "app.login": {
        "zh": "glmtune：用户名随意，密码是启动时设定的。",
        "en": "glmtune: any user name, the server's password.",
    },
    "app.language": {"zh": "语言", "en": "Language"},
    "tab.model": {"zh": "模型", "en": "Model"},
    "tab.data": {"zh": "数据", "en": "Data"},
    "tab.train": {"zh": "训练", "en": "Train"},
    "tab.runs": {"zh": "记录", "en": "Runs"},
    "tab.chat": {"zh": "对话", "en": "Chat"},
    "tab.evaluate": {"zh": "评测", "en": "Evaluate"},
    "tab.export": {"zh": "导出", "en": "Export"},
    "common.refresh": {"zh": "刷新列表", "en": "Refresh the list"},
    "common.log": {"zh": "日志（最后几百行）", "en": "Log (the last few hundred lines)"},
    "common.progress": {"zh": "进度", "en": "Progress"},
    "state.queued": {"zh": "排队中", "en": "queued"},
    "state.running": {"zh": "运行中", "en": "running"},
    "state.finished": {"zh": "已完成", "en": "finished"},
    "state.failed": {"zh": "失败", "en": "failed"},
    "state.stopped": {"zh": "已停止", "en": "stopped"},
}

"""Texts of the tab `Chat`, in both languages."""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "chat.intro": {
        "zh": "与任何模型、训练结果或适配器对话；勾选“并排对比”，同一个问题由两个模型各答一遍。",
        "en": "Talk to any model, run or adapter. Side by side, two of them answer the same question.",
    },
    "chat.model": {"zh": "模型", "en": "Model"},
    "chat.model.info": {
        "zh": "训练结果、检查点文件夹或 hub 名称",
        "en": "A run, a checkpoint folder or a hub id",
    },
    "chat.both": {"zh": "并排对比", "en": "Side by side"},
    "chat.both.info": {"zh": "每条消息由两个模型回答", "en": "Two answers to each message"},
    "chat.other": {"zh": "对比的模型", "en": "Compared with"},
    "chat.other.info": {
        "zh": "选微调所用的底座时，不另占内存",
        "en": "A tuned model's base needs no more memory",
    },
    "chat.refresh": {"zh": "刷新列表", "en": "Refresh lists"},
    "chat.first": {"zh": "对话", "en": "Conversation"},
    "chat.second": {"zh": "对话（对比）", "en": "Conversation (compared)"},
    "chat.prompt": {"zh": "消息", "en": "Message"},
    "chat.prompt.hint": {"zh": "回车发送，Shift+回车换行", "en": "Enter sends, Shift+Enter begins a new line"},
    "chat.send": {"zh": "发送", "en": "Send"},
    "chat.stop": {"zh": "停止", "en": "Stop"},
    "chat.again": {"zh": "重新回答", "en": "Regenerate"},
    "chat.clear": {"zh": "清空对话", "en": "Clear"},
    "chat.settings": {"zh": "系统消息与采样", "en": "System message and sampling"},
    "chat.system": {"zh": "系统消息", "en": "System message"},
    "chat.system.hint": {"zh": "留空则没有", "en": "Empty: none"},
    "chat.tokens": {"zh": "最多生成的词元数", "en": "Longest reply, tokens"},
    "chat.temperature": {"zh": "温度", "en": "Temperature"},
    "chat.temperature.info": {"zh": "0：每次回答相同", "en": "0: the same reply every time"},
    "chat.top_p": {"zh": "top-p", "en": "Top-p"},
    "chat.top_p.info": {"zh": "温度大于 0 时才起作用", "en": "Counts only above temperature 0"},
    "chat.penalty": {"zh": "重复惩罚", "en": "Repetition penalty"},
    "chat.penalty.info": {"zh": "1：不惩罚", "en": "1: none"},
    "chat.seed": {"zh": "随机种子", "en": "Seed"},
    "chat.seed.info": {"zh": "-1：每次不同", "en": "-1: another reply every time"},
    "chat.tools": {"zh": "工具", "en": "Tools"},
    "chat.tools.json": {"zh": "工具描述（JSON 列表）", "en": "Descriptions, a JSON list"},
    "chat.tools.info": {
        "zh": "模型只提出调用，由你填写工具返回的结果",
        "en": "The model asks for a call; you send what the tool returned",
    },
    "chat.result": {"zh": "作为工具结果发送", "en": "Send as the tool's result"},
    "chat.empty": {"zh": "还没有消息", "en": "No messages yet"},
    "chat.answering": {
        "zh": "{name} 正在回答（首次使用时先载入模型）……",
        "en": "{name} answers (a model is loaded on first use) …",
    },
    "chat.done": {"zh": "用时 {seconds} 秒", "en": "{seconds} s"},
    "chat.stopped": {"zh": "已停止", "en": "Stopped"},
    "chat.no_model": {
        "zh": "没有选择模型。请在上方选择，或先训练一个。",
        "en": "No model is chosen. Choose one above, or train one first.",
    },
}

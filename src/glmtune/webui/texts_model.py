"""Texts of the tab `model`, in both languages."""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "model.lead": {
        "zh": "选择检查点文件夹，或填写 hub 上的名字（例如 THUDM/chatglm3-6b）。这里只读文件头，不加载权重。",
        "en": "Choose a checkpoint folder, or type a hub id such as THUDM/chatglm3-6b. Only headers are read here.",
    },
    "model.look": {"zh": "查看", "en": "Look at it"},
    "model.family": {"zh": "代别", "en": "generation"},
    "model.folder": {"zh": "文件夹", "en": "folder"},
    "model.size": {"zh": "参数", "en": "parameters"},
    "model.bytes": {"zh": "权重大小", "en": "weights"},
    "model.precision": {"zh": "精度", "en": "precision"},
    "model.packed": {"zh": "官方 int{bits} 量化", "en": "published int{bits} layout"},
    "model.stored": {"zh": "bitsandbytes {kind} 量化", "en": "{kind}, by bitsandbytes"},
    "model.shape": {"zh": "结构", "en": "shape"},
    "model.shape_of": {
        "zh": "{layers} 层，宽 {width}，词表 {words}",
        "en": "{layers} layers of {width}, {words} words",
    },
    "model.fingerprint": {"zh": "指纹", "en": "fingerprint"},
    "model.undecided": {
        "zh": "ChatGLM2 或 ChatGLM3：请在“代别”里选择。",
        "en": "ChatGLM2 or ChatGLM3: choose it under Family.",
    },
    "model.not_here": {
        "zh": "权重还没有下载：训练开始时才会下载。",
        "en": "The weights are not here yet; training downloads them.",
    },
    "model.taken": {"zh": "“数据”和“训练”页已采用这个模型。", "en": "The tabs Data and Train have taken this model."},
}

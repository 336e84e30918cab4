"""Texts of the memory plan, in both languages."""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "plan.head": {"zh": "显存估算", "en": "Memory"},
    "plan.look": {"zh": "放得下吗？", "en": "Will it fit?"},
    "plan.gpu": {"zh": "显卡显存", "en": "GPU memory"},
    "plan.gpu_info": {
        "zh": "例如 12GB；不填则按这台机器。",
        "en": "12GB for example; empty: what this machine has.",
    },
    "plan.fits": {"zh": "放得下：约需 {need}，共有 {have}。", "en": "It fits: about {need} of {have}."},
    "plan.tight": {
        "zh": "很紧张：约需 {need}，共有 {have}，在估算误差之内。",
        "en": "It is tight: about {need} of {have}, within the estimate's error.",
    },
    "plan.too large": {"zh": "放不下：约需 {need}，只有 {have}。", "en": "It does not fit: about {need} of {have}."},
    "plan.checkpointing": {
        "zh": "已算上梯度检查点（{all} 层中的 {layers} 层）。",
        "en": "With gradient checkpointing of {layers} of {all} layers.",
    },
    "plan.change": {
        "zh": "代价最小的改法：{settings}（约需 {need}）。",
        "en": "The cheapest change that makes it fit: {settings} (about {need}).",
    },
    "plan.no_change": {
        "zh": "试过的改法都放不下；最省的是 {settings}（约需 {need}）。",
        "en": "No change that was tried makes it fit; the least is {settings} (about {need}).",
    },
    "plan.work": {"zh": "{steps} 步，约 {tokens} 个 token。", "en": "{steps} steps, about {tokens} tokens."},
    "plan.weights_alone": {"zh": "训练前先要放下权重：", "en": "The weights alone, as a training would hold them:"},
    "plan.slow": {
        "zh": "估算超时：数据太大？请用命令 glmtune plan。",
        "en": "The plan takes too long here: run the command glmtune plan.",
    },
    "plan.part.weights": {"zh": "权重", "en": "weights"},
    "plan.part.adapter": {"zh": "适配器", "en": "adapter"},
    "plan.part.gradients": {"zh": "梯度", "en": "gradients"},
    "plan.part.optimizer": {"zh": "优化器", "en": "optimizer"},
    "plan.part.activations": {"zh": "激活", "en": "activations"},
    "plan.part.logits": {"zh": "logits", "en": "logits"},
    "plan.part.files": {"zh": "权重文件", "en": "weight files"},
    "plan.part.own": {"zh": "框架本身", "en": "libraries"},
    "plan.part.kept": {"zh": "分配器保留", "en": "kept by the allocator"},
}

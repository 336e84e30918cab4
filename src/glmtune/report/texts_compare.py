"""The texts of comparisons and of the forgetting probe."""

from __future__ import annotations

COMPARE = {
    "compare.headline": (
        "{others} 与 {base} 的对比：{data}，{rows} 行",
        "{others} against {base} on {rows} rows of {data}",
    ),
    "compare.title": ("前后对比", "Before and after"),
    "compare.none": ("没有可以成对比较的得分。", "No scores could be compared row by row."),
    "compare.missing": ("还没有与底座对比。这样对比：", "Not compared with its base yet. To compare it:"),
    "compare.difference": ("差", "Difference"),
    "compare.says": ("结论", "What it says"),
    "compare.p": ("p 值", "p"),
    "compare.rows": ("逐行：更高 / 相同 / 更低", "Rows: higher / equal / lower"),
    "compare.wins": ("后者更高的行", "rows where the second is higher"),
    "compare.ties": ("相同", "equal"),
    "compare.losses": ("前者更高的行", "where the first is higher"),
    "compare.better": ("更好", "better"),
    "compare.worse": ("更差", "worse"),
    "compare.different": ("有变化", "changed"),
    "compare.unclear": ("差异不明显", "no clear difference"),
    "compare.unknown": ("无法判断", "not known"),
    "compare.note": (
        "▲ ▼：两者毫无差别时，这么大的差出现的机会不到 5%（p < 0.05，对相同的行做成对自助法）。"
        "没有标记的差异可能只是偶然。方括号内是差的 95% 区间。",
        "▲ ▼: if the two were alike, a difference as large as this would turn up less than 5 % of the time (p < 0.05 "
        "by paired bootstrap over the same rows). A difference without a mark may be chance. In brackets: its "
        "95 % interval.",
    ),
    "compare.sentence.better": (
        "{tuned} 的 ROUGE-L 比 {base} 高 {mean}：{wins} 行更高，{losses} 行更低，不太可能是偶然。",
        "{tuned} is better than {base}: ROUGE-L {mean}, higher in {wins} rows, lower in {losses}; hardly by chance.",
    ),
    "compare.sentence.worse": (
        "{tuned} 比 {base} 差：ROUGE-L {mean}，{wins} 行更高，{losses} 行更低，不太可能是偶然。",
        "{tuned} is worse than {base}: ROUGE-L {mean}, higher in {wins} rows, lower in {losses}; hardly by chance.",
    ),
    "compare.sentence.unclear": (
        "{tuned} 与 {base} 没有明显差别：ROUGE-L {mean}，{wins} 行更高，{losses} 行更低。",
        "{tuned} and {base} do not clearly differ: ROUGE-L {mean}, higher in {wins} rows, lower in {losses}.",
    ),
    "changed.title": ("变化最大的回答", "Replies that changed most"),
    "changed.none": ("没有变化的行。", "No row changed."),
    "changed.note": ("按 ROUGE-L 的变化排序，变好变差都在内。", "By the change of ROUGE-L, for better or for worse."),
    "forget.headline": (
        "{tuned} 还记得 {base} 会的东西吗？{items} 道题",
        "Does {tuned} still know what {base} knew? {items} questions",
    ),
    "forget.title": ("遗忘检测", "Forgetting"),
    "forget.missing": ("还没有检测是否遗忘。这样检测：", "Not probed for forgetting yet. To probe it:"),
    "forget.verdict": ("遗忘", "Forgetting"),
    "forget.tile": ("答对 {base} → {tuned}", "right answers {base} → {tuned}"),
    "forget.reasons": ("理由", "Why"),
    "forget.advice": ("怎么办", "What to do"),
    "forget.accuracy": ("答对", "Right answers"),
    "forget.loss": ("参考答案的损失", "Loss on the references"),
    "forget.loss.says": ("对写好的答案有多意外；越低越好", "how surprised it is by good answers; lower is better"),
    "forget.reply_loss": ("底座自己回答的损失", "Loss on the base's own replies"),
    "forget.reply_loss.says": (
        "升得越多，说话方式变得越多",
        "the more it rises, the more the way of speaking has changed",
    ),
    "forget.kl": ("与底座的 KL 散度", "KL divergence from the base"),
    "forget.kl.says": (
        "每个词元的分布偏离多少；0 为没有变化",
        "how far each token's distribution has moved; 0 is unchanged",
    ),
    "forget.loop": ("陷入循环的回答", "Replies in a loop"),
    "forget.unk": ("充满未知字符的回答", "Replies of unknown characters"),
    "forget.empty": ("空回答", "Empty replies"),
    "forget.base": ("微调前", "before"),
    "forget.tuned": ("微调后", "after"),
    "forget.right": ("对", "right"),
    "forget.wrong": ("错", "wrong"),
    "forget.by_category": ("各类题答对的比例", "Right answers by kind of question"),
    "forget.by_language": ("各语言答对的比例", "Right answers by language"),
    "forget.examples": ("题目与回答", "Questions and answers"),
    "forget.note": (
        "这些常识、指令、算术、代码等题目与训练数据无关，微调前后各问一遍。",
        "Questions of facts, instructions, sums, code and the like, which have nothing to do with the training rows, "
        "were asked before and after.",
    ),
    "forget.thresholds": ("阈值", "Thresholds"),
    "verdict.pass": ("没有遗忘", "Nothing lost"),
    "verdict.warn": ("有所遗忘", "Some lost"),
    "verdict.fail": ("严重遗忘", "Much lost"),
    "verdict.unknown": ("没有结论", "No verdict"),
    "category.knowledge": ("知识", "Knowledge"),
    "category.instructions": ("指令", "Instructions"),
    "category.arithmetic": ("算术", "Arithmetic"),
    "category.code": ("代码", "Code"),
    "category.reasoning": ("推理", "Reasoning"),
    "category.safety": ("安全", "Safety"),
    "category.chat": ("闲聊", "Small talk"),
    "language.zh": ("中文", "Chinese"),
    "language.en": ("英文", "English"),
}

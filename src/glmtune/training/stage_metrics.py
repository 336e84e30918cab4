"""Names of the numbers that preference tuning logs beside the loss."""

from __future__ import annotations

PAIR_METRICS = ("accuracy", "margin", "better_reward", "worse_reward", "better_logp", "worse_logp")
"""What is logged of pairs, as means: the share of pairs whose better answer has the higher reward, the difference of
the rewards, and of both sides reward and log-probability of the answer."""

LABEL_METRICS = ("accuracy", "better_reward", "worse_reward", "better_logp", "worse_logp", "kl")
"""What is logged of answers with a label: the share of answers on their side of the reference point, reward and
log-probability of the good and of the bad ones, and the estimate of the KL divergence from the reference."""

REWARD_METRICS = ("accuracy", "margin", "better_reward", "worse_reward", "mean_reward")
"""What is logged of a reward model, as means over pairs."""

OBJECTIVE_METRICS = tuple(dict.fromkeys(PAIR_METRICS + LABEL_METRICS + REWARD_METRICS))
"""Names of all numbers that objectives log beside the loss."""

BEST_METRICS = {
    **dict.fromkeys(("dpo", "orpo", "simpo"), ("accuracy", "margin", "better_logp")),
    "kto": ("accuracy", "margin", "better_logp"),
    "rm": ("accuracy", "margin"),
}
"""Numbers of an evaluation by which the best checkpoint of a stage can be chosen; more is better."""

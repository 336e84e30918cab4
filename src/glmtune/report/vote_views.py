"""What a report shows of a comparison by votes."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from glmtune.evaluation.metric_order import SIGNIFICANT
from glmtune.evaluation.votes import VotedReplies, VoteResult
from glmtune.html.pages import is_number, show_number, show_text
from glmtune.report.contents import ReportContents
from glmtune.report.view_parts import Tile, keep_together


def view_votes(contents: ReportContents) -> dict[str, Any]:
    """The report of a comparison by votes."""
    votes = contents.votes
    assert votes is not None
    names = [*votes.models, "?", "?"][:2]
    rate, lengths = votes.rate, [*votes.mean_lengths, None, None]
    interval = {"low": show_number(rate.low, ".1f"), "high": show_number(rate.high, ".1f")}
    return {
        "headline": show_text("report.votes.headline", first=keep_together(names[0]), second=keep_together(names[1])),
        "lede": [_describe_winner(votes, names)],
        "tiles": [
            Tile("report.votes.rate", show_number(rate.mean, ".1f"), show_text("report.tile.interval", **interval)),
            Tile("report.votes.count", show_number(rate.rows)),
            Tile("report.votes.p", show_number(votes.p, ".3f"), show_text("report.votes.p.small")),
        ],
        "votes": votes,
        "names": names,
        "groups": [(f"report.votes.rows.{kind}", rows) for kind, rows in _group_rows(votes) if rows],
        "has_other_history": _has_other_history,
        "facts": [
            *(("report.how.model", target) for target in votes.targets),
            ("report.votes.lengths", Markup(" → ").join(show_number(each, ",.0f") for each in lengths[:2])),
            ("report.repeat.finished", votes.finished_at),
        ],
    }


def _describe_winner(votes: VoteResult, names: list[str]) -> Markup:
    if not is_number(votes.p) or not is_number(votes.rate.mean) or votes.p >= SIGNIFICANT:
        return show_text("report.votes.unclear")
    better = 0 if votes.rate.mean > 50 else 1
    return show_text("report.votes.better", name=Markup("<strong>{}</strong>").format(keep_together(names[better])))


def _group_rows(votes: VoteResult) -> list[tuple[str, list[VotedReplies]]]:
    rows = [row for row in votes.rows if len(row.prompts) == 2 and len(row.replies) == 2]
    kinds = {0: "first", 1: "second"}
    return [
        (kind, [row for row in rows if kinds.get(row.better, "tie") == kind]) for kind in ("first", "second", "tie")
    ]


def _has_other_history(row: VotedReplies) -> bool:
    """Whether the models had answered earlier turns differently."""
    return json.dumps(row.prompts[0]) != json.dumps(row.prompts[1])

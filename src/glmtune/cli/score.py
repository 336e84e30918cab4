"""`glmtune score`: rewards of a data set by a reward model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import (
    Base,
    BatchSize,
    Device,
    Dtype,
    FamilyName,
    Hub,
    Limit,
    Quantization,
    RunDataOverrides,
    RunOrModel,
)
from glmtune.utils.shell_words import join_words


def score(
    target: RunOrModel,
    data: Annotated[
        str, typer.Option(help="Pairs, answers with a label, or plain rows, named as data.eval of a config.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: RUN/score/DATA or scores/MODEL-DATA-TIME.")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    base: Base = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    family: FamilyName = None,
    hub: Hub = "huggingface",
    set_: RunDataOverrides = None,
) -> None:
    """Score answers with a reward model (stage rm): a reward for each, and for pairs accuracy, margin and calibration.

    Rows are encoded as in training. Rewards are written beside the numbers.
    """
    from dataclasses import asdict

    from glmtune.evaluation.model_info import read_settings
    from glmtune.evaluation.reward_data import read_reward_data
    from glmtune.evaluation.reward_scores import (
        METRICS_FILE,
        SCORES_FILE,
        choose_score_folder,
        require_score_folder,
        summarize_rewards,
        write_scores,
    )
    from glmtune.evaluation.reward_tables import print_rewards
    from glmtune.preference.reward_model import load_reward_model
    from glmtune.utils.console import ProgressBar, count_noun, print_message, show_status, silence_libraries, use_stderr

    silence_libraries()
    config = read_settings(target, set_ or [])
    folder = output or choose_score_folder(target, data)
    require_score_folder(folder)
    with use_stderr():
        with show_status("Loading the model"):
            model = load_reward_model(
                target, base=base, dtype=dtype, device=device, quantization=quantization, family=family, hub=hub
            )
        with show_status("Reading the data"):
            seed = int(config.training["seed"])
            rows = read_reward_data(data, config.data, model.family, model.tokenizer, limit, seed)
        for note in rows.notes:
            print_message(note)
        cut = rows.counts
        if cut.rows_over_limits:
            print_message(
                f"Length limits, as in training: {count_noun(cut.answers_cut, 'answer')} lost their end, "
                f"{cut.turns_dropped + cut.prompts_cut} prompts a part, {cut.rows_dropped} rows were left out."
            )
        with ProgressBar("rewards", len(rows.encoded)) as progress:
            rewards = model.score_rows(rows.encoded, batch_size, progress.add)
    records, metrics = summarize_rewards(rows, rewards)
    info = {
        "model": str(model.folder),
        "data": data,
        "rules": {key: value for key, value in asdict(config.data).items() if key.startswith(("max_", "prefix"))},
        "command": join_words(["glmtune", *sys.argv[1:]]),
    }
    write_scores(folder, rows, records, metrics, info)
    print_rewards(rows.kind, Path(target).name, data, records, metrics)
    chart = f"   picture: {folder / 'calibration.png'}" if rows.kind == "pairs" else ""
    print_message(f"Rewards: {folder / SCORES_FILE}   numbers: {folder / METRICS_FILE}{chart}")

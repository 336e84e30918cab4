"""Texts of the tab `train`, in both languages."""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "train.lead": {
        "zh": "训练是一条独立的命令：关掉网页、刷新或重启服务器，它都继续；同时开始的几次训练会排队。",
        "en": "Training is a command of its own: it goes on when the page is closed or reloaded or the server is "
        "restarted; several trainings queue.",
    },
    "train.no_bitsandbytes": {
        "zh": "{names} 不可选：没有安装 bitsandbytes（pip install 'glmtune[qlora]'）。",
        "en": "{names} cannot be chosen: bitsandbytes is not installed (pip install 'glmtune[qlora]').",
    },
    "train.more": {"zh": "全部设置", "en": "All settings"},
    "train.other": {"zh": "其他训练参数", "en": "Other training arguments"},
    "train.other_info": {
        "zh": "transformers 的 TrainingArguments 中的任何参数，每行一个，例如 training.weight_decay=0.1",
        "en": "Any key of transformers' TrainingArguments, one a line: training.weight_decay=0.1",
    },
    "train.command": {"zh": "命令", "en": "Command"},
    "train.yaml": {"zh": "配置文件（可下载为 YAML）", "en": "Config file, to download as YAML"},
    "train.incomplete": {
        "zh": "选好模型和训练数据后，这里会出现完整的命令和配置。",
        "en": "Choose a model and training data; the whole command and config then show here.",
    },
    "train.start": {"zh": "开始训练", "en": "Start training"},
    "train.jobs": {"zh": "训练", "en": "Trainings"},
    "train.stop": {"zh": "停止（先保存检查点）", "en": "Stop, with a checkpoint"},
    "train.stop_now": {"zh": "立即中断", "en": "Interrupt at once"},
    "train.continue": {"zh": "继续或重做以前的训练", "en": "Continue or repeat an earlier run"},
    "train.run": {"zh": "以前的训练", "en": "Earlier run"},
    "train.resume": {"zh": "从检查点继续", "en": "Resume from its checkpoint"},
    "train.repeat": {"zh": "把它的设置填入表单", "en": "Fill its settings into the form"},
    "train.none": {"zh": "还没有从这里开始过训练。", "en": "No training was started here yet."},
    "train.gone": {"zh": "训练文件夹 {path} 已不存在。", "en": "The run folder {path} is not there any more."},
    "train.loading": {"zh": "正在读取数据、加载模型……", "en": "Reading the data and loading the model ..."},
    "train.stopping": {"zh": "这一步之后停止，并保存检查点。", "en": "Stopping after this step, with a checkpoint."},
    "train.folder": {"zh": "文件夹：{path}", "en": "Folder: {path}"},
    "train.step": {"zh": "步", "en": "step"},
    "train.eta": {"zh": "剩余时间", "en": "time left"},
    "train.elapsed": {"zh": "已用时间", "en": "elapsed"},
    "train.loss": {"zh": "损失", "en": "loss"},
    "train.eval_loss": {"zh": "验证损失", "en": "evaluation loss"},
    "train.rate": {"zh": "学习率", "en": "learning rate"},
    "train.speed": {"zh": "词元/秒", "en": "tokens/s"},
    "train.memory": {"zh": "内存", "en": "memory"},
    "train.peak": {"zh": "内存峰值", "en": "peak memory"},
    "train.gpu": {"zh": "显存", "en": "GPU memory"},
    "train.curves": {"zh": "损失曲线", "en": "Loss"},
}

"""Texts of the panel that shows a job, in both languages."""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "job.none": {"zh": "还没有任务。", "en": "No job yet."},
    "job.log": {"zh": "日志（最后几百行）", "en": "Log (the last few hundred lines)"},
    "job.stop": {"zh": "停止任务", "en": "Stop the job"},
    "job.queued": {"zh": "排队中，等待前面的任务结束", "en": "waiting for the jobs before it"},
    "job.running": {"zh": "运行中", "en": "running"},
    "job.finished": {"zh": "已完成", "en": "finished"},
    "job.failed": {"zh": "失败，原因见日志", "en": "failed; the log says why"},
    "job.stopped": {"zh": "已停止", "en": "stopped"},
    "job.seconds": {"zh": "{seconds} 秒", "en": "{seconds} s"},
    "job.step": {"zh": "{done} / {total}", "en": "{done} of {total}"},
    "job.written": {"zh": "已写入 {size} MB", "en": "{size} MB written"},
    "job.verdict": {
        "zh": "已完成；遗忘检测的结论是不通过（退出码 3）",
        "en": "finished; the forgetting probe says fail (exit code 3)",
    },
}

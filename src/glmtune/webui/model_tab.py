"""The tab `Model`: what a checkpoint is, from its headers alone, and the memory of its weights."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.families import detect_family, get_family
from glmtune.hub import resolve_checkpoint
from glmtune.utils.console import format_bytes
from glmtune.webui import drafts
from glmtune.webui.commands import run_command
from glmtune.webui.context import Context
from glmtune.webui.elements import make_facts
from glmtune.webui.forms import map_fields
from glmtune.webui.guard import owner_of
from glmtune.webui.jobs_view import render_job
from glmtune.webui.machine_view import render_diagnosis, render_verification
from glmtune.webui.paths import inside, model_or_path
from glmtune.webui.plan_view import make_plan, render_plan
from glmtune.webui.rendering import get_language, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.texts import text

if TYPE_CHECKING:
    from glmtune.models.checkpoints import Checkpoint

_DRAFT = "model"
_SETTINGS = ("model.family", "model.hub")
BUTTONS = ("fetch", "verify", "doctor")
"""Commands that the tab starts: a download is a job, the others end in what they found."""
_DOCTOR_TIMEOUT_S, _VERIFY_TIMEOUT_S = 300.0, 3600.0


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""

    @app.get("/model")
    def show_model(request: Request) -> Response:
        draft = drafts.load_draft(context, owner_of(request), _DRAFT) or FormData()
        job = next((job for job in context.jobs.list() if job.kind == "fetch"), None)
        settings = [
            (item, draft.get(item.key) or item.default or "") for item in (map_fields()[key] for key in _SETTINGS)
        ]
        return render_page(
            *(request, context, "model"),
            tab="model",
            path=draft.get("model.path"),
            settings=settings,
            buttons=BUTTONS,
            panel=render_job(request, context, job) if job else "",
        )

    @app.post("/model/describe")
    async def describe_model(request: Request) -> Response:
        data = await read_form(request)
        lang = get_language(request, context)
        model, family, hub = parse_model(context, data)
        rows, is_local = await run_in_threadpool(describe_checkpoint, model, family, hub, lang)
        drafts.save_draft(context, owner_of(request), _DRAFT, data)
        return render_part(request, context, "model_facts", facts=make_facts(rows), is_local=is_local)

    @app.post("/model/fetch")
    async def fetch_model(request: Request) -> Response:
        data = await read_form(request)
        arguments, output = make_fetch(context, data)
        job = await run_in_threadpool(context.jobs.submit, "fetch", arguments, output, owner_of(request))
        return render_part(request, context, "markup", markup=render_job(request, context, job))

    @app.post("/model/verify")
    async def verify_model(request: Request) -> Response:
        data = await read_form(request)
        model = parse_model(context, data)[0]
        result = await _run_json(request, context, ["verify", model], _VERIFY_TIMEOUT_S)
        markup = render_verification(result, get_language(request, context))
        return render_part(request, context, "markup", markup=markup)

    @app.post("/model/doctor")
    async def diagnose_machine(request: Request) -> Response:
        data = await read_form(request)
        model = [parse_model(context, data)[0]] if data.get("model.path") else []
        result = await _run_json(request, context, ["doctor", *model], _DOCTOR_TIMEOUT_S)
        markup = render_diagnosis(result, get_language(request, context))
        return render_part(request, context, "markup", markup=markup)

    @app.post("/model/plan")
    async def plan_weights(request: Request) -> Response:
        data = await read_form(request)
        lang = get_language(request, context)
        model, family, hub = parse_model(context, data)
        settings = {"path": model, "hub": hub, **({"family": family} if family else {})}
        try:
            plan = await make_plan({"model": settings}, "", context.roots[0], lang, request)
        except GlmtuneError:  # whatever it is: the page still shows what the model is
            return render_part(request, context, "markup", markup="")
        return render_part(request, context, "model_plan", plan=render_plan(plan, lang))


async def _run_json(request: Request, context: Context, words: list[str], timeout_s: float) -> dict[str, Any]:
    """What a command prints with --json; exit code 1 means faults, which it lists."""
    slow = text("machine.slow", get_language(request, context))
    limits: dict[str, Any] = {"timeout_s": timeout_s, "timeout_message": slow}
    result = await run_command([*words, "--json"], context.roots[0], request=request, **limits)
    try:
        content: dict[str, Any] = json.loads(result.output)
    except ValueError:
        raise result.to_error() from None
    return content


def make_fetch(context: Context, data: FormData) -> tuple[list[str], str]:
    """The command that downloads a model, without `glmtune`, and its folder.

    Raises:
        ConfigError: the model is a folder.
        PathError: outside of the roots.
    """
    model, _, hub = parse_model(context, data)
    if Path(model).is_absolute():
        raise ConfigError(f"{context.shorten(model)}: is here already.", "Enter a hub id: THUDM/chatglm3-6b.")
    output = str(inside(context.roots, f"models/{model.rsplit('/', 1)[-1]}"))
    mirror = ["--mirror", data.get("mirror")] if data.get("mirror") else []
    return ["fetch", model, "--hub", hub, "--output", output, *mirror], output


def parse_model(context: Context, data: FormData) -> tuple[str, str | None, str]:
    """Path or hub id, generation and hub of the fields.

    Raises:
        PathError: outside of the roots.
    """
    hub = "modelscope" if data.get("model.hub") == "modelscope" else "huggingface"
    return model_or_path(context.roots, data.get("model.path")), data.get("model.family") or None, hub


def describe_checkpoint(model: str, family: str | None, hub: str, lang: str) -> tuple[list[tuple[str, str]], bool]:
    """Names and values of what a checkpoint is, and whether its weights are here. A hub id whose weights are not is
    described by its config alone.

    Raises:
        ModelError: it cannot be loaded as it is.
    """
    if not Path(model).is_dir():
        known = get_family(family) if family else detect_family(model, hub)
        folder = resolve_checkpoint(model, hub, "config")
        return [(text("model.family", lang), known.title), (text("model.folder", lang), str(folder))], False
    from glmtune.models.checkpoints import inspect_checkpoint

    return _list_facts(inspect_checkpoint(model, family=family, hub=hub), lang), True


def _list_facts(base: Checkpoint, lang: str) -> list[tuple[str, str]]:
    family = base.known_family
    weights = sum(prod(shape) for shape in base.native_shapes.values())
    config = base.config
    shape = text(
        *("model.shape_of", lang),
        layers=config.num_hidden_layers,
        width=f"{config.hidden_size:,}",
        words=f"{config.vocab_size:,}",
    )
    return [
        (text("model.family", lang), family.title if family else text("model.undecided", lang)),
        (text("model.folder", lang), str(base.folder)),
        (text("model.size", lang), f"{weights:,}"),
        (text("model.bytes", lang), format_bytes(_count_bytes(base.folder))),
        (text("model.precision", lang), _describe_precision(base, lang)),
        (text("model.shape", lang), shape),
        (text("model.fingerprint", lang), base.fingerprint),
    ]


def _describe_precision(base: Checkpoint, lang: str) -> str:
    if base.packed_bits:
        return text("model.packed", lang, bits=base.packed_bits)
    if base.stored_quantization:
        return text("model.stored", lang, kind=base.stored_quantization)
    return str(base.inventory.dtype).removeprefix("torch.")


def _count_bytes(folder: Path) -> int:
    """Of the weight files; repositories that hold them twice have them as safetensors."""
    weights = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    return sum(path.stat().st_size for path in weights)

"""Load what is served: a model with its names, and adapters of one base."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from glmtune.errors import ConfigError
from glmtune.serve.context import SamplingDefaults, ServeContext, ServedModel, ServeLimits


@dataclass
class ServeOptions:
    """What `glmtune serve` loads.

    Attributes:
        target: a run, an adapter, a checkpoint folder or a hub id.
        adapters: `NAME=PATH` of adapters of that model.
        name: in requests; that of the target's folder when None.
        base: of the target's adapter, if it was moved.
        dtype: see `load_for_generation`; also `device`, `family`, `hub` and `quantization`.
        max_batch: requests that are generated at the same time.
        max_queue: requests that wait.
        max_context: tokens of prompt and reply together; the model's context window when None.
        request_timeout_s: seconds from a request's arrival to the end of its reply.
        defaults: of sampling.
    """

    target: str
    adapters: list[str] = field(default_factory=list)
    name: str | None = None
    base: str | None = None
    dtype: str | None = None
    device: str | None = None
    family: str | None = None
    hub: str = "huggingface"
    quantization: str | None = None
    max_batch: int = 16
    max_queue: int = 256
    max_context: int | None = None
    request_timeout_s: float = 600.0
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)


def load_context(options: ServeOptions) -> ServeContext:
    """Load model and adapters and start the engine.

    Raises:
        ConfigError: an adapter that is not given as NAME=PATH, two models of one name, or a context that is longer than
            the model's.
        ModelError, RunError: something cannot be loaded.
    """
    from glmtune.generation.context_window import get_context_window
    from glmtune.generation.continuous import BatchEngine
    from glmtune.generation.load import load_for_generation

    folders, models = _read_adapters(options)
    loaded = load_for_generation(
        options.target,
        base=options.base,
        dtype=options.dtype,
        device=options.device,
        family=options.family,
        hub=options.hub,
        quantization=options.quantization,
    )
    window = get_context_window(loaded.model)
    if options.max_context is not None and options.max_context > window:
        raise ConfigError(
            f"--max-context is {options.max_context:,}; the context window of this model holds {window:,} tokens.",
            f"Give at most {window}.",
        )
    engine = BatchEngine(
        loaded.model,
        loaded.tokenizer,
        loaded.family,
        max_batch=options.max_batch,
        max_context=options.max_context,
        max_queue=options.max_queue,
        adapters=folders or None,
    )
    engine.start()
    base = ServedModel(_choose_name(options), prefix=loaded.prefix)
    limits = ServeLimits(options.max_context or window, request_timeout_s=options.request_timeout_s)
    return ServeContext(engine, loaded.tokenizer, loaded.family, [base, *models], limits, options.defaults)


def _choose_name(options: ServeOptions) -> str:
    """The name of the model: the given one, or the folder's; a hub id is a name."""
    path = Path(options.target).expanduser()
    return options.name or (path.resolve().name if path.exists() else options.target)


def _read_adapters(options: ServeOptions) -> tuple[dict[str, str], list[ServedModel]]:
    """Folders by name, and the models that they are."""
    from glmtune.methods.tuned_model import resolve_target

    folders: dict[str, str] = {}
    models = []
    base = resolve_target(options.target, base=options.base).base if options.adapters else None
    for option in options.adapters:
        name, equals, path = option.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--adapter {option}: a name and a path are needed.", "--adapter NAME=RUN_OR_ADAPTER")
        if name in folders or name == _choose_name(options):
            raise ConfigError(
                f"--adapter {option}: another model has the name {name}.", "Give each model its own name."
            )
        target = resolve_target(path, base=base)  # of this model, wherever the adapter's own base is now
        if target.adapter is None:
            raise ConfigError(f"--adapter {option}: {path} has no adapter.", "Give a run or an adapter folder.")
        folders[name] = str(target.adapter)
        models.append(ServedModel(name, name, target.prefix))
    return folders, models

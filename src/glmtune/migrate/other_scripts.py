"""Scripts that do not train: they merge, answer, measure, encode or serve, and commands of glmtune that do the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import is_bool_text, parse_bool
from glmtune.migrate.command_words import parse_words
from glmtune.migrate.dialect import format_flag, require_known_keys
from glmtune.migrate.evaluation_lines import list_ignored
from glmtune.migrate.launchers import ScriptLaunch
from glmtune.migrate.replacement import ReplacementCommand, make_options, make_overrides
from glmtune.migrate.shell import require_value
from glmtune.utils.documents import parse_json, read_document
from glmtune.utils.file_access import require_readable

LOCAL_NOTE = "Only this machine is answered; for others: --host 0.0.0.0, with a key in GLMTUNE_API_KEY."
"""For scripts that listen on all addresses."""

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("model_name_or_path", "base_model", "base_model_name_or_path", "chatglm_path", "model"), "base"),
    **dict.fromkeys(("model_path", "model_dir", "base_model_path", "base_model_dir"), "base"),
    **dict.fromkeys(("lora_path", "lora_model", "lora_model_path", "lora_checkpoint", "lora_dir"), "adapter"),
    **dict.fromkeys(("peft_path", "peft_model", "peft_model_path", "adapter_path", "adapter_dir"), "adapter"),
    **dict.fromkeys(("adapter_name_or_path", "checkpoint_dir", "ptuning_checkpoint", "pt_checkpoint"), "adapter"),
    **dict.fromkeys(("output_path", "output_dir", "output", "save_path", "export_dir", "save_dir"), "output"),
    **dict.fromkeys(("qbits", "quantization_bit", "bits"), "bits"),
    **dict.fromkeys(("prompt", "query", "question", "text"), "prompt"),
    **dict.fromkeys(("max_new_tokens", "max_length", "max_tokens"), "length"),
    **{"temperature": "temperature", "top_p": "top_p", "seed": "seed", "device": "device", "system": "system"},
    **{"port": "port", "server_port": "port", "host": "host", "server_name": "host"},
    **{"jsonl_path": "data", "data_path": "data", "max_seq_length": "row_length", "skip_overlength": "skip"},
    **{"loop_number": "repeats", "export_size": "shard_size", "version": "version"},
}
"""What the flags of these scripts mean, in all projects."""

_NOT_NEEDED_NAMES = """
    remote_scripts_dir tokenizer tokenizer_path tokenizer_name pre_seq_len pt_pre_seq_len prefix_projection
    trust_remote_code lora_rank lora_alpha lora_dropout max_time instruction_text task num_workers template
    mode finetuning_type export_legacy_format export_device infer_backend share gpus num_gpus offload_folder
"""
_NOT_NEEDED = frozenset(_NOT_NEEDED_NAMES.split())
_SWITCHES = frozenset({"share", "skip_overlength", "trust_remote_code", "prefix_projection"})
_PACKED = {4: "packed4", 8: "packed8"}
_FIRST_BASES = {"v1": "THUDM/chatglm-6b", "v2": "THUDM/chatglm2-6b", "v3": "THUDM/chatglm3-6b"}
_HUB_PATTERN = re.compile(r"""from_pretrained\(\s*["']([^"']+)["']""")


@dataclass
class ScriptArguments:
    """The arguments of a script that does not train.

    Attributes:
        location: file and line, for messages.
        script: its file name.
        roles: values by `ROLES`.
        positionals: words that belong to no flag.
        path: of the script, as it was typed.
        environment: variables that are set before the command.
        notes: for the user.
    """

    location: str
    script: str
    roles: dict[str, str]
    positionals: list[str] = field(default_factory=list)
    path: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def make_command(self, words: list[str]) -> ReplacementCommand:
        """Return a command of glmtune with the notes so far."""
        return ReplacementCommand(self.location, self.script, words, self.notes, dict(self.environment))

    def require(self, role: str, flag: str, default: str = "") -> str:
        """Return the value of a role.

        Raises:
            ConfigError: it is not given and has no default.
        """
        value = self.roles.get(role) or default
        if not value:
            raise ConfigError(f"{self.location}: {self.script} without --{flag}.", f"Give --{flag} PATH.")
        if not self.roles.get(role):
            self.notes.append(f"Not given: {flag}, taken as {value}, {self.script}'s.")
        return value

    def find_target(self) -> list[str]:
        """Return the model that answers: an adapter and its base, or a model alone.

        Raises:
            ConfigError: no model is given, nor written in the script.
        """
        base = self.roles.get("base") or (self.positionals[0] if self.positionals else "")
        adapter = self.roles.get("adapter", "")
        if adapter:
            return [adapter, *make_options({"--base": base})]
        if not base:
            base = _read_model_name(self.path)
            if base:
                self.notes.append(f"{self.path}: the model {base} is written in the script.")
        if not base:
            raise ConfigError(
                f"{self.location}: {self.script}: no model is given; it is written in the script.",
                f"Give it to glmtune: {OTHER_SCRIPTS[self.script].command}",
            )
        return [base]


def read_arguments(launch: ScriptLaunch) -> ScriptArguments:
    """Parse the arguments of a script that does not train.

    Raises:
        ConfigError: unknown flags, or a flag without its value.
    """
    location = launch.command.location
    words = [require_value(word, location) for word in launch.arguments]
    known = {*ROLES, *_NOT_NEEDED, "ori_model_dir"}
    parsed = parse_words(words, _SWITCHES, known, location, own_options=False)
    require_known_keys(parsed.flags, known, format_flag, location, launch.script)
    flags = dict(parsed.flags)
    roles = {}
    if "ori_model_dir" in flags:  # ChatGLM-Finetuning's merge_lora.py: --model_dir is the adapter, and the output
        roles = {"base": str(flags.pop("ori_model_dir")), "adapter": str(flags.pop("model_dir", ""))}
        roles["output"] = f"{roles['adapter'].rstrip('/')}-merged"
    roles |= {ROLES[name]: str(value) for name, value in flags.items() if name in ROLES}
    path = next((word for word in launch.command.words if word.endswith(launch.script)), launch.script)
    environment = {name: require_value(value, location) for name, value in launch.command.environment.items()}
    notes = list_ignored(flags, ROLES)
    return ScriptArguments(location, launch.script, roles, parsed.positionals, path, environment, notes)


def make_chat(arguments: ScriptArguments) -> ReplacementCommand:
    """Return `glmtune chat` for a script that answers in the terminal."""
    roles = arguments.roles
    default_checkpoint = "output/chatglm-lora.pt" if arguments.script == "infer.py" else ""
    if default_checkpoint and not roles.keys() & {"base", "adapter"} and not arguments.positionals:
        roles["adapter"], roles["base"] = default_checkpoint, _read_model_name(arguments.path) or "THUDM/chatglm-6b"
        arguments.notes.append(f"Not given: peft_path, taken as {default_checkpoint}, on {roles['base']}.")
    adapter = roles.get("adapter")
    # A peft adapter names its base; chatglm-lora.pt does not, and the script has the name of the first model.
    names_base = adapter and any(Path(adapter, name).is_file() for name in ("adapter_config.json", "config.yaml"))
    if arguments.script == "infer.py" and adapter and not names_base and not roles.get("base"):
        roles["base"] = "THUDM/chatglm-6b"
        arguments.notes.append("Not given: the base, taken as THUDM/chatglm-6b, infer.py's.")
    options = {
        "--prompt": roles.get("prompt"),
        "--system": roles.get("system"),
        "--max-new-tokens": roles.get("length"),
        "--temperature": roles.get("temperature"),
        "--top-p": roles.get("top_p"),
        "--seed": roles.get("seed"),
        "--quantization": _read_packed_bits(arguments),
        "--device": _read_device(arguments),
    }
    if not roles.get("temperature"):
        arguments.notes.append(
            "Replies are greedy; to sample as the published chat does: --temperature 0.8 --top-p 0.8"
        )
    return arguments.make_command(["chat", *arguments.find_target(), *make_options(options)])


def make_page(arguments: ScriptArguments) -> ReplacementCommand:
    """Return `glmtune ui` for a web page; the model is chosen on the page."""
    roles, environment = arguments.roles, arguments.environment
    port = environment.pop("GRADIO_SERVER_PORT", None) or roles.get("port")
    host = environment.pop("GRADIO_SERVER_NAME", None) or roles.get("host")
    if environment.pop("USE_MODELSCOPE_HUB", "0") in ("1", "true", "True"):
        arguments.notes.append("USE_MODELSCOPE_HUB: choose ModelScope on the page, beside the model.")
    if roles.keys() & {"base", "adapter"}:
        chat = make_chat(ScriptArguments(arguments.location, arguments.script, dict(roles)))
        arguments.notes.append(f"The model is chosen on the page. In the terminal: {chat.text}")
    return arguments.make_command(["ui", *make_options({"--port": port, "--host": host})])


def make_export(arguments: ScriptArguments) -> ReplacementCommand:
    """Return `glmtune export` for a script that merges an adapter, and quantises perhaps."""
    roles = arguments.roles
    is_qlora = arguments.script == "merge_lora_and_quantize.py"
    if is_qlora:
        target = [arguments.require("adapter", "lora_path"), *make_options({"--base": roles.get("base")})]
        output = arguments.require("output", "output_path", "/tmp/merged_qlora_model")
    else:
        target = arguments.find_target()
        output = arguments.require("output", "output_dir")
    bits = parse_number(roles.get("bits", 4 if is_qlora else 16))
    if is_qlora and "bits" not in roles:
        arguments.notes.append("Not given: qbits, taken as 4, merge_lora_and_quantize.py's.")
    # In that script every number other than 4 and 8 means: do not quantise.
    bits = bits if bits in (4, 8) else 16
    options = {
        "--format": "official" if is_qlora else None,
        "--bits": bits if is_qlora or bits != 16 else None,
        "--max-shard-size": f"{roles['shard_size']}GB" if roles.get("shard_size") else None,
        "--device": _read_device(arguments),
    }
    return arguments.make_command(["export", *target[:1], output, *target[1:], *make_options(options)])


def make_benchmark(arguments: ScriptArguments) -> ReplacementCommand:
    """Return `glmtune bench` for inference_test.py."""
    target = arguments.find_target()
    arguments.notes.append("Tokens per second at batch size 1, as in the script; the length of a reply is fixed.")
    options = {
        "--variants": _find_variant(target[0]),
        "--batch-sizes": "1",
        "--repeats": arguments.roles.get("repeats"),
        "--device": _read_device(arguments),
    }
    return arguments.make_command(["bench", *target, *make_options(options)])


def make_tokenization(arguments: ScriptArguments) -> ReplacementCommand:
    """Return `glmtune data tokenize` for tokenize_dataset_rows.py."""
    roles = arguments.roles
    data = arguments.require("data", "jsonl_path", "data/alpaca_data.jsonl")
    output = arguments.require("output", "save_path", "data/alpaca")
    model = roles.get("base") or _FIRST_BASES.get(roles.get("version", "v1"), _FIRST_BASES["v1"])
    if not roles.get("base"):
        arguments.notes.append(f"Not given: the model, taken as {model}, tokenize_dataset_rows.py's.")
    skips = parse_bool(roles.get("skip", False), "--skip_overlength", arguments.location)
    length = arguments.require("row_length", "max_seq_length", "384")
    overrides = {"data.max_length": length, "data.overlength": "drop" if skips else None}
    words = ["data", "tokenize", data, "--model", model, "--output", output]
    return arguments.make_command([*words, *make_overrides({**overrides, "data.max_length": parse_number(length)})])


def make_conversion(arguments: ScriptArguments) -> ReplacementCommand:
    """Return `glmtune data check --fix` for cover_alpaca2jsonl.py, which glmtune does not need."""
    data = arguments.require("data", "data_path", "data/alpaca_data.json")
    output = arguments.require("output", "save_path", "data/alpaca_data.jsonl")
    arguments.notes.append(f"glmtune reads {data} as it is; this checks its rows and writes {output}.")
    return arguments.make_command(["data", "check", data, "--fix", output])


def make_server(arguments: ScriptArguments) -> ReplacementCommand:
    """Return `glmtune serve` for a script that serves an HTTP API."""
    roles = arguments.roles
    model_path = arguments.environment.pop("MODEL_PATH", None)  # ChatGLM3-6B's script reads it
    if model_path:
        roles.setdefault("base", model_path)
    options = {
        "--host": roles.get("host"),
        "--port": roles.get("port"),
        "--quantization": _read_packed_bits(arguments),
        "--device": _read_device(arguments),
    }
    if not roles.get("host"):
        arguments.notes.append(LOCAL_NOTE)
    if arguments.script.startswith("openai"):
        arguments.notes.append("Requests name the model by its folder; for another name: --name NAME")
    return arguments.make_command(["serve", *arguments.find_target(), *make_options(options)])


@dataclass(frozen=True)
class OtherScript:
    """A script that does not train.

    Attributes:
        purpose: what it does, for the documentation.
        make: returns the command of glmtune.
        command: the command of glmtune, for the documentation.
    """

    purpose: str
    make: Callable[[ScriptArguments], ReplacementCommand]
    command: str


_CHAT = OtherScript("answers", make_chat, "glmtune chat MODEL, or glmtune chat CHECKPOINT --base MODEL")
_PAGE = OtherScript("opens a web page", make_page, "glmtune ui")
_MERGE = OtherScript("merges an adapter", make_export, "glmtune export ADAPTER OUT [--base MODEL] [--bits N]")
_SERVER = OtherScript(
    "serves an HTTP API", make_server, "glmtune serve MODEL, or glmtune serve CHECKPOINT --base MODEL"
)

OTHER_SCRIPTS: Mapping[str, OtherScript] = {
    "merge_lora_and_quantize.py": OtherScript(
        "merges and quantises", make_export, "glmtune export ADAPTER OUT --format official --bits 16|8|4"
    ),
    **dict.fromkeys(("export_model.py", "merge_lora.py", "merge_peft_adapter.py", "export_lora_model.py"), _MERGE),
    **dict.fromkeys(("inference_hf.py", "inference.py", "infer.py", "inference_qlora.py", "infer_lora.py"), _CHAT),
    **dict.fromkeys(("cli_demo.py", "predict.py", "chat.py", "cli_chat.py", "infer_chatglm.py"), _CHAT),
    "inference_test.py": OtherScript("measures speed", make_benchmark, "glmtune bench MODEL"),
    **dict.fromkeys(("web_demo.py", "web_demo2.py", "web_demo_gradio.py", "webui.py", "train_web.py"), _PAGE),
    **dict.fromkeys(("api.py", "api_demo.py", "openai_api.py", "api_server.py", "openai_api_server.py"), _SERVER),
    "tokenize_dataset_rows.py": OtherScript(
        "encodes rows", make_tokenization, "glmtune data tokenize FILE --model MODEL --output FOLDER"
    ),
    "cover_alpaca2jsonl.py": OtherScript(
        "converts rows", make_conversion, "not needed; glmtune data check FILE --fix NEW.jsonl"
    ),
}
"""Scripts that do not train, by file name."""


def _read_packed_bits(arguments: ScriptArguments) -> str | None:
    bits = parse_number(arguments.roles.get("bits"))
    if bits in (None, 0, 16):
        return None
    if bits not in _PACKED:
        raise ConfigError(f"{arguments.location}: quantization in {bits} bits is not supported.", "One of: 4, 8.")
    return _PACKED[bits]


def _find_variant(model: str) -> str:
    """Return the variant of `glmtune bench` that a checkpoint is: a quantised one is measured as it is."""
    try:
        bits = parse_json(read_document(Path(model) / "config.json")).get("quantization_bit")
    except (OSError, ValueError, AttributeError):
        match = re.search(r"-int([48])$", model)
        bits = int(match[1]) if match else None
    return _PACKED.get(bits, "16-bit")


def _read_device(arguments: ScriptArguments) -> str | None:
    """Return the device, unless it is the choice of glmtune too."""
    device = arguments.roles.get("device", "auto")
    if device.isdigit() or is_bool_text(device):
        arguments.notes.append(f"--device {device}: choose a GPU with CUDA_VISIBLE_DEVICES={device}.")
        return None
    return None if device == "auto" else device


def _read_model_name(path: str) -> str:
    """Return the first model that a script loads by a literal name; empty if there is none."""
    try:
        file = require_readable(path) if path else Path()
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    except OSError:
        return ""
    match = _HUB_PATTERN.search(text)
    return match[1] if match else ""

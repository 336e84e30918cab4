"""The adapters of a batching engine: which of them share a batch, and switching between those that do not.

Plain LoRA adapters and P-Tuning prefixes share one with the base: a prefix is the beginning of a row's keys and values.
DoRA, or modules that an adapter replaces, change the model for all of its rows, so their requests are batches of their
own, which take turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from glmtune.errors import ConfigError
from glmtune.generation.compiled_step import unwrap_model
from glmtune.methods.base_info import require_same_base
from glmtune.methods.lora import add_adapter, load_adapter
from glmtune.methods.lora_rows import RowAdapters, is_stackable
from glmtune.methods.prefix_attention import attach_prefix, find_prefix, remove_prefix
from glmtune.methods.prefix_encoder import PrefixEncoder
from glmtune.methods.ptuning import is_prefix_folder, load_prefix
from glmtune.models.checkpoints import inspect_checkpoint

_LOADED = "default"
"""peft's name of the LoRA adapter that a model was loaded with."""


@dataclass(frozen=True)
class AdapterLane:
    """What one batch is computed with.

    Attributes:
        whole: peft's name of an adapter that every row has; None: each row has its own or none.
    """

    whole: str | None = None


class AdapterSwitch:
    """Loads adapters onto a model and computes each batch with its own.

    Args:
        model: as it was loaded, perhaps with an adapter.
        folders: adapters by name; they are for the base of the model.

    Raises:
        ModelError, RunError: an adapter cannot be loaded, or belongs to another base.
        ConfigError: an adapter changes the base's biases, which the others share.
    """

    def __init__(self, model: Any, folders: Mapping[str, str]):
        self.bare = unwrap_model(model)
        self._peft: Any = model if isinstance(model, PeftModel) else None
        self._prefixes: dict[str | None, torch.Tensor] = {}
        self._lanes: dict[str | None, AdapterLane] = {}
        self._lora_names: dict[str | None, str] = {}
        self._own_prefix: PrefixEncoder | None = None
        if folders:
            self._require_base(folders)
        self._load(folders)
        self.bare.eval()  # the layers of new adapters are in training mode
        self._rows: RowAdapters | None = None
        names = list(self._peft.peft_config) if self._peft else []
        if self._peft is not None:
            self._require_plain_biases(names)
            plain = [name for name in names if is_stackable(self._peft, name)]
            self._rows = RowAdapters(self.bare, plain) if plain else None
            for name in list(self._lora_names):
                whole = self._lora_names[name]
                self._lanes[name] = AdapterLane() if whole in plain else AdapterLane(whole=whole)
        self._current: AdapterLane | None = None

    def names(self) -> list[str]:
        """The names of the adapters that were given."""
        return [name for name in self._lanes if name is not None]

    def get_lane(self, adapter: str | None) -> AdapterLane:
        """What a request with this adapter is computed with.

        Raises:
            KeyError: there is no such adapter.
        """
        return self._lanes[adapter]

    def get_prefix(self, adapter: str | None) -> torch.Tensor | None:
        """Keys and values before a row's first token, (layers, 2, heads, virtual tokens, size), if there are any."""
        return self._prefixes.get(adapter)

    def use(self, lane: AdapterLane, adapters: Sequence[str | None]) -> None:
        """Compute the next forward passes with a lane's adapters.

        Args:
            lane: of all rows.
            adapters: of each row, as requests name them.
        """
        if lane != self._current:
            self._switch(lane)
        if self._rows is not None and self._rows.is_active:
            self._rows.select([self._lora_names.get(name) for name in adapters])

    def restore(self) -> None:
        """Leave the model as it was loaded, with the new adapters beside its own."""
        if self._rows is not None:
            self._rows.remove()
        if self._own_prefix is not None:
            attach_prefix(self.bare, self._own_prefix)
            self._own_prefix = None
        if self._peft is not None and self._current is not None:
            self._peft.base_model.enable_adapter_layers()
            if _LOADED in self._peft.peft_config:
                self._peft.set_adapter(_LOADED)
            else:
                self._peft.base_model.disable_adapter_layers()
            self._peft.requires_grad_(False)
        self._current = None

    def _load(self, folders: Mapping[str, str]) -> None:
        if find_prefix(self.bare) is not None:
            self._own_prefix = self._take_prefix(None)
        elif self._peft is not None:
            self._lora_names[None] = self._peft.active_adapter
        else:
            self._lanes[None] = AdapterLane()
        for name, path in folders.items():
            folder = Path(path)
            if is_prefix_folder(folder):
                load_prefix(self.bare, folder)
                self._take_prefix(name)
                continue
            # peft takes no dots in names.
            peft_name = f"adapter_{len(self._lora_names)}"
            if self._peft is None:
                self._peft = load_adapter(self.bare, folder, name=peft_name)
            else:
                add_adapter(self._peft, folder, peft_name)
            self._lora_names[name] = peft_name

    def _take_prefix(self, name: str | None) -> PrefixEncoder:
        """Compute the model's prefix once, and remove it: attention then need not put it before the keys."""
        encoder = remove_prefix(self.bare)
        with torch.no_grad():
            states = encoder.eval()()
        self._prefixes[name] = states.to(self.bare.device, self.bare.get_input_embeddings().weight.dtype).contiguous()
        self._lanes[name] = AdapterLane()
        return encoder

    def _switch(self, lane: AdapterLane) -> None:
        if self._rows is not None:
            self._rows.is_active = lane.whole is None
        if self._peft is not None:
            if lane.whole is None:
                self._peft.base_model.disable_adapter_layers()
            else:
                self._peft.base_model.enable_adapter_layers()
                self._peft.set_adapter(lane.whole)
                self._peft.requires_grad_(False)
        self._current = lane

    def _require_base(self, folders: Mapping[str, str]) -> None:
        source = Path(self.bare.name_or_path or "")
        if not (source / "config.json").is_file():  # a model that was made in memory
            return
        base = inspect_checkpoint(str(source))
        for folder in folders.values():
            require_same_base(Path(folder), base.fingerprint, base.folder)

    def _require_plain_biases(self, names: Sequence[str]) -> None:
        assert self._peft is not None
        trained = [name for name in names if getattr(self._peft.peft_config[name], "bias", "none") != "none"]
        if trained and len(self._lanes) + len(self._lora_names) > 1:
            raise ConfigError(
                "An adapter changes the biases of the base (lora.bias), which the other models share.",
                "Serve it alone, or train it with lora.bias=none.",
            )

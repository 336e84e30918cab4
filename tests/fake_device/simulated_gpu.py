"""What runs need beside the simulated CUDA device itself: saving its tensors, and its random state."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import bitsandbytes
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map


@contextlib.contextmanager
def simulate_gpu(fake: Any, capability: tuple[int, int]) -> Iterator[None]:
    """A GPU of this compute capability, on which runs can be saved and resumed.

    Args:
        fake: the module `fakecuda`.
        capability: major and minor version.
    """
    fake.SM = capability
    with fake.world(capability), contextlib.ExitStack() as stack:
        # Its tensors have no storage: `torch.save` writes their values, `torch.load` puts them on the device again, and
        # safetensors looks for tensors that share one.
        stack.enter_context(_set_attribute(fake.Cuda, "untyped_storage", lambda tensor: tensor.elem.untyped_storage()))
        stack.enter_context(
            _set_attribute(fake.Cuda, "__reduce_ex__", lambda tensor, protocol: tensor.elem.__reduce_ex__(protocol))
        )
        stack.enter_context(_set_attribute(torch, "load", functools.partial(_load, torch.load)))
        for name in ("get_rng_state", "set_rng_state", "get_rng_state_all", "set_rng_state_all"):
            stack.enter_context(_set_attribute(torch.cuda.random, name, getattr(torch.cuda, name)))
        stack.enter_context(allow_quantized_parameters(fake))
        yield


@contextlib.contextmanager
def allow_quantized_parameters(fake: Any) -> Iterator[None]:
    """Let bitsandbytes' parameters hold tensors of the device, which are a subclass of their own."""
    run = fake.run

    def run_operation(operation: Any, args: Any, options: Any) -> Any:
        # A parameter's `detach` has to be of its type.
        if operation is torch.ops.aten.detach.default and type(args[0]) in quantized_types:
            return args[0].wrap(args[0].elem.detach())
        return run(operation, args, options)

    quantized_types = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_set_attribute(fake, "run", run_operation))
        for original in (bitsandbytes.nn.Params4bit, bitsandbytes.nn.Int8Params):
            device_type, functions = make_device_parameter(fake, original)
            quantized_types.append(device_type)
            for name, function in functions.items():
                stack.enter_context(_set_attribute(original, name, function))
        yield


def make_device_parameter(fake: Any, original: Any) -> tuple[type, dict[str, Any]]:
    """A class for parameters on the device, and `__new__` and `to` of the original that make them."""
    new, move = original.__new__, original.to

    class DeviceParameter(fake.Cuda, original):
        __torch_function__ = torch._C._disabled_torch_function_impl

        @property
        def data(self) -> Any:
            return fake.Cuda(self.elem)

        @data.setter
        def data(self, values: Any) -> None:
            fake.Cuda.data.__set__(self, values)

        def wrap(self, values: torch.Tensor) -> Any:
            parameter = fake.Cuda.__new__(type(self), values)
            parameter.__dict__.update(self.__dict__ | {"elem": values})
            return parameter

    def create(cls: Any, data: Any = None, requires_grad: bool = False, **options: Any) -> Any:
        parameter = new(cls, data if not isinstance(data, fake.Cuda) else torch.empty(0), requires_grad, **options)
        if not isinstance(data, fake.Cuda):
            return parameter
        on_device = fake.Cuda.__new__(DeviceParameter, data.elem, requires_grad)
        on_device.__dict__.update(parameter.__dict__)
        return on_device

    def move_quantized(self: Any, *args: Any, **options: Any) -> Any:
        device = torch._C._nn._parse_to(*args, **options)[0]
        is_moved = device is not None and device.type == "cuda" and self.device.type == "cpu"
        if not is_moved or isinstance(self.data, FakeTensor):
            moved = move(self, *args, **options)
            if isinstance(moved, fake.Cuda):
                # A module assigns to `.data` of its parameter, which keeps the other attributes; here it swaps them.
                moved.__dict__.update({name: value for name, value in self.__dict__.items() if name != "elem"})
            return moved
        # A parameter on the CPU cannot become one of the device: it is quantised here, and then copied.
        attributes = move(self, "cpu").__dict__
        on_device = create(original, self.data.to("cuda"), self.requires_grad)
        for name, value in attributes.items():
            on_device.__dict__[name] = value.to("cuda") if isinstance(value, torch.Tensor) else value
        if attributes.get("quant_state") is not None:
            attributes["quant_state"].to("cuda")
        return on_device

    return DeviceParameter, {"__new__": create, "to": move_quantized}


def _load(load: Any, file: Any, map_location: Any = None, **options: Any) -> Any:
    if map_location is None or torch.device(map_location).type != "cuda":
        return load(file, map_location, **options)
    values = load(file, "cpu", **options)
    return tree_map(lambda value: value.to("cuda") if isinstance(value, torch.Tensor) else value, values)


@contextlib.contextmanager
def _set_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)

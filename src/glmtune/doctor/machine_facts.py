"""What is known of a machine: plain values, which tests make up and `gather.py` reads. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GpuFacts:
    """A GPU as torch sees it."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class TorchFacts:
    """The installed torch, read in a process of its own."""

    version: str = ""
    cuda: str | None = None
    """The CUDA version that it was built for; None for a CPU build."""
    hip: str | None = None
    archs: tuple[str, ...] = ()
    """What it has GPU kernels for: `sm_75`, `compute_90`."""
    import_error: str = ""
    gpu_error: str = ""
    """Why the GPU cannot be used, in torch's words."""
    gpus: tuple[GpuFacts, ...] = ()
    threads: int = 1
    mps: str = ""
    """Apple's GPU: `bf16`, `fp16` (before macOS 14), or why torch cannot use it (`macOS`, `build`); empty elsewhere."""


@dataclass(frozen=True)
class DriverFacts:
    """NVIDIA's driver and the cards in the machine, whatever torch thinks."""

    version: str = ""
    """Empty without a driver that answers."""
    error: str = ""
    """What nvidia-smi says instead."""
    cards: tuple[str, ...] = ()
    """Names from the driver, or PCI addresses where it does not answer."""
    has_device_files: bool = True
    """Whether this system, or container, has the devices' files."""
    processes: tuple[str, ...] = ()
    """Programs that use the GPU now, with their memory."""


@dataclass(frozen=True)
class BitsandbytesFacts:
    """bitsandbytes and its native library."""

    version: str = ""
    libraries: tuple[str, ...] = ()
    """CUDA versions that it has a native library for: `12.8`."""
    error: str = ""
    """Of its import, or of loading the library."""


@dataclass(frozen=True)
class CompilerFacts:
    """What Triton and DeepSpeed compile with."""

    triton: str = ""
    """Its version; empty without it."""
    deepspeed: str = ""
    c_compiler: str = ""
    """Path of gcc, clang or `CC`; empty without one."""
    cpp_compiler: str = ""
    nvcc: str = ""
    """CUDA version of nvcc; empty without it."""
    ninja: bool = True
    has_python_headers: bool = True


@dataclass(frozen=True)
class FolderFacts:
    """A folder that glmtune or a library writes to."""

    purpose: str
    path: str
    writable: bool = True
    free_bytes: int = 500 * 2**30
    free_files: int | None = None
    """Files that can be made; None if the system does not say."""
    executable: bool = True
    """Whether libraries in it can be loaded (no `noexec`)."""
    owner: str = ""
    """The user that owns it, if that is another."""
    variable: str = ""
    """The environment variable that chooses another."""


@dataclass(frozen=True)
class HubFacts:
    """A model hub, asked for a page."""

    address: str = ""
    """Empty if it was not asked."""
    error: str = ""
    clock_skew_s: float = 0.0
    """How far this machine's clock is ahead of the hub's."""


@dataclass(frozen=True)
class TrialFacts:
    """A small computation that was tried on the device."""

    name: str
    device: str = "cpu"
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class WorkFacts:
    """The model and the config that the machine is for; all empty where none was given."""

    model: str = ""
    config: str = ""
    """The file, as it was typed."""
    is_hub_id: bool = False
    """The model is on a hub and not yet here."""
    hub: str = "huggingface"
    model_bytes: int = 0
    """Of its weight files; 0 if not known."""
    model_error: str = ""
    config_error: str = ""
    method: str = ""
    quantization: str = ""
    bf16: bool = False
    """The config asks for bf16, in computation or weights."""
    use_cpu: bool = False
    deepspeed: bool = False
    deepspeed_compiles: str = ""
    """What DeepSpeed compiles for these settings: `cpu_adam`."""
    workers: int = 0
    """Processes that load data."""
    plan: str = ""
    """What `glmtune plan` says where the run does not fit, with the change that makes it fit."""


@dataclass(frozen=True)
class MachineFacts:
    """Everything that the findings are made from. The defaults are those of a healthy machine without a GPU."""

    system: str = "Linux"
    """`Linux`, `Windows` or `Darwin`."""
    machine: str = "x86_64"
    python: str = "3.11.7"
    python_bits: int = 64
    pip: str = "python -m pip"
    """How pip is called for the Python that runs glmtune."""
    shell: str = "sh"
    """`sh`, `cmd` or `powershell`: how a variable is set."""
    package_manager: str = "apt-get"
    """Of a Linux distribution; empty if it is not known."""
    is_root: bool = False
    in_container: bool = False
    is_wsl: bool = False
    is_rosetta: bool = False
    memory_bytes: int = 64 * 2**30
    available_bytes: int = 48 * 2**30
    memory_limit_bytes: int | None = None
    """Of the container or job, where it is less than the machine has."""
    shm_bytes: int | None = 32 * 2**30
    cpus: int = 16
    cpu_quota: float | None = None
    """CPUs that the container may use; None without a limit."""
    open_files: int | None = 65536
    time_s: float = 1_800_000_000.0
    """Seconds since 1970."""
    build_time_s: float = 1_700_000_000.0
    """When the newest of the installed packages was written: the clock cannot be before that."""
    encodings: dict[str, str] = field(default_factory=lambda: {"locale": "utf-8", "stdout": "utf-8"})
    environment: dict[str, str] = field(default_factory=dict)
    """The variables that matter here."""
    driver: DriverFacts = field(default_factory=DriverFacts)
    torch: TorchFacts = field(default_factory=lambda: TorchFacts("2.13.0+cpu", threads=16))
    import_errors: dict[str, str] = field(default_factory=dict)
    """Libraries that are installed and cannot be imported, with the reason."""
    bitsandbytes: BitsandbytesFacts | None = None
    """None if it is not installed."""
    compilers: CompilerFacts = field(default_factory=lambda: CompilerFacts(c_compiler="gcc", cpp_compiler="g++"))
    duplicates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Packages of which several versions are found: `1.2 in FOLDER` each, the one that is used first."""
    leftovers: tuple[str, ...] = ()
    """Folders of interrupted installations (`~orch`)."""
    unmet: tuple[str, ...] = ()
    """Requirements that the installed versions do not meet."""
    shadows: dict[str, str] = field(default_factory=dict)
    """Modules that a file of the user hides, with that file."""
    folders: tuple[FolderFacts, ...] = ()
    locks: tuple[str, ...] = ()
    """Locks of compilations that nothing holds any more."""
    has_long_paths: bool = True
    longest_path: int = 0
    """Characters of the deepest folder that is written to."""
    hub: HubFacts = field(default_factory=HubFacts)
    has_modelscope: bool = True
    has_socks: bool = True
    work: WorkFacts = field(default_factory=WorkFacts)
    trials: tuple[TrialFacts, ...] = ()
    probe_error: str = ""
    """Why the process that imports torch ended before it was done."""

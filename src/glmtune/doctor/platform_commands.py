"""Commands for the system at hand, that work when they are pasted into its shell."""

from __future__ import annotations

from glmtune.doctor.machine_facts import MachineFacts
from glmtune.utils import shell_words

_COMPILERS = {
    "apt-get": "apt-get install -y build-essential",
    "dnf": "dnf install -y gcc gcc-c++ make",
    "yum": "yum install -y gcc gcc-c++ make",
    "zypper": "zypper install -y gcc gcc-c++ make",
    "pacman": "pacman -S --noconfirm base-devel",
    "apk": "apk add build-base",
}
_HEADERS = {
    "apt-get": "apt-get install -y python{version}-dev",
    "dnf": "dnf install -y python{version}-devel",
    "yum": "yum install -y python{version}-devel",
    "zypper": "zypper install -y python{digits}-devel",
    "pacman": "pacman -S --noconfirm python",
    "apk": "apk add python3-dev",
}
_OPENMP = {
    "apt-get": "apt-get install -y libgomp1",
    "dnf": "dnf install -y libgomp",
    "yum": "yum install -y libgomp",
    "zypper": "zypper install -y libgomp1",
    "pacman": "pacman -S --noconfirm gcc-libs",
    "apk": "apk add libgomp",
}
_DRIVERS = {
    "apt-get": "apt-get install -y ubuntu-drivers-common && {root}ubuntu-drivers install && {root}reboot",
    "dnf": "dnf install -y akmod-nvidia && {root}reboot",
    "pacman": "pacman -S --noconfirm nvidia && {root}reboot",
}


def install_package(facts: MachineFacts, *words: str) -> str:
    """A command of pip for the Python that runs glmtune."""
    return f"{facts.pip} install {' '.join(quote_word(facts, word) for word in words)}"


def install_compilers(facts: MachineFacts) -> str:
    """The command that installs compilers for C and C++."""
    if facts.system == "Darwin":
        return "xcode-select --install"
    if facts.system == "Windows":
        return "winget install Microsoft.VisualStudio.2022.BuildTools"
    return _install(facts, _COMPILERS, "Install gcc and g++")


def install_headers(facts: MachineFacts) -> str:
    """The command that installs Python.h."""
    version = ".".join(facts.python.split(".")[:2])
    command = _install(facts, _HEADERS, f"Install the headers of Python {version}")
    return command.format(version=version, digits=version.replace(".", ""))


def install_openmp(facts: MachineFacts) -> str:
    """The command that installs the library of OpenMP."""
    return _install(facts, _OPENMP, "Install libgomp")


def install_driver(facts: MachineFacts) -> str:
    """The command that installs NVIDIA's driver."""
    if facts.system != "Linux":
        return "Install the driver from https://www.nvidia.com/drivers and restart"
    command = _install(facts, _DRIVERS, "Install NVIDIA's driver (https://www.nvidia.com/drivers), then restart")
    command = command.replace("{root}", run_as_root(facts, ""))
    return add_comment(facts, command, "from RPM Fusion") if facts.package_manager == "dnf" else command


def _install(facts: MachineFacts, commands: dict[str, str], otherwise: str) -> str:
    command = commands.get(facts.package_manager)
    return run_as_root(facts, command) if command else otherwise


def run_as_root(facts: MachineFacts, command: str) -> str:
    """A command with sudo, unless the user is root."""
    return command if facts.is_root else f"sudo {command}"


def join_commands(facts: MachineFacts, *commands: str) -> str:
    """Commands one after the other in one line."""
    return {"cmd": " & ", "powershell": "; "}.get(facts.shell, " && ").join(commands)


def add_comment(facts: MachineFacts, command: str, comment: str) -> str:
    """A command with a remark that the shell ignores."""
    return f"{command} & rem {comment}" if facts.shell == "cmd" else f"{command}  # {comment}"


def set_variable(facts: MachineFacts, name: str, value: str) -> str:
    """The line that sets an environment variable in the user's shell."""
    return shell_words.assign_variable(name, value, facts.shell)


def unset_variable(facts: MachineFacts, name: str) -> str:
    """The line that removes an environment variable in the user's shell."""
    if facts.shell == "cmd":
        return f"set {name}="
    return f"Remove-Item Env:{name}" if facts.shell == "powershell" else f"unset {name}"


def remove_path(facts: MachineFacts, path: str) -> str:
    """The command that removes a file or folder."""
    command = {"cmd": "rmdir /s /q", "powershell": "Remove-Item -Recurse"}.get(facts.shell, "rm -r")
    return f"{command} {quote_word(facts, path)}"


def quote_word(facts: MachineFacts, word: str) -> str:
    """A word of a command as it is typed in this shell."""
    return shell_words.quote_word(word, facts.shell)

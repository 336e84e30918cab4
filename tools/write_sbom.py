"""Write what a release consists of: an SBOM (CycloneDX 1.6, JSON) and a table of licences.

python tools/write_sbom.py sbom.cdx.json licences.md --extras qlora ui serve

The components are glmtune, the packages that it requires as they are installed here, with their own requirements, and
the scripts of others that lie in the package (`vendor.json` of the web page). A package of unknown licence ends the
program with exit code 1. Format: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import uuid
from datetime import datetime, timezone
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

VENDOR_FILE = Path(__file__).resolve().parent.parent / "src" / "glmtune" / "webui" / "static" / "vendor" / "vendor.json"
# Licences that packages name by their classifier or in free text only.
_SPDX = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "mit": "MIT",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "psf-2.0": "PSF-2.0",
    "psf": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
}


def collect_packages(name: str, extras: list[str]) -> dict[str, tuple[Distribution, list[str]]]:
    """Installed packages that a package requires, and those they require.

    Args:
        name: of the package.
        extras: of it.

    Returns:
        By name: the package and the names of what it requires. Requirements for other systems and those of extras that
        nothing asks for are left out.

    Raises:
        SystemExit: one is not installed.
    """
    found: dict[str, tuple[Distribution, list[str]]] = {}
    waiting = [(canonicalize_name(name), frozenset(extras))]
    visited: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        package, wanted = waiting.pop()
        if (package, wanted) in visited:
            continue
        visited.add((package, wanted))
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            raise SystemExit(f"{package} is required and not installed here.") from None
        names = found.setdefault(package, (installed, []))[1]
        for text in installed.requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                continue
            required = canonicalize_name(requirement.name)
            if required != package and required not in names:
                names.append(required)
            waiting.append((required, frozenset(requirement.extras)))
    return dict(sorted(found.items()))


def find_licence(package: Distribution) -> str:
    """The SPDX expression of a package's licence, its own words where they are none, empty if it names none."""
    metadata: Any = package.metadata
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    words = [line.strip() for line in str(metadata.get("License") or "").splitlines() if line.strip()]
    # A whole licence text in the field starts with its name; long lines are no names.
    text = words[0] if words and len(words[0]) < 60 else ""
    classifiers = [line.rsplit(" :: ", 1)[1] for line in metadata.get_all("Classifier") or [] if "License ::" in line]
    classifiers = [line for line in classifiers if line != "OSI Approved"]
    identifier = _SPDX.get(text.lower())
    if identifier:
        return identifier
    if not classifiers:
        return _read_licence_file(package) or ("" if text.lower().startswith("licen") else text)
    return " AND ".join(dict.fromkeys(_SPDX.get(line.lower(), line) for line in classifiers))


def _read_licence_file(package: Distribution) -> str:
    """The licence whose title a package's LICENSE file starts with, empty if none is known."""
    for file in package.files or []:
        if re.match(r"LICEN[CS]E", file.name, re.IGNORECASE) and file.locate().is_file():
            start = str(file.read_text())[:400]
            for title, licence in (("Apache License", "Apache-2.0"), ("MIT License", "MIT")):
                if title in start:
                    return licence
    return ""


def build_sbom(name: str, extras: list[str], vendor: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The bill of materials as a JSON object.

    Args:
        name: of the package.
        extras: of it.
        vendor: files of others by name, with package, version, licence and SHA-256.
    """
    packages = collect_packages(name, extras)
    references = {package: _format_purl(package, installed.version) for package, (installed, _) in packages.items()}
    root = canonicalize_name(name)
    components = [
        {
            "type": "library",
            "bom-ref": references[package],
            "name": package,
            "version": installed.version,
            "purl": references[package],
            "licenses": _format_licences(find_licence(installed)),
        }
        for package, (installed, _) in packages.items()
    ]
    scripts = [
        {
            "type": "library",
            "bom-ref": f"pkg:npm/{entry['package']}@{entry['version']}#{file}",
            "name": entry["package"],
            "version": entry["version"],
            "purl": f"pkg:npm/{entry['package']}@{entry['version']}",
            "description": f"{file} of the web page, {entry['file']} of the package",
            "hashes": [{"alg": "SHA-256", "content": entry["sha256"]}],
            "licenses": _format_licences(entry["license"]),
        }
        for file, entry in vendor.items()
        if "LICENSE" not in file
    ]
    dependencies = [
        {"ref": references[package], "dependsOn": sorted(references[other] for other in names)}
        for package, (_, names) in packages.items()
    ]
    dependencies[list(packages).index(root)]["dependsOn"] += [script["bom-ref"] for script in scripts]
    main = next(component for component in components if component["name"] == root)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "component": main,
            "properties": [{"name": "glmtune:extras", "value": " ".join(extras) or "none"}],
        },
        "components": [component for component in components if component is not main] + scripts,
        "dependencies": dependencies + [{"ref": script["bom-ref"]} for script in scripts],
    }


def _format_purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version.replace('+', '%2B')}"


def _format_licences(text: str) -> list[dict[str, Any]]:
    if not text:
        return []
    if re.fullmatch(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+()-]+|[ ()])*", text):
        return [{"expression": text}]
    return [{"license": {"name": text}}]


def format_licences(sbom: dict[str, Any]) -> str:
    """The components and their licences as a table in Markdown."""
    lines = ["| package | version | licence |", "| --- | --- | --- |"]
    for component in sbom["components"]:
        licences = [item.get("expression") or item["license"]["name"] for item in component["licenses"]]
        lines.append(f"| {component['name']} | {component['version']} | {', '.join(licences) or 'not named'} |")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def find_unnamed(sbom: dict[str, Any]) -> list[str]:
    """Components whose licence is not known."""
    return [component["name"] for component in sbom["components"] if not component["licenses"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sbom", type=Path, help="JSON file to write")
    parser.add_argument("licences", type=Path, help="Markdown file to write")
    parser.add_argument("--extras", nargs="*", default=[], help="extras of glmtune whose packages are listed")
    arguments = parser.parse_args()
    sbom = build_sbom("glmtune", arguments.extras, json.loads(VENDOR_FILE.read_text("utf-8")))
    arguments.sbom.write_text(json.dumps(sbom, indent=2) + "\n", "utf-8")
    arguments.licences.write_text(format_licences(sbom), "utf-8")
    print(f"{len(sbom['components'])} components: {arguments.sbom}, {arguments.licences}")
    if find_unnamed(sbom):
        sys.exit(f"No licence is named by {', '.join(find_unnamed(sbom))}.")


if __name__ == "__main__":
    main()

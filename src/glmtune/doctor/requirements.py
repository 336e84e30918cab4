"""Installed versions against what glmtune needs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version


def find_unmet(requirements: list[str] | None = None) -> tuple[str, ...]:
    """Requirements that are not met: `transformers<6,>=5.23 (4.41.2 is installed)`.

    Args:
        requirements: of pip; those of the installed glmtune when None.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    if requirements is None:
        try:
            requirements = requires("glmtune") or []
        except PackageNotFoundError:  # a source tree that is not installed
            return ()
    unmet = []
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            unmet.append(f"{wanted} (not installed)")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            unmet.append(f"{wanted} ({installed} is installed)")
    return tuple(unmet)

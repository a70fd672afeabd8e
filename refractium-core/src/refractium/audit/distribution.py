"""The rules for the metadata of a distribution: names, version ranges, dependencies and imports."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Final

from importlib_metadata import PackageNotFoundError, packages_distributions, version
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from refractium._version import __version__
from refractium.audit.source import PUBLIC, files_of, imports_of
from refractium.contract.protocol import problems_of_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from refractium.audit.package import Package

    Broken = tuple[str, str, str]
    """The code of a rule, the subject, and what was found."""

CORE: Final = "refractium-core"
_LOWER: Final = frozenset({">=", ">", "~=", "==", "==="})
_UPPER: Final = frozenset({"<=", "<", "~=", "==", "==="})


def check_distribution(package: Package) -> Iterator[Broken]:
    """Yield each rule that the metadata or the imports of a distribution break."""
    name = f"distribution {package.name}"
    if not package.summary.strip():
        yield "summary", name, "the distribution has no summary: set description in pyproject.toml"
    if not package.entry_points:
        yield "entry-point", name, "the distribution has no entry point in the group refractium"
    for id_ in package.entry_points:
        if next(problems_of_name(id_), None):
            yield "id", f"plugin '{id_}'", f"the entry point has the name '{id_}'"
    yield from _check_python(package, name)
    requirements = list(_requirements(package))
    yield from _check_core([one for one in requirements if canonicalize_name(one.name) == CORE], name)
    yield from _check_installed(requirements, name)
    yield from _check_imports(package, requirements)


def _requirements(package: Package) -> Iterator[Requirement]:
    for text in package.requires:
        try:
            yield Requirement(text)
        except InvalidRequirement:  # a build backend refuses such a requirement
            continue


def _check_python(package: Package, name: str) -> Iterator[Broken]:
    try:
        supported = SpecifierSet(package.requires_python)
    except InvalidSpecifier:
        yield "python-range", name, f'requires-python is "{package.requires_python}", which is not a range'
        return
    if not any(one.operator in _LOWER for one in supported):
        found = (
            f'"{supported}" has no lower bound' if package.requires_python else "requires-python is absent"
        )
        yield "python-range", name, found
    elif not supported.contains(running := platform.python_version(), prereleases=True):
        yield "python-version", name, f'requires-python is "{supported}", and this is Python {running}'


def _check_core(requirements: list[Requirement], name: str) -> Iterator[Broken]:
    """Check the requirements of the core; together, several requirements are one range."""
    if not requirements:
        yield "core-missing", name, "no dependency is refractium-core"
        return
    bounds = SpecifierSet(",".join(str(one.specifier) for one in requirements if one.specifier))
    shown = f'the requirement is "{requirements[0].name}{bounds}"'
    operators = {one.operator for one in bounds}
    if not operators & _LOWER:
        yield "core-lower-bound", name, shown
    if not operators & _UPPER:
        yield "core-upper-bound", name, shown
    if not bounds.contains(__version__, prereleases=True):
        yield "core-version", name, f"{shown}, and this is version {__version__}"


def _check_installed(requirements: Iterable[Requirement], name: str) -> Iterator[Broken]:
    missing = []
    for one in requirements:
        if canonicalize_name(one.name) == CORE or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        try:
            if one.specifier.contains(version(one.name), prereleases=True):
                continue
        except PackageNotFoundError:
            pass
        missing.append(f"'{one.name}{one.specifier}'")
    if missing:
        install = f"{sys.executable} -m pip install {' '.join(missing)}"
        yield "dependency-missing", name, f"not installed: {', '.join(missing)}; to install: {install}"


def _check_imports(package: Package, requirements: Iterable[Requirement]) -> Iterator[Broken]:
    declared = {canonicalize_name(one.name) for one in requirements} | {canonicalize_name(package.name)}
    modules = {value.partition(":")[0].strip() for value in package.entry_points.values()}
    files = dict.fromkeys(file for module in sorted(modules) for file in files_of(module, package.path))
    own = {module.partition(".")[0] for module in modules} | _modules_in(package)
    owners = packages_distributions()
    for file in files:
        try:
            found = list(imports_of(file))
        except (OSError, SyntaxError, ValueError):  # the import of the module reports this file
            continue
        for line, module in found:
            subject = f"{file.parent.name}/{file.name}:{line}"
            top = module.partition(".")[0]
            if top == "refractium":
                if module not in PUBLIC:
                    yield "private-import", subject, f"imports {module}"
            elif top not in own | sys.stdlib_module_names and not declared & {
                canonicalize_name(owner) for owner in owners.get(top, [top])
            }:
                of = f" of {' or '.join(sorted(set(owners[top])))}" if top in owners else ""
                yield "undeclared-import", subject, f"imports {top}{of}"


def _modules_in(package: Package) -> set[str]:
    """Return the names of the packages and modules beside the code of a package that is not installed."""
    return {one.stem for folder in package.path for one in folder.iterdir()}

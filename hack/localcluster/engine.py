"""The Docker engine: find one that runs, else install and start one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from localcluster.settings import RUNTIME_WRAPPER, Settings
from localcluster.shell import MissingRequirementError, StepError, answer, run, succeeds, tail, wait_until

PACKAGES = ("docker.io", "containerd", "runc", "debootstrap", "iptables", "jq")
CAP_SYS_RESOURCE = 24


def reachable() -> bool:
    """Whether an engine answers; what `docker` talks to (DOCKER_HOST, context) is the user's choice."""
    return shutil.which("docker") is not None and succeeds(
        ["docker", "version", "--format", "{{.Server.Version}}"], timeout=20
    )


def require_possible() -> None:
    """Says at once when no engine runs and none can be started.

    Raises:
        MissingRequirementError: with what is missing and how to get it.

    """
    if reachable():
        return
    if os.geteuid() != 0:
        raise MissingRequirementError(
            "no Docker engine answers, and starting one takes root",
            hint="Start Docker (Docker Desktop, `sudo systemctl start docker`, colima, …), see that\n"
            "`docker info` works for this user, and run the command again. Or run it as root.",
        )
    if not installed() and not shutil.which("apt-get"):
        raise MissingRequirementError(
            "no Docker engine is installed, and there is no apt-get to install one with",
            hint="Install Docker for your system (https://docs.docker.com/engine/install), start it,\n"
            "and run the command again.",
        )


def installed() -> bool:
    return all(
        shutil.which(program) for program in ("dockerd", "containerd", "runc", "docker", "iptables", "jq")
    )


def install(log: Path) -> None:
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], log=log, env=env, hint="apt-get cannot reach its sources.")
    # Debian 13 has the client in a package of its own, which docker.io only recommends.
    client = ["docker-cli"] if answer(["apt-cache", "show", "docker-cli"]) else []
    run(["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES, *client], log=log, env=env)


def start(settings: Settings, log: Path) -> None:
    """Starts an engine that outlives this process.

    With systemd, the distribution's own service. Without it, a detached dockerd whose data lies under the
    project's home, so that `clean` can take all of it away again.
    """
    if not installed():
        install(log)
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "start", "docker"], log=log)
    else:
        _start_detached(settings)
    if not wait_until(reachable, seconds=90):
        raise StepError("dockerd started but does not answer", hint=tail(_engine_log(settings)), log=log)


def _start_detached(settings: Settings) -> None:
    if running_pid(settings) is not None:
        # It is starting, or on its way out.
        wait_until(lambda: reachable() or running_pid(settings) is None, seconds=60)
        if reachable():
            return
        stop(settings)
    # A dockerd that was killed leaves the id of its process behind and then believes that it still runs.
    for stale in (Path("/var/run/docker.pid"), Path("/run/docker/containerd/containerd.pid")):
        if stale.exists() and not _is_alive(stale):
            stale.unlink()
    _stop_orphaned_containerd()
    options = [f"--data-root={settings.home / 'docker'}"]
    if not has_capability(CAP_SYS_RESOURCE):
        # A copy, since the engine goes on using it when the repository has moved.
        wrapper = settings.bin / RUNTIME_WRAPPER.name
        shutil.copy2(RUNTIME_WRAPPER, wrapper)
        options += [f"--add-runtime=bounded={wrapper}", "--default-runtime=bounded"]
    with _engine_log(settings).open("ab") as output:
        process = subprocess.Popen(
            ["dockerd", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
    _pid_file(settings).write_text(str(process.pid))


def _stop_orphaned_containerd() -> None:
    """Ends the containerd of a dockerd that was killed: a new dockerd cannot take over its socket's lock."""
    pid_file = Path("/run/docker/containerd/containerd.pid")
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not _is_alive(pid_file), seconds=10, every=0.1)


def stop(settings: Settings) -> bool:
    """Stops the engine that `start` started without systemd. False where there is none."""
    pid = running_pid(settings)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    if not wait_until(lambda: running_pid(settings) is None, seconds=60):
        raise StepError(f"dockerd (process {pid}) does not stop", hint=tail(_engine_log(settings)))
    # dockerd leaves its bridge behind; a new one makes it again. And its data folder stays mounted on itself.
    answer(["ip", "link", "delete", "docker0"])
    for mounted in reversed(_mounts_below(settings.home / "docker")):
        answer(["umount", mounted])
    return True


def _mounts_below(folder: Path) -> list[str]:
    """Mount points at or below a folder, in the order in which they were mounted."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(folder)]


def running_pid(settings: Settings) -> int | None:
    """The process of the dockerd that this package started, while it lives."""
    pid_file = _pid_file(settings)
    return int(pid_file.read_text()) if _is_alive(pid_file, "dockerd") else None


def has_capability(bit: int) -> bool:
    status = Path("/proc/self/status")
    found = (
        re.search(r"^CapBnd:\s*([0-9a-f]+)", status.read_text(), re.MULTILINE) if status.exists() else None
    )
    return found is None or bool(int(found[1], 16) >> bit & 1)


def uses_cgroup_v1() -> bool:
    return (answer(["docker", "info", "--format", "{{.CgroupVersion}}"]) or "").strip() == "1"


def _is_alive(pid_file: Path, name: str = "") -> bool:
    try:
        pid = int(pid_file.read_text())
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    command, state = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2]
    return state != "Z" and command.startswith(name)


def _pid_file(settings: Settings) -> Path:
    return settings.home / "dockerd.pid"


def _engine_log(settings: Settings) -> Path:
    return settings.logs / "dockerd.log"

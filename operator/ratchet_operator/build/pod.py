"""The pod that every child with containers is built from: restricted, without a Kubernetes token."""

from dataclasses import dataclass
from typing import Any

from ratchet.api.v1alpha1.common import PodFields, Resources, Volume
from ratchet_operator.kinds import Json

USER = 10001
REDIS_USER = 999


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume and where it appears; `source` is the volume without its name."""

    name: str
    path: str
    source: Json
    read_only: bool = True


TMP = Mount("tmp", "/tmp", {"emptyDir": {}}, read_only=False)  # noqa: S108


def secret_mount(name: str, path: str, secret: str, *keys: str) -> Mount:
    """A Secret as files, all of them or only some keys."""
    source: Json = {"secretName": secret, "defaultMode": 0o440}
    if keys:
        source["items"] = [{"key": key, "path": key} for key in keys]
    return Mount(name, path, {"secret": source})


def config_mount(name: str, path: str, config_map: str, *keys: str) -> Mount:
    """A ConfigMap as files."""
    items = [{"key": key, "path": key} for key in keys]
    return Mount(name, path, {"configMap": {"name": config_map, "defaultMode": 0o444, "items": items}})


def user_mount(volume: Volume) -> Mount:
    """A volume that the user asked for."""
    source: Json
    if volume.persistent_volume_claim is not None:
        source = {
            "persistentVolumeClaim": {
                "claimName": volume.persistent_volume_claim,
                "readOnly": volume.read_only,
            }
        }
    elif volume.config_map is not None:
        source = {"configMap": {"name": volume.config_map, "defaultMode": 0o444}}
    elif volume.secret is not None:
        source = {"secret": {"secretName": volume.secret, "defaultMode": 0o440}}
    else:
        source = {"emptyDir": {"sizeLimit": volume.empty_dir}}
    return Mount(f"user-{volume.name}"[:63], volume.mount_path, source, volume.read_only)


def resources(asked: Resources | None, cpu: str, memory: str, extra_limits: Json | None = None) -> Json:
    """What the user asked for, else modest requests; device limits on top."""
    result: Json = {"requests": {"cpu": cpu, "memory": memory}}
    if asked is not None:
        result = asked.to_wire()
    if extra_limits:
        result = {**result, "limits": {**result.get("limits", {}), **extra_limits}}
    return result


def environment(values: dict[str, str]) -> list[Json]:
    """Environment variables of a container. Empty ones are left out: the API server keeps no empty value, and
    ours would be written again at each look.
    """
    return [{"name": name, "value": value} for name, value in values.items() if value]


def container(name: str, image: str, pull_policy: str, mounts: list[Mount], **more: Any) -> Json:
    """A container that passes the restricted profile."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": pull_policy,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": mount.name, "mountPath": mount.path, **({"readOnly": True} if mount.read_only else {})}
            for mount in mounts
        ],
        **more,
    }


def http_probe(path: str, **timing: int) -> Json:
    """A probe of the port named `http`; seconds and numbers as Kubernetes calls them."""
    return {"httpGet": {"path": path, "port": "http"}, **timing}


def pod_spec(
    main: Json, mounts: list[Mount], user: int, fields: PodFields | None = None, **more: Any
) -> Json:
    """A pod around one container; `fields` is what the user may say of it."""
    spec: Json = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [main],
        "volumes": [{"name": mount.name, **mount.source} for mount in mounts],
        **more,
    }
    if fields is None:
        return spec
    if fields.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret.name} for secret in fields.image_pull_secrets]
    if fields.placement is not None:
        spec.update(fields.placement.to_wire())
        if not spec.get("tolerations"):
            spec.pop("tolerations", None)
    return spec

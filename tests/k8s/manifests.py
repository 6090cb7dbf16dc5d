"""What `kubectl kustomize` makes of an overlay, and its containers as processes of this machine."""

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from repositories import ROOT
from ruamel.yaml import YAML

Resource = dict[str, Any]

OVERLAYS = ("local", "gpu")


@cache
def kubectl() -> str | None:
    """Find a kubectl whose kustomize knows what k8s/ uses (1.27 or newer)."""
    path = shutil.which("kubectl")
    if path is None:
        return None
    said = subprocess.run([path, "version", "--client"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v1\.(\d+)", said)
    return path if version and int(version[1]) >= 27 else None


@cache
def render(overlay: str, namespace: str = "kubeflow") -> tuple[Resource, ...]:
    """Render an overlay of a copy of k8s/, with secrets of its own, for runs in `namespace`."""
    program = kubectl()
    if program is None:
        pytest.skip("there is no kubectl 1.27 or newer")
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "k8s"
        shutil.copytree(ROOT / "k8s", copy, ignore=shutil.ignore_patterns("secrets"))
        subprocess.run(["sh", copy / "secrets.sh"], check=True, capture_output=True)
        runs = copy / "overlays" / overlay / "runs" / "kustomization.yaml"
        runs.write_text(runs.read_text().replace("namespace: kubeflow", f"namespace: {namespace}"))
        done = subprocess.run(
            [program, "kustomize", copy / "overlays" / overlay], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return tuple(resource for resource in YAML(typ="safe").load_all(done.stdout) if resource)


def find(resources: Sequence[Resource], kind: str, name: str, namespace: str | None = None) -> Resource:
    """Find the one resource of this kind and name; the names of ConfigMaps have a digest at their end."""
    found = [
        resource
        for resource in resources
        if resource["kind"] == kind
        and re.fullmatch(rf"{re.escape(name)}(-[a-z0-9]{{10}})?", resource["metadata"]["name"])
        and namespace in {None, resource["metadata"].get("namespace")}
    ]
    assert found, f"there is no {kind} {name}"
    return found[0]


def pods(resources: Sequence[Resource]) -> Iterator[tuple[str, Resource]]:
    """Give the template of every pod, with the name of what makes it."""
    for resource in resources:
        spec = resource.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            yield f"{resource['kind']}/{resource['metadata']['name']}", template


def containers(pod: Resource) -> list[Resource]:
    """Give all containers of a pod's template."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


class Process(NamedTuple):
    """A container's command and environment, with the paths of its volumes and the names of the Services replaced."""

    command: list[str]
    environment: dict[str, str]


class Containers:
    """Containers of a rendered overlay as processes: volumes are folders, Services addresses of this machine."""

    def __init__(self, resources: Sequence[Resource], folder: Path, services: Mapping[str, str]) -> None:
        self._resources, self._folder, self._services = resources, folder, services

    def process(self, workload: str, name: str, **more: str) -> Process:
        """Give the container `name` of `workload`, as in `Deployment/mlflow`."""
        pod = dict(pods(self._resources))[workload]
        container = next(each for each in containers(pod) if each["name"] == name)
        namespace = find(self._resources, *workload.split("/"))["metadata"]["namespace"]
        places = {
            mount["mountPath"]: self.volume(pod, mount["name"], namespace)
            for mount in container["volumeMounts"]
            if "subPath" not in mount  # a single file over one of the system's
        }

        # In one pass: a folder of this machine may have the path of another volume in its own.
        paths = "|".join(map(re.escape, places))

        def here(text: str) -> str:
            return re.sub(rf"(?<![\w/])({paths})(?!\w)", lambda found: str(places[found[1]]), self._addressed(text))

        environment = {key: here(value) for key, value in self._environment(container, namespace)}
        return Process([here(word) for word in container["command"]], {**environment, **more})

    def volume(self, pod: Resource, name: str, namespace: str) -> Path:
        """Give the folder of a volume, filled where Kubernetes fills it."""
        volume = next(each for each in pod["spec"]["volumes"] if each["name"] == name)
        if claim := volume.get("persistentVolumeClaim"):
            folder = self._folder / "claims" / claim["claimName"]
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        folder = self._folder / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        content = {}
        if source := volume.get("configMap"):
            content = find(self._resources, "ConfigMap", source["name"], namespace)["data"]
        elif source := volume.get("secret"):
            content = self._secret(source["secretName"], namespace)
        for file, text in content.items():
            (folder / file).write_text(self._addressed(text))
        return folder

    def _addressed(self, text: str) -> str:
        for service, address in self._services.items():
            text = re.sub(rf"(?<=[/@]){re.escape(service)}\b", address, text)
        return text

    def _environment(self, container: Resource, namespace: str) -> Iterator[tuple[str, str]]:
        for source in container.get("envFrom", []):
            if reference := source.get("configMapRef"):
                yield from find(self._resources, "ConfigMap", reference["name"], namespace)["data"].items()
            else:
                yield from self._secret(source["secretRef"]["name"], namespace).items()
        for entry in container.get("env", []):
            if "value" in entry:
                yield entry["name"], entry["value"]
            else:
                reference = entry["valueFrom"]["secretKeyRef"]
                yield entry["name"], self._secret(reference["name"], namespace)[reference["key"]]

    def _secret(self, name: str, namespace: str) -> dict[str, str]:
        data = find(self._resources, "Secret", name, namespace)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


def clean_environment() -> dict[str, str]:
    """Give this process's environment without what is meant for MLflow, PostgreSQL or S3."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_", "PG"))}

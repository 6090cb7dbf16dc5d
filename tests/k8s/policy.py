"""Rules of our own for what is deployed, each giving a line for what breaks it; and who may talk to whom."""

import base64
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manifests import Resource, containers, find, pods

_FIXED_TAG = re.compile(r"(:v?\d+\.\d+[\w.-]*|@sha256:[0-9a-f]{64})$")
_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY")
_HOST = re.compile(r"(?:://|@)(?:[\w.-]+@)?([a-z][a-z0-9.-]*):(\d+)")
_LOCAL_NAMES = {"localhost", "127.0.0.1"}


def problems(resources: Sequence[Resource]) -> list[str]:
    """List whatever in a rendered overlay breaks a rule."""
    found: list[str] = []
    for name, pod in pods(resources):
        found += [f"{name}: {what}" for what in _of_pod(pod)]
        for container in containers(pod):
            found += [f"{name}/{container['name']}: {what}" for what in _of_container(pod, container)]
    found += _open_secrets(resources)
    found += _missing_services(resources)
    found += [f"{name}: namespace {where} is not restricted" for name, where in _unrestricted(resources)]
    return found


def _of_pod(pod: Resource) -> Iterator[str]:
    spec = pod["spec"]
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key} is set"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a folder of the node"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} has no limit"
    if spec.get("automountServiceAccountToken") is not False:
        yield "has the token of a service account"
    if spec.get("enableServiceLinks") is not False:
        yield "gets environment variables from Services, of which MLFLOW_PORT is one"


def _of_container(pod: Resource, container: Resource) -> Iterator[str]:
    context: Mapping[str, Any] = {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("privileged"):
        yield "is privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "has capabilities"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "may make any system call"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "can write to its root"
    for kind in ("requests", "limits"):
        for resource in {"cpu", "memory"} - container.get("resources", {}).get(kind, {}).keys():
            yield f"has no {kind}.{resource}"
    if not _FIXED_TAG.search(container["image"]):
        yield f"{container['image']}: its tag is none, or moves"
    for entry in container.get("env", []):
        if "value" in entry and _SECRET_NAME.search(entry["name"]):
            yield f"{entry['name']} is in plain text"


def _open_secrets(resources: Sequence[Resource]) -> Iterator[str]:
    """Look for the content of Secrets, and for passwords in URIs, in everything else."""
    secrets = {
        base64.b64decode(value).decode()
        for resource in resources
        if resource["kind"] == "Secret"
        for key, value in resource["data"].items()
        if _SECRET_NAME.search(key)
    }
    for resource in resources:
        if resource["kind"] != "Secret":
            text = json.dumps(resource)
            if re.search(r"://[^/\s\"@:]+:[^/\s\"@]+@", text) or any(secret in text for secret in secrets):
                yield f"{resource['kind']}/{resource['metadata']['name']}: has a secret in plain text"


def _missing_services(resources: Sequence[Resource]) -> Iterator[str]:
    """Compare each host and port that anything names with the Services."""
    services = {
        (service["metadata"]["name"], service["metadata"]["namespace"]): {
            port["port"] for port in service["spec"]["ports"]
        }
        for service in resources
        if service["kind"] == "Service"
    }

    def is_there(host: str, namespace: str, port: int | None) -> bool:
        name, _, rest = host.partition(".")
        where = rest.removesuffix(".cluster.local").removesuffix(".svc") or namespace
        ports = services.get((name, where))
        return ports is not None and (port is None or port in ports)

    for resource in resources:
        namespace = resource["metadata"].get("namespace", "")
        label = f"{resource['kind']}/{resource['metadata']['name']}"
        for text in _texts(resource):
            for host, port in _HOST.findall(text):
                if not is_there(host, namespace, int(port)):
                    yield f"{label}: there is no Service {host} with the port {port}"
        for key, value in resource.get("data", {}).items():
            if key == "MLFLOW_SERVER_ALLOWED_HOSTS":
                for host in {name.removesuffix(":*") for name in value.split(",")} - _LOCAL_NAMES:
                    if not is_there(host, namespace, None):
                        yield f"{label}: there is no Service {host} to be allowed"
    for name, pod in pods(resources):
        namespace = find(resources, *name.split("/"))["metadata"]["namespace"]
        for container in containers(pod):
            given = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
            if "PGHOST" in given and not is_there(given["PGHOST"], namespace, int(given["PGPORT"])):
                yield f"{name}: there is no Service {given['PGHOST']} with the port {given['PGPORT']}"


def _texts(value: Any, *, secret: bool = False) -> Iterator[str]:
    """Give all texts in a resource; those of a Secret decoded."""
    if isinstance(value, dict):
        secret = secret or value.get("kind") == "Secret"
        for key, each in value.items():
            yield from _texts(each, secret=secret and (key == "data" or "kind" not in value))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, secret=secret)
    elif isinstance(value, str):
        yield base64.b64decode(value).decode() if secret else value


def _unrestricted(resources: Sequence[Resource]) -> Iterator[tuple[str, str]]:
    for resource in resources:
        if resource["kind"] == "Namespace":
            levels = {
                resource["metadata"]["labels"].get(f"pod-security.kubernetes.io/{mode}") for mode in ("enforce", "warn")
            }
            if levels != {"restricted"}:
                yield f"Namespace/{resource['metadata']['name']}", resource["metadata"]["name"]


def may_talk(policies: Sequence[Resource], source: Resource, target: Resource, port: int) -> bool:
    """Say whether a pod may open a connection to another: both are {namespace, labels}.

    As Kubernetes does: a pod that no policy selects for a direction is open in it; else one of them has to allow it.
    """
    return all(
        _passes(
            [
                policy["spec"]
                for policy in policies
                if direction in policy["spec"]["policyTypes"]
                and policy["metadata"]["namespace"] == here["namespace"]
                and _matches(policy["spec"]["podSelector"], here["labels"])
            ],
            direction.lower(),
            here["namespace"],
            there,
            port,
        )
        for direction, here, there in (("Egress", source, target), ("Ingress", target, source))
    )


def _passes(specs: Sequence[Resource], direction: str, namespace: str, peer: Resource, port: int) -> bool:
    key = {"ingress": "from", "egress": "to"}[direction]
    return not specs or any(
        (key not in rule or any(_is_peer(each, namespace, peer) for each in rule[key]))
        and ("ports" not in rule or any(each["port"] == port for each in rule["ports"]))
        for spec in specs
        for rule in spec.get(direction, [])
    )


def _is_peer(rule: Resource, namespace: str, peer: Resource) -> bool:
    if "ipBlock" in rule:
        address = peer.get("address")
        return address is not None and ipaddress.ip_address(address) in ipaddress.ip_network(rule["ipBlock"]["cidr"])
    if "namespaceSelector" in rule:
        names = {"kubernetes.io/metadata.name": peer["namespace"]}
        if not _matches(rule["namespaceSelector"], names):
            return False
    elif peer["namespace"] != namespace:
        return False
    return _matches(rule.get("podSelector", {}), peer["labels"])


def _matches(selector: Resource, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
    )

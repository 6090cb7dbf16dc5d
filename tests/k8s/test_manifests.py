"""Every overlay: valid to Kubernetes, safe by rules of our own, and complete."""

import copy
import re
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import kubernetes_validate
import pytest
from manifests import OVERLAYS, Resource, containers, find, pods, render
from policy import may_talk, problems
from repositories import ROOT

from pipelines.cluster import load_cluster

KUBERNETES = "1.33"
OF_THE_USER = {
    "postgres",
    "object-store",
    "mlflow-admin",
    "ganflow-mlflow",
}  # Secrets that the overlay gpu does not make


def select(resources: Sequence[Resource], kind: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] == kind]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_knows_every_field(overlay: str) -> None:
    for resource in render(overlay):
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_a_misspelt_field_would_be_seen() -> None:
    broken = copy.deepcopy(find(render("local"), "Deployment", "mlflow"))
    broken["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_rule_is_broken(overlay: str) -> None:
    assert problems(render(overlay)) == []


def _in_mlflow(change: Callable[[Resource, Resource], None]) -> Callable[[list[Resource]], None]:
    def breaking(resources: list[Resource]) -> None:
        pod = find(resources, "Deployment", "mlflow")["spec"]["template"]
        change(pod, pod["spec"]["containers"][0])

    return breaking


def _in_configuration(key: str, value: str) -> Callable[[list[Resource]], None]:
    def breaking(resources: list[Resource]) -> None:
        find(resources, "ConfigMap", "mlflow-server")["data"][key] = value

    return breaking


def _without(container: Resource, *path: str) -> None:
    for key in path[:-1]:
        container = container[key]
    del container[path[-1]]


@pytest.mark.parametrize(
    ("said", "breaking"),
    [
        ("may run as root", _in_mlflow(lambda pod, _: pod["spec"]["securityContext"].update(runAsUser=0))),
        ("may run as root", _in_mlflow(lambda pod, _: _without(pod, "spec", "securityContext", "runAsNonRoot"))),
        ("is privileged", _in_mlflow(lambda _, one: one["securityContext"].update(privileged=True))),
        (
            "may gain privileges",
            _in_mlflow(lambda _, one: _without(one, "securityContext", "allowPrivilegeEscalation")),
        ),
        ("has capabilities", _in_mlflow(lambda _, one: one["securityContext"].update(capabilities={"add": ["ALL"]}))),
        ("any system call", _in_mlflow(lambda pod, _: _without(pod, "spec", "securityContext", "seccompProfile"))),
        (
            "can write to its root",
            _in_mlflow(lambda _, one: _without(one, "securityContext", "readOnlyRootFilesystem")),
        ),
        ("has no limits.memory", _in_mlflow(lambda _, one: _without(one, "resources", "limits", "memory"))),
        ("has no requests.", _in_mlflow(lambda _, one: _without(one, "resources", "requests"))),
        ("or moves", _in_mlflow(lambda _, one: one.update(image="registry.example.com:5000/mlflow"))),
        ("or moves", _in_mlflow(lambda _, one: one.update(image="mlflow:latest"))),
        ("or moves", _in_mlflow(lambda _, one: one.update(image="mlflow:3"))),
        (
            "a folder of the node",
            _in_mlflow(lambda pod, _: pod["spec"]["volumes"].append({"name": "a", "hostPath": {}})),
        ),
        ("hostNetwork", _in_mlflow(lambda pod, _: pod["spec"].update(hostNetwork=True))),
        ("MLFLOW_PORT", _in_mlflow(lambda pod, _: _without(pod, "spec", "enableServiceLinks"))),
        ("token", _in_mlflow(lambda pod, _: _without(pod, "spec", "automountServiceAccountToken"))),
        ("in plain text", _in_mlflow(lambda _, one: one["env"].append({"name": "DB_PASSWORD", "value": "x"}))),
        (
            "in plain text",
            _in_configuration("MLFLOW_BACKEND_STORE_URI", "postgresql://mlflow:geheim@postgres:5432/mlflow"),
        ),
        (
            "no Service postgre with",
            _in_configuration("MLFLOW_BACKEND_STORE_URI", "postgresql://mlflow@postgre:5432/a"),
        ),
        ("no Service object-store with", _in_configuration("MLFLOW_S3_ENDPOINT_URL", "http://object-store:9000")),
        ("mlflow.kubeflow to be", _in_configuration("MLFLOW_SERVER_ALLOWED_HOSTS", "localhost,mlflow.kubeflow:*")),
    ],
)
def test_each_rule_can_be_broken(said: str, breaking: Callable[[list[Resource]], None]) -> None:
    resources = copy.deepcopy(list(render("local")))
    breaking(resources)
    found = problems(resources)
    assert found
    assert all(said in problem for problem in found), found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_a_pod_refers_to_is_there(overlay: str) -> None:
    resources = render(overlay)
    made = {(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace")) for each in resources}
    for name, pod in pods(resources):
        namespace = find(resources, *name.split("/"))["metadata"]["namespace"]
        for kind, referred in _references(pod["spec"]):
            by_hand = overlay == "gpu" and kind == "Secret" and referred in OF_THE_USER
            assert by_hand or (kind, referred, namespace) in made, f"{name}: {kind} {referred}"


def _references(spec: Any) -> list[tuple[str, str]]:
    kinds = {
        "configMapRef": ("ConfigMap", "name"),
        "configMap": ("ConfigMap", "name"),
        "secretRef": ("Secret", "name"),
        "secretKeyRef": ("Secret", "name"),
        "secret": ("Secret", "secretName"),
        "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    }
    if isinstance(spec, list):
        return [found for each in spec for found in _references(each)]
    if not isinstance(spec, dict):
        return []
    here = [(kinds[key][0], value[kinds[key][1]]) for key, value in spec.items() if key in kinds]
    return here + [found for value in spec.values() for found in _references(value)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_service_leads_to_a_port_of_a_pod(overlay: str) -> None:
    resources = render(overlay)
    templates = [pod for name, pod in pods(resources) if name.startswith(("Deployment/", "StatefulSet/"))]
    for service in select(resources, "Service"):
        (pod,) = (pod for pod in templates if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items())
        names = {port["name"] for container in containers(pod) for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_the_nodes_folders_are_bound_to_the_claims_and_only_to_them() -> None:
    resources = render("local", namespace="team-a")
    volumes = {volume["metadata"]["name"]: volume["spec"] for volume in select(resources, "PersistentVolume")}
    claims = select(resources, "PersistentVolumeClaim")
    assert len(claims) == len(volumes) == 5
    for claim in claims:
        spec, name, namespace = claim["spec"], claim["metadata"]["name"], claim["metadata"]["namespace"]
        volume = volumes[spec["volumeName"]]
        assert spec["storageClassName"] == volume["storageClassName"] == ""  # no provisioner is asked
        assert volume["claimRef"] == {"namespace": namespace, "name": name}
        assert volume["capacity"]["storage"] == spec["resources"]["requests"]["storage"]
        assert volume["accessModes"] == spec["accessModes"]
        assert volume["persistentVolumeReclaimPolicy"] == "Retain"
        assert volume["hostPath"] == {"path": f"/var/lib/ganflow/{name.removeprefix('ganflow-')}", "type": "Directory"}
        assert namespace == ("team-a" if name.startswith("ganflow-") else "ganflow")


def test_a_storage_class_reaches_every_claim() -> None:
    claims = select(render("gpu"), "PersistentVolumeClaim")
    assert {claim["spec"]["storageClassName"] for claim in claims} == {"standard"}
    shared = {claim["metadata"]["name"] for claim in claims if claim["spec"]["accessModes"] == ["ReadWriteMany"]}
    assert shared == {"ganflow-data", "ganflow-checkpoints"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_runs_namespace_is_named_in_one_place(overlay: str) -> None:
    resources = render(overlay, namespace="team-a")
    assert {each["metadata"]["namespace"] for each in resources if "namespace" in each["metadata"]} == {
        "ganflow",
        "team-a",
    }
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        assert [one["namespace"] for each in select(resources, kind) for one in each["subjects"]] == ["team-a"]


def test_a_run_may_do_with_trainer_what_it_does_and_no_more() -> None:
    resources = render("local")
    rules = [
        (group, resource, verb)
        for kind in ("Role", "ClusterRole")
        for each in select(resources, kind)
        for rule in each["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    trainer = "trainer.kubeflow.org"
    assert sorted(rules) == sorted(
        [
            *((trainer, "trainjobs", verb) for verb in ("get", "create", "delete")),
            (trainer, "trainingruntimes", "get"),
            (trainer, "clustertrainingruntimes", "get"),
            ("", "pods", "list"),
            ("", "pods/log", "get"),
        ]
    )


TASK = {"namespace": "team-a", "labels": {"app.kubernetes.io/part-of": "ganflow"}}
OTHER = {"namespace": "team-b", "labels": {"app.kubernetes.io/part-of": "ganflow"}}
KUBEFLOW = {"namespace": "team-a", "labels": {"app": "ml-pipeline"}}
DNS = {"namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
NODE_DNS = {"namespace": "", "labels": {}, "address": "169.254.20.10"}
INTERNET = {"namespace": "", "labels": {}, "address": "203.0.113.1"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_may_talk_to_whom(overlay: str) -> None:
    resources = render(overlay, namespace="team-a")
    policies = select(resources, "NetworkPolicy")
    ours = {
        pod["metadata"]["labels"]["app.kubernetes.io/name"]: {
            "namespace": "ganflow",
            "labels": pod["metadata"]["labels"],
        }
        for name, pod in pods(resources)
        if find(resources, *name.split("/"))["metadata"]["namespace"] == "ganflow"
    }
    everybody = {**ours, "task": TASK, "other": OTHER, "kubeflow": KUBEFLOW, "internet": INTERNET}
    ports = {"mlflow": 5000, "postgres": 5432, "object-store": 8333, "task": 29500}
    talks = {
        (source, target)
        for source, pod in everybody.items()
        for target, port in ports.items()
        if source != target and may_talk(policies, pod, everybody[target], port)
    }
    assert talks == {
        ("task", "mlflow"),
        ("kubeflow", "mlflow"),  # its own MLflow plugin
        ("mlflow-account", "mlflow"),
        ("mlflow", "postgres"),
        ("database-job", "postgres"),
        ("mlflow", "object-store"),
    }
    assert may_talk(policies, TASK, TASK, 29500)  # the nodes of a training
    assert may_talk(policies, TASK, INTERNET, 443)
    for name, pod in ours.items():
        assert may_talk(policies, pod, DNS, 53), name
        assert may_talk(policies, pod, NODE_DNS, 53), name
        assert not may_talk(policies, pod, INTERNET, 443), name
        assert not may_talk(policies, pod, INTERNET, 53), name
    for port in (9333, 8888, 8080, 18333):  # what of the object store asks for no credentials
        assert not may_talk(policies, ours["mlflow"], ours["object-store"], port)


@pytest.mark.parametrize("path", ["cluster.yaml", "k8s/overlays/local/cluster.yaml"])
def test_cluster_yaml_names_what_is_deployed(path: str) -> None:
    cluster = load_cluster(ROOT / path)
    resources = render("local")
    assert find(resources, "Secret", cluster.mlflow_secret, "kubeflow")
    check = find(resources, "CronJob", "ganflow-check")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert check["securityContext"]["runAsUser"] == cluster.user
    assert check["containers"][0]["image"].endswith(cluster.image.rpartition("/")[2])
    for volume in (cluster.checkpoints, cluster.data):
        if volume.claim:
            assert find(resources, "PersistentVolumeClaim", volume.claim, "kubeflow")


def test_the_secrets_of_the_runs_and_of_the_server_are_the_same() -> None:
    resources = render("local")
    ours, theirs = (find(resources, "Secret", "ganflow-mlflow", where)["data"] for where in ("ganflow", "kubeflow"))
    assert ours == theirs


@pytest.mark.parametrize(
    "script", sorted(ROOT.glob("**/k8s/**/*.sh")) + sorted(ROOT.glob("docker/*.sh")), ids=lambda path: path.name
)
def test_scripts_are_plain_shell(script: Any) -> None:
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


OF_KUBEFLOW = {
    ("ClusterTrainingRuntime", "torch-distributed"),
    ("Deployment", "kubeflow-trainer-controller-manager"),
    ("Service", "ml-pipeline-ui"),
}
_KINDS = {
    "clustertrainingruntime": "ClusterTrainingRuntime",
    "cronjob": "CronJob",
    "deployment": "Deployment",
    "job": "Job",
    "secret": "Secret",
    "service": "Service",
    "statefulset": "StatefulSet",
}


def test_the_page_names_what_is_deployed() -> None:
    resources = render("local")
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    commands = "\n".join(line for line in text.splitlines() if "kubectl" in line or line.lstrip().startswith(">"))
    made_by_hand = {("Job", name) for name in re.findall(r"create job ([a-z0-9-]+)", commands)}
    there = {(each["kind"], each["metadata"]["name"]) for each in resources} | OF_KUBEFLOW | made_by_hand
    named = {
        (_KINDS[kind], name) for kind, name in re.findall(rf"\b({'|'.join(_KINDS)})[/ ]([a-z][a-z0-9-]+)", commands)
    }
    assert len(named) > 10
    assert named <= there, named - there
    namespaces = {each["metadata"].get("namespace") for each in resources}
    assert set(re.findall(r"kubectl -n ([a-z]+)", text)) <= namespaces
    for command in re.findall(r"kubectl [^;\n]*(?:wait|rollout status) [^;\n]*", commands):
        assert "--timeout" in command, "wait gives up after 30 seconds, rollout status never"
    assert f"{ROOT.joinpath('k8s/overlays/local/cluster.yaml').relative_to(ROOT)}" in text


def test_the_page_lists_every_key_of_every_secret() -> None:
    rows = re.findall(r"(?m)^\| `([a-z-]+)` \| `ganflow`[^|]*\| (.*) \|$", (ROOT / "docs" / "cluster.md").read_text())
    listed = {name: set(re.findall(r"`([\w.]+)`", keys)) - {"secrets.sh"} for name, keys in rows}
    made = {each["metadata"]["name"]: set(each["data"]) for each in select(render("local"), "Secret")}
    assert listed == made
    assert set(made) == OF_THE_USER

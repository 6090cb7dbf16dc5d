"""What of a cluster with Kubeflow Trainer a TrainJob needs, on this machine: the API, and nodes that are processes.

The nodes run the command of the TrainJob with the environment that Trainer's torch plugin gives to pods. Volumes are
folders of this machine, under the same path.
"""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kubeflow_trainer_api import models

_TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
_CREATED = "2026-01-01T00:00:00Z"


class Node:
    """A pod, as a process whose output is its log."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def phase(self) -> str:
        status = self.process.poll()
        return "Running" if status is None else "Succeeded" if status == 0 else "Failed"

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class KubernetesServer:
    """The API server of a cluster with one ClusterTrainingRuntime, `torch-distributed`."""

    def __init__(self, folder: Path, secrets: dict[str, dict[str, str]]) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, list[Node]] = {}
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self._folder, self._secrets = folder, secrets
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def write_kubeconfig(self, path: Path) -> None:
        context = {"name": "local", "context": {"cluster": "local", "user": "nobody", "namespace": "team"}}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "local",
            "contexts": [context],
            "clusters": [{"name": "local", "cluster": {"server": self.url}}],
            "users": [{"name": "nobody", "user": {}}],
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        for nodes in self.nodes.values():
            for node in nodes:
                node.kill()

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        known = models.TrainerV1alpha1TrainJob.from_dict(job)
        assert known is not None
        assert json.loads(known.to_json()) == job, "the TrainJob has fields that Trainer does not know"
        (container,) = _pod_patch(job["spec"])["containers"]
        assert "env" not in container, "Trainer takes no environment for its own container from a patch"
        name = job["metadata"]["name"]
        job["metadata"] |= {"namespace": "team", "creationTimestamp": _CREATED}
        self.jobs[name] = job
        self.created.append(job)
        self.nodes[name] = self._start(name, job["spec"])
        return job

    def job(self, name: str) -> dict[str, Any] | None:
        job = self.jobs.get(name)
        phases = {node.phase for node in self.nodes.get(name, ())}
        ended = "Failed" if "Failed" in phases else "Complete" if phases == {"Succeeded"} else ""
        if job is not None and ended:
            condition = {
                "type": ended,
                "status": "True",
                "reason": ended,
                "message": "",
                "lastTransitionTime": _CREATED,
            }
            job["status"] = {"conditions": [condition]}
        return job

    def delete(self, name: str) -> dict[str, Any] | None:
        for node in self.nodes.pop(name, ()):
            node.kill()
        self.deleted.append(name)
        return self.jobs.pop(name, None)

    def pods(self, query: str) -> dict[str, Any]:
        nodes = [node for name, nodes in self.nodes.items() if name in query for node in nodes]
        return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [_pod(node) for node in nodes]}

    def log(self, name: str) -> Node | None:
        return next((node for nodes in self.nodes.values() for node in nodes if node.name == name), None)

    def _start(self, name: str, spec: dict[str, Any]) -> list[Node]:
        trainer = spec["trainer"]
        self._mount_secrets(_pod_patch(spec))
        given = {entry["name"]: str(entry["value"]) for entry in trainer["env"]}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch = {"PET_NNODES": trainer["numNodes"], "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "PYTHONPATH") if key in os.environ}
        environment = {**kept, **{key: str(value) for key, value in torch.items()}}
        environment |= given
        return [
            Node(f"{name}-node-0-{rank}", trainer["command"], {**environment, "PET_NODE_RANK": str(rank)}, self._folder)
            for rank in range(trainer["numNodes"])
        ]

    def _mount_secrets(self, pod: dict[str, Any]) -> None:
        mounts = {mount["name"]: Path(mount["mountPath"]) for mount in pod["containers"][0]["volumeMounts"]}
        for volume in pod["volumes"]:
            if "secret" in volume:
                folder = mounts[volume["name"]]
                folder.mkdir(exist_ok=True)
                for key, value in self._secrets[volume["secret"]["secretName"]].items():
                    (folder / key).write_text(value, encoding="utf-8")


def _pod_patch(spec: dict[str, Any]) -> dict[str, Any]:
    (job,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: dict[str, Any] = job["template"]["spec"]["template"]["spec"]
    return pod


def _pod(node: Node) -> dict[str, Any]:
    job, _, rank = node.name.rpartition("-node-0-")
    labels = {
        "jobset.sigs.k8s.io/jobset-name": job,
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "batch.kubernetes.io/job-completion-index": rank,
    }
    return {
        "metadata": {"name": node.name, "namespace": "team", "labels": labels, "creationTimestamp": _CREATED},
        "spec": {"containers": [{"name": "node", "image": "ganflow"}]},
        "status": {"phase": node.phase},
    }


def _runtime() -> dict[str, Any]:
    container = {"name": "node", "image": "torch"}
    template = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
            "template": {"spec": {"replicatedJobs": [{"name": "node", "template": template}]}},
        },
    }


def _handler(server: KubernetesServer) -> type[BaseHTTPRequestHandler]:
    job_path = re.compile(rf"{_TRAINER}/namespaces/team/trainjobs/([a-z0-9-]+)$")
    log_path = re.compile(r"/api/v1/namespaces/team/pods/([a-z0-9-]+)/log$")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == f"{_TRAINER}/clustertrainingruntimes/torch-distributed":
                self._answer(_runtime())
            elif path == "/api/v1/namespaces/team/pods":
                self._answer(server.pods(query))
            elif found := job_path.match(path):
                self._answer(server.job(found[1]))
            elif (found := log_path.match(path)) and (node := server.log(found[1])):
                self._send_log(node, follow="follow=True" in query)
            else:
                self._answer(None)

        def do_POST(self) -> None:
            assert self.path == f"{_TRAINER}/namespaces/team/trainjobs"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(server.create(body))

        def do_DELETE(self) -> None:
            found = job_path.match(self.path.partition("?")[0])
            self._answer(server.delete(found[1]) if found else None)

        def _send_log(self, node: Node, *, follow: bool) -> None:
            if follow:
                node.process.wait()
            content = node.log.read_bytes()
            self._send(200, content, "text/plain")

        def _answer(self, content: dict[str, Any] | None) -> None:
            status = {"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}
            self._send(200 if content else 404, json.dumps(content or status).encode(), "application/json")

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler

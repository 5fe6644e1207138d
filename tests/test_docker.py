"""What can be seen of docker/ without Docker: `make docker-test` is the proof that it runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
GPU = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
OBJECTS = {
    f"{path.stem}-{each['kind']}": each
    for path in sorted((DOCKER / "kubernetes").glob("*.yaml"))
    for each in yaml.safe_load_all(path.read_text())
}
SECRETS = {"auth_token", "dashboard_password", "postgres_password", "storage_url"}


def pods(node):
    """The specs of pods somewhere in an object."""
    if isinstance(node, list):
        return [pod for each in node for pod in pods(each)]
    if not isinstance(node, dict):
        return []
    return [node] * ("containers" in node) + [pod for each in node.values() for pod in pods(each)]


def test_the_image_ends_as_a_user_with_a_number_and_has_a_health_check():
    assert re.findall("^USER (.*)", DOCKERFILE, re.M)[-1] == "10001:10001"
    assert "\nHEALTHCHECK " in DOCKERFILE


def test_the_image_takes_neither_secret_nor_unpinned_package():
    assert not re.search("^(ARG|ENV).*(TOKEN|PASSWORD|INDEX_URL)", DOCKERFILE, re.M)
    installs = (
        DOCKERFILE.count("pip install")
        + DOCKERFILE.count("pip wheel")
        - DOCKERFILE.count("pip install --no-cache-dir --no-deps")
    )
    assert installs == 4
    assert DOCKERFILE.count("PIP_CONSTRAINT=") == 2, "one export for each step that installs"


def test_only_what_is_named_gets_into_the_image():
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    named = {line[1:] for line in ignored if line.startswith("!")}
    copies = re.findall("^COPY (?:--chmod=755 )?([^-].*) ", DOCKERFILE, re.M)
    copied = {word for line in copies for word in line.split()}
    assert named == copied


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_has_no_capabilities_and_takes_secrets_from_files(name):
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid"} & set(service)
    assert set(service["secrets"]) <= SECRETS
    values = {str(value) for key, value in service["environment"].items() if re.search("TOKEN|PASSWORD|STORAGE", key)}
    assert values <= {f"/run/secrets/{secret}" for secret in service["secrets"]}


def test_two_ports_are_published_on_the_loopback():
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published == {
        "head": ["${VQSEARCH_ADDRESS:-127.0.0.1}:${VQSEARCH_RAY_PORT:-8265}:8265"],
        "dashboard": ["${VQSEARCH_ADDRESS:-127.0.0.1}:${VQSEARCH_DASHBOARD_PORT:-8080}:8080"],
    }


@pytest.mark.parametrize("name", ["head", "worker", "vqsearch"])
def test_every_ray_asks_for_a_token(name):
    environment = COMPOSE["services"][name]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/auth_token"


def test_the_storage_is_known_where_drivers_run_and_not_on_workers():
    assert {name for name, service in COMPOSE["services"].items() if "storage_url" in service["secrets"]} == {
        "head",
        "dashboard",
        "vqsearch",
    }


def test_the_variant_with_cuda_differs_by_build_arguments_and_devices():
    defaults = dict(re.findall(r"^ARG (\w+)=(.*)", DOCKERFILE, re.M))
    built = {name for name, service in COMPOSE["services"].items() if "build" in service}
    assert set(GPU["services"]) == built
    for name, service in GPU["services"].items():
        assert service["build"] == {"args": {"VARIANT": defaults["VARIANT"], "BASE": defaults["BASE"]}}
        assert set(service) - {"deploy"} == {"image", "build"}
        assert ("deploy" in service) == (name == "worker")
    assert defaults["BUILDER"] == defaults["BASE"].replace("-base-", "-devel-")


@pytest.mark.parametrize("pod", pods(list(OBJECTS.values())), ids=lambda pod: pod["containers"][0]["name"])
def test_a_pod_meets_the_restricted_standard_and_takes_secrets_by_reference(pod):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        for variable in container.get("env", []):
            if re.search("TOKEN|PASSWORD|STORAGE", variable["name"]):
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "vqsearch"
                assert variable["valueFrom"]["secretKeyRef"]["key"] in SECRETS


def test_kubernetes_gets_the_versions_that_are_pinned():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    cluster = OBJECTS["cluster-RayCluster"]
    assert cluster["spec"]["rayVersion"] == pins["ray"]
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "vqsearch"}
    assert OBJECTS["job-RayJob"]["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    database = OBJECTS["postgres-StatefulSet"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert COMPOSE["services"]["postgres"]["image"] == f"${{POSTGRES_IMAGE:-{database}}}"


def test_kubernetes_and_compose_take_the_same_secrets_which_git_does_not():
    (secret,) = OBJECTS["kustomization-Kustomization"]["secretGenerator"]
    assert {Path(path).name for path in secret["files"]} == set(COMPOSE["secrets"]) == SECRETS
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"docker/secrets/", "docker/kubernetes/secrets/"} <= set(ignored)


def test_secrets_are_made_once_and_stay(tmp_path):
    def made():
        subprocess.run([DOCKER / "secrets.sh", tmp_path / "secrets"], check=True, capture_output=True)
        return {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}

    first = made()
    assert set(first) == SECRETS
    assert len(set(first.values())) == 4
    assert all(value and value == value.strip() for value in first.values())
    assert first["storage_url"] == f"postgresql://vqsearch:{first['postgres_password']}@postgres/vqsearch"
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    (tmp_path / "secrets" / "dashboard_password").write_text("mine")
    assert made() == first | {"dashboard_password": "mine"}


def with_secrets(*command, **variables):
    environment = {"PATH": "/usr/bin:/bin"} | {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        [DOCKER / "with-secrets.sh", *command], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_secret_in_a_file_is_put_into_the_environment(tmp_path, end):
    (tmp_path / "url").write_text(f"postgresql://me:a b\\c@db/x{end}")
    done = with_secrets("printenv", "VQSEARCH_STORAGE", VQSEARCH_STORAGE_FILE=tmp_path / "url")
    assert done.stdout == "postgresql://me:a b\\c@db/x\n"


def test_a_secret_that_is_not_there_is_an_error_of_one_line(tmp_path):
    (tmp_path / "empty").write_text("\n")
    done = with_secrets("true", VQSEARCH_STORAGE_FILE=tmp_path / "none")
    assert (done.returncode, done.stderr) == (
        2,
        f"with-secrets: VQSEARCH_STORAGE_FILE: {tmp_path}/none can't be read by user {os.getuid()}\n",
    )
    done = with_secrets("true", VQSEARCH_DASHBOARD_PASSWORD_FILE=tmp_path / "empty")
    assert (done.returncode, done.stderr) == (
        2,
        f"with-secrets: VQSEARCH_DASHBOARD_PASSWORD_FILE: {tmp_path}/empty is empty\n",
    )


@pytest.mark.parametrize("section", ["Docker Compose", "Kubernetes"])
def test_four_commands_lead_to_a_running_search_and_name_files_that_are_there(section):
    text = (ROOT / "docs" / "cluster.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    commands = re.findall(r"^\$ (.*)", text, re.M)
    assert 0 < len(commands) <= 4
    named = {path for path in re.findall(r"(?:docker|spaces)/[\w./-]+\w", " ".join(commands)) if "secrets" not in path}
    assert named
    assert all((ROOT / path).exists() for path in named)


def test_the_test_says_where_there_is_no_docker():
    done = subprocess.run(
        [sys.executable, DOCKER / "test.py"],
        env={"PATH": "/usr/bin:/bin", "DOCKER": "no-docker-here"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "docker-test: no-docker-here: no such command; install Docker (Debian: apt-get install docker.io)\n",
    )

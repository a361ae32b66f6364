"""The files to paste agree with the package and with what reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.outcome import ExitStatus
from app.package.manifests import COMMAND, ENVIRONMENT, load_package_configuration
from tests.app.tiny_run import ROOT

DEPLOY = ROOT / "deploy"
_PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "models").rglob("*.md")])


def _documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / path).read_text("utf-8")))


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return _documents("kubernetes/job.yaml")[0]


def test_the_kubernetes_objects_are_valid() -> None:
    for document in [*_documents("kubernetes/job.yaml"), *_documents("kubernetes/network-policy.yaml")]:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    return dict(pod["container"]) if "container" in pod else dict(pod["containers"][0])


@pytest.mark.parametrize("path", ["kubernetes/job.yaml", "argo/workflow-template.yaml"])
def test_clusters_give_what_is_needed_and_no_right_more(path: str) -> None:
    specification = _documents(path)[0]["spec"]
    pod = specification["template"]["spec"] if "template" in specification else specification["templates"][0]
    needed = load_package_configuration(ROOT / "app.yaml").resources
    container = _container(pod)
    assert container["resources"]["limits"] == {"cpu": str(needed.cpu), "memory": needed.memory}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_job_needs_no_token_and_its_policy_is_for_it(job: dict[str, Any]) -> None:
    assert job["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    (policy,) = _documents("kubernetes/network-policy.yaml")
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert not {"ingress", "egress"} & policy["spec"].keys(), "what it listed would be allowed"


def test_the_job_is_not_tried_again_where_that_changes_nothing(job: dict[str, Any]) -> None:
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert rule["onExitCodes"]["values"] == [ExitStatus.USAGE, ExitStatus.REFUSED]
    assert job["spec"]["activeDeadlineSeconds"] == load_package_configuration(ROOT / "app.yaml").application.timeout


def test_folders_are_mounted_where_the_application_looks(job: dict[str, Any]) -> None:
    mounts = {mount["name"]: mount for mount in _container(job["spec"]["template"]["spec"])["volumeMounts"]}
    stated = {each["name"]: each["value"] for each in _container(job["spec"]["template"]["spec"])["env"]}
    for name in ("input", "output"):  # the results of a study must not take the place of another's
        variable = f"HOLOSCAN_{name.upper()}_PATH"
        assert f"{mounts[name]['mountPath']}/" == ENVIRONMENT[variable]
        assert stated[variable] == f"{mounts[name]['mountPath']}/STUDY"
    assert mounts["input"]["readOnly"] is True
    argo = _documents("argo/workflow-template.yaml")[0]["spec"]["templates"][0]
    assert argo["container"]["command"] == COMMAND.split()
    (source,), (output,) = argo["inputs"]["artifacts"], argo["outputs"]["artifacts"]
    assert (source["path"], output["path"]) == (mounts["input"]["mountPath"], mounts["output"]["mountPath"])


def test_the_workflow_of_express() -> None:
    workflow = json.loads((DEPLOY / "monai-deploy-express" / "covid-ct-map.json").read_text("utf-8"))
    tasks = {task["id"]: task for task in workflow["tasks"]}
    arguments = tasks["covid-ct"]["args"]
    required = {"server_url", "entrypoint", "command", "container_image", "temp_storage_container_path"}
    assert required <= arguments.keys()
    assert all(isinstance(value, str) for value in arguments.values())
    assert (arguments["entrypoint"], arguments["command"]) == ("/bin/bash,-c", COMMAND)
    stated = {name.removeprefix("env_"): value for name, value in arguments.items() if name.startswith("env_")}
    assert stated.items() <= ENVIRONMENT.items()
    for artifacts in tasks["covid-ct"]["artifacts"].values():
        assert all(artifact["name"] in arguments for artifact in artifacts), "the plug-in takes the folder from there"
    goals = {goal["name"] for task in tasks.values() for goal in task.get("task_destinations", [])}
    assert goals <= tasks.keys()
    limit = int(arguments["task_timeout_minutes"])
    assert 60 * limit <= load_package_configuration(ROOT / "app.yaml").application.timeout


def test_the_module_of_mercure() -> None:
    """What mercure's code says itself may not be said again, or its call fails."""
    content = json.loads((DEPLOY / "mercure" / "mercure.json").read_text("utf-8"))
    (name, module), (rule,) = *content["modules"].items(), content["rules"].values()
    assert rule["processing_module"] == name
    arguments = json.loads(module["docker_arguments"])
    of_mercure = {"mounts", "volumes", "environment", "detach", "network_mode", "user", "group_add", "runtime"}
    assert not of_mercure & arguments.keys()
    assert arguments["read_only"] is True
    assert not module["requires_root"]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_the_page_names_every_file_to_paste() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.parent != DEPLOY]
    assert len(files) == 7
    assert not [path for path in files if f"](../{path.relative_to(ROOT)})" not in page]

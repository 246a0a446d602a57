"""The Kubernetes manifests: fields that KubeRay knows, and a command that opd-ray takes."""

from __future__ import annotations

import copy
import os
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kuberay
import pytest
import yaml

from opd_ray.cli import make_parser
from opd_ray.cluster.submit import STOP_ENVIRONMENT

CLUSTER = Path(__file__).parents[2] / "launch" / "cluster"
KINDS = {"raycluster": kuberay.RAY_CLUSTER, "rayjob": kuberay.RAY_JOB}
KUBERAY = os.environ.get("OPD_RAY_KUBERAY")


def read(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content


def problems(manifest: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    return [error.json_path for error in jsonschema.Draft7Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("name", KINDS)
def test_every_field_is_one_of_kuberays(name: str) -> None:
    assert problems(read(name), KINDS[name]) == []


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["spec", "backofLimit"], 2),
        (["spec", "backoffLimit"], "2"),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"], -1),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "template"], None),
    ],
)
def test_the_schema_finds_what_the_operator_would_refuse(keys: list[Any], value: Any) -> None:
    manifest = copy.deepcopy(read("rayjob"))
    place = manifest
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    assert len(problems(manifest, kuberay.RAY_JOB)) == 1


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.skipif(
    KUBERAY is None,
    reason="compares with the operator's own files: set OPD_RAY_KUBERAY to a clone of "
    "github.com/ray-project/kuberay",
)
def test_kuberays_own_definitions_accept_them(name: str) -> None:
    file = Path(str(KUBERAY), f"ray-operator/config/crd/bases/ray.io_{name}s.yaml")
    versions = yaml.safe_load(file.read_text())["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    assert problems(read(name), closed(schema)) == []


def closed(schema: Any) -> Any:
    """A definition that refuses unknown fields, as the operator's API server is asked to."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: closed(value) for key, value in schema.items() if key != "format"}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


def test_a_job_runs_a_command_that_there_is() -> None:
    spec = read("rayjob")["spec"]
    program, *arguments = shlex.split(spec["entrypoint"])
    args = make_parser().parse_args(arguments)
    assert program == "opd-ray"
    assert (args.retries, args.config) == (3, "/shared/configs/run.yaml")
    assert "cluster.address=auto" in args.overrides
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": STOP_ENVIRONMENT}


def test_a_job_has_the_same_cluster_as_the_one_that_stays() -> None:
    assert read("rayjob")["spec"]["rayClusterSpec"] == read("raycluster")["spec"]

"""What KubeRay's operator takes of a RayCluster and a RayJob, as far as the manifests here use it.

Read off KubeRay's definitions (ray.io/v1) as of release 1.7. A field that is not here is refused:
one that a manifest begins to use has to be looked up there first.
"""

from __future__ import annotations

from typing import Any

STRING, BOOLEAN = {"type": "string"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
# Kubernetes' quantities: 4, "8", "16Gi", "500m".
QUANTITY = {
    "anyOf": [COUNT, {"type": "string", "pattern": r"^\d+(\.\d*)?(m|[kMGTPE]|[KMGTPE]i)?$"}]
}
# Names of objects, ports and volumes: a label of DNS.
LABEL = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}


def record(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": [*required],
        "additionalProperties": False,
    }


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def named(values: dict[str, Any]) -> dict[str, Any]:
    """Values by name."""
    return {"type": "object", "additionalProperties": values}


CONTAINER = record(
    {"name": LABEL, "image": STRING},
    ports=several(record({"containerPort": {**COUNT, "maximum": 65535}}, name=LABEL)),
    resources=record({}, requests=named(QUANTITY), limits=named(QUANTITY)),
    volumeMounts=several(record({"name": LABEL, "mountPath": STRING})),
)
VOLUME = record(
    {"name": LABEL},
    persistentVolumeClaim=record({"claimName": STRING}),
    emptyDir=record({}, medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
)
TEMPLATE = record({"spec": record({"containers": several(CONTAINER)}, volumes=several(VOLUME))})
# Options of `ray start` without their dashes; numbers are text.
START = named(STRING)
CLUSTER = record(
    {"headGroupSpec": record({"template": TEMPLATE}, rayStartParams=START)},
    rayVersion=STRING,
    workerGroupSpecs=several(
        record(
            {
                "groupName": STRING,
                "minReplicas": COUNT,
                "maxReplicas": COUNT,
                "template": TEMPLATE,
            },
            replicas=COUNT,
            rayStartParams=START,
        )
    ),
)
JOB = record(
    {"entrypoint": STRING, "rayClusterSpec": CLUSTER},
    shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=COUNT,
    backoffLimit=COUNT,
    runtimeEnvYAML=STRING,
)


def manifest(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The schema of a whole file."""
    return record(
        {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": record({"name": LABEL}),
            "spec": spec,
        }
    )


RAY_CLUSTER = manifest("RayCluster", CLUSTER)
RAY_JOB = manifest("RayJob", JOB)

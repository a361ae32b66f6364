"""The manifests as the specification wants them: MONAI Deploy, *MONAI Application Package* 1.0.0, "Manifests".

Written from its tables, not from our code.
"""

from __future__ import annotations

from typing import Any

_VERSION = {"type": "string", "pattern": r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$"}
_ABSOLUTE = {"type": "string", "pattern": "^/"}
_SIZE = {"type": "string", "pattern": r"^[1-9]\d*(\.\d)?(Mi|Gi)$"}
_COUNT = {"type": "number", "minimum": 0, "multipleOf": 0.1}
_NAME = {"type": "string", "pattern": r"^[^\s\x00-\x1f]{1,128}$"}

_PROBE: dict[str, Any] = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["tcp", "grpc", "http-get", "command"]},
        "command": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "path": _ABSOLUTE,
        **{
            name: {"type": "integer", "minimum": 0}
            for name in ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold")
        },
    },
    "if": {"properties": {"type": {"const": "command"}}},
    "then": {"required": ["command"]},
    "else": {"required": ["port"]},
    "additionalProperties": False,
}

APPLICATION: dict[str, Any] = {
    "type": "object",
    "required": ["type", "command", "environment", "input", "output"],
    "properties": {
        "apiVersion": _VERSION,
        "type": {"enum": ["service", "application"]},
        "command": {"type": "string", "minLength": 1},
        "environment": {
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {"type": "string"},
        },
        "input": {
            "type": "object",
            "required": ["formats"],
            "properties": {"formats": {"type": "array", "items": {"type": "object"}}, "path": {"type": "string"}},
            "additionalProperties": False,
        },
        "output": {
            "type": "object",
            "required": ["format"],
            "properties": {"format": {"type": "object"}, "path": {"type": "string"}},
            "additionalProperties": False,
        },
        "readiness": _PROBE,
        "liveness": _PROBE,
        "sdk": {"type": "string"},
        "sdkVersion": _VERSION,
        "timeout": {"type": "integer", "minimum": 0},
        "version": _VERSION,
        "workingDirectory": _ABSOLUTE,
    },
    "additionalProperties": False,
}

_RESOURCES = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("cpu", "cpuLimit", "gpu", "gpuLimit"), _COUNT),
        **dict.fromkeys(("memory", "memoryLimit", "gpuMemory", "gpuMemoryLimit", "sharedMemory"), _SIZE),
    },
    "additionalProperties": False,
}

PACKAGE: dict[str, Any] = {
    "type": "object",
    "required": ["applicationRoot"],
    "properties": {
        "apiVersion": _VERSION,
        "applicationRoot": _ABSOLUTE,
        "modelRoot": _ABSOLUTE,
        "models": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _NAME, "path": {"type": "string"}},
                "additionalProperties": False,
            },
        },
        "resources": _RESOURCES,
        "version": _VERSION,
    },
    "additionalProperties": False,
}

ENVIRONMENT = {
    "HOLOSCAN_INPUT_PATH": "/var/holoscan/input/",
    "HOLOSCAN_OUTPUT_PATH": "/var/holoscan/output/",
    "HOLOSCAN_WORKDIR": "/var/holoscan/",
    "HOLOSCAN_MODEL_PATH": "/opt/holoscan/models/",
    "HOLOSCAN_CONFIG_PATH": "/var/holoscan/app.yaml",
    "HOLOSCAN_APP_MANIFEST_PATH": "/etc/holoscan/app.json",
    "HOLOSCAN_PKG_MANIFEST_PATH": "/etc/holoscan/pkg.json",
    "HOLOSCAN_DOCS": "/opt/holoscan/docs/",
    "HOLOSCAN_LOGS": "/var/holoscan/logs/",
}
"""Its table of environment variables, with the names that it gives the manifests elsewhere."""

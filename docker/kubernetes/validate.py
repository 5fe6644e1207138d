"""Holds the files beside it against the schemas of Kubernetes and KubeRay.

pip install kubernetes-validate
python docker/kubernetes/validate.py kuberay/ray-operator/config/crd/bases    # a checkout of ray-project/kuberay
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

HERE = Path(__file__).parent


def closed(schema: Any) -> Any:
    """A schema that knows no other keys than those it names, as the API server drops them without a word."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        inner = {"type": ["integer", "string"]}
    return inner


def custom(folder: Path) -> dict[tuple[str, str], Any]:
    """(version of the API, kind) -> schema, of the definitions in a folder."""
    found = {}
    for path in folder.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        for version in spec["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def problems(document: dict[str, Any], schemas: dict[tuple[str, str], Any]) -> Iterator[str]:
    """What is wrong with one object; for the pods in it, by the schema of Kubernetes itself too."""
    kind = document["apiVersion"], document["kind"]
    if kind[1] == "Kustomization":
        return
    if kind not in schemas:
        try:
            kubernetes_validate.validate(document, "1.34", strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{list(error.path)}: {error.message}"
        return
    for error in jsonschema.Draft202012Validator(schemas[kind]).iter_errors(document):
        yield f"{list(error.path)}: {error.message}"
    spec = document["spec"]
    for group in [spec.get("headGroupSpec"), *spec.get("workerGroupSpecs", [])]:
        if group:
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
            yield from problems(pod, {})


def main() -> int:
    """0 where all is well."""
    schemas = custom(Path(sys.argv[1]))
    wrong = 0
    for path in sorted(HERE.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found = list(problems(document, schemas))
            wrong += len(found)
            print(f"{path.name}: {document['apiVersion']} {document['kind']}: {'; '.join(found) or 'ok'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""Generates the manifests of deploy/kubernetes from the chart, and validates both against the schemas of Kubernetes.

The chart is the source. It uses only built-in functions of Go's text/template, none of Helm's, so that Go's own engine
(the package go-template) renders it as Helm does. Two of its templates are generated from the shipped rules and dashboard.

    manifests.py DEPLOY write|check
"""

import json
import pathlib
import sys
import tempfile

import go_template
import kubernetes_validate
import yaml

# The oldest version that is still maintained, and the newest one with published schemas.
VERSIONS = ["1.33", "1.37"]
RELEASE = {"Name": "smtpwatch", "Namespace": "smtpwatch"}
HEAD = "# Generated from deploy/helm/smtpwatch by `cargo xtask manifests`.\n"
# Resources of the Prometheus operator: no package has their schemas, so only their form is checked.
FOREIGN = {"PodMonitor": ["selector", "podMetricsEndpoints"], "PrometheusRule": ["groups"]}

deploy = pathlib.Path(sys.argv[1])
chart = deploy / "helm/smtpwatch"


def render(path, values):
    """One template, as Helm renders it."""
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    # Helm shows the keys of Chart.yaml with a capital.
    about = {key[0].upper() + key[1:]: value for key, value in about.items()}
    with tempfile.TemporaryDirectory() as scratch:
        given, out = pathlib.Path(scratch, "values.json"), pathlib.Path(scratch, "out.yaml")
        given.write_text(json.dumps({"Values": values, "Release": RELEASE, "Chart": about}))
        go_template.render_template(str(path), str(given), str(out))
        text = out.read_text()
    if "<no value>" in text:
        raise SystemExit(f"{path}: a value is missing:\n{text}")
    return text


def indented(text, by):
    return "".join(" " * by + line if line.strip() else line for line in text.splitlines(keepends=True))


def made():
    """Templates that are generated from other shipped files; template syntax in these files is escaped."""
    rules = yaml.safe_load((deploy / "prometheus/alerts.yaml").read_text())["groups"]
    rules += yaml.safe_load((deploy / "prometheus/recording.yaml").read_text())["groups"]
    dump = yaml.safe_dump({"groups": rules}, sort_keys=False, width=120, allow_unicode=True)
    meta = "metadata:\n  name: {{ .Release.Name }}\n  namespace: {{ .Release.Namespace }}\n  labels:\n"
    meta += "    app.kubernetes.io/name: smtpwatch\n    app.kubernetes.io/instance: {{ .Release.Name }}\n"
    mask = lambda text: text.replace("{{", '{{ "{{" }}')
    yield "prometheusrule.yaml", (
        "# Generated from deploy/prometheus by `cargo xtask manifests`.\n{{- if .Values.prometheusRule.enabled }}\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n" + meta + "spec:\n" + indented(mask(dump), 2) + "{{- end }}\n"
    )
    board = (deploy / "grafana/smtpwatch.json").read_text()
    yield "dashboard.yaml", (
        "# Generated from deploy/grafana by `cargo xtask manifests`.\n{{- if .Values.dashboard.enabled }}\napiVersion: v1\nkind: ConfigMap\n"
        + meta.replace("name: {{ .Release.Name }}\n", "name: {{ .Release.Name }}-dashboard\n", 1)
        + '    grafana_dashboard: "1"\ndata:\n  smtpwatch.json: |\n' + indented(mask(board), 4) + "{{- end }}\n"
    )


def validate(text, where):
    for document in yaml.safe_load_all(text):
        if document is None:
            continue
        kind = document["kind"]
        if kind in FOREIGN:
            missing = [key for key in FOREIGN[kind] if key not in document["spec"]]
            if missing:
                raise SystemExit(f"{where}: {kind} lacks {missing}")
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)


def base(values):
    """The kustomize base: the chart with its own values."""
    files = {}
    for template in sorted((chart / "templates").glob("*.yaml")):
        text = render(template, values).strip()
        if "kind:" in text:
            files[template.name] = HEAD + text + "\n"
    files["namespace.yaml"] = HEAD + (
        "# Hostnetwork and capabilities are what the stricter levels forbid.\napiVersion: v1\nkind: Namespace\nmetadata:\n"
        "  name: smtpwatch\n  labels:\n    pod-security.kubernetes.io/enforce: privileged\n"
    ).replace("Hostnetwork", "The host's network")
    listed = "".join(f"  - {name}\n" for name in sorted(files))
    files["kustomization.yaml"] = HEAD + f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{listed}"
    return files


values = yaml.safe_load((chart / "values.yaml").read_text())
wanted = {chart / "templates" / name: text for name, text in made()}
stale = []
for path, text in wanted.items():
    if sys.argv[2] == "write":
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        stale.append(path)
watched = json.loads(json.dumps(values))
for part in ("podMonitor", "prometheusRule", "dashboard"):
    watched[part]["enabled"] = True
for directory, given in (("base", values), ("monitored", watched)):
    files = base(given)
    folder = deploy / "kubernetes" / directory
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in files.items():
        if name != "kustomization.yaml":
            validate(text, f"{directory}/{name}")
        if sys.argv[2] == "write":
            (folder / name).write_text(text)
        elif not (folder / name).exists() or (folder / name).read_text() != text:
            stale.append(folder / name)
    extra = {path.name for path in folder.iterdir()} - set(files)
    if extra:
        stale += [folder / name for name in extra]
# Values that are not set by default.
rich = json.loads(json.dumps(watched))
rich.update(priorityClassName="system-node-critical", attribution=False, config='# "quoted" \\ and\n[[rule]]\nstarttls = "required"\n')
rich["tolerations"] = [{"key": "mail", "operator": "Exists", "effect": "NoSchedule"}, {"key": "zone", "value": "7"}]
for template in sorted((chart / "templates").glob("*.yaml")):
    text = render(template, rich)
    validate(text, f"{template.name} with other values")
    if template.name == "configmap.yaml" and yaml.safe_load(text)["data"]["smtpwatch.toml"] != rich["config"]:
        raise SystemExit("the configuration does not survive the template")
    if template.name == "prometheusrule.yaml":
        shipped = yaml.safe_load((deploy / "prometheus/alerts.yaml").read_text())["groups"]
        if yaml.safe_load(text)["spec"]["groups"][: len(shipped)] != shipped:
            raise SystemExit("the rules do not survive the template")
    if template.name == "dashboard.yaml":
        board = json.loads(yaml.safe_load(text)["data"]["smtpwatch.json"])
        if board != json.loads((deploy / "grafana/smtpwatch.json").read_text()):
            raise SystemExit("the dashboard does not survive the template")
if stale:
    raise SystemExit("make them anew by cargo xtask manifests: " + " ".join(str(path) for path in stale))

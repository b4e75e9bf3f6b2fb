{{- /* Names and labels that more than one template uses. */ -}}

{{- define "ratchet.name" -}}
{{- if contains "ratchet" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-ratchet" (.Release.Name | trunc 32 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "ratchet.selector" -}}
app.kubernetes.io/name: ratchet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "ratchet.labels" -}}
{{ include "ratchet.selector" . }}
app.kubernetes.io/part-of: ratchet
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "ratchet.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "ratchet.name" .) }}
{{- end }}

{{- /* The Secret with the key that the policy servers' tokens are made from. */ -}}
{{- define "ratchet.adminKey" -}}
{{ .Values.adminKeySecret | default (printf "%s-admin-key" (include "ratchet.name" .)) }}
{{- end }}

{{- /* Takes (list . "trainer"). */ -}}
{{- define "ratchet.image" -}}
{{- $image := get (index . 0).Values.images (index . 1) -}}
{{ $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end }}

{{- /* "true" or nothing. */ -}}
{{- define "ratchet.nodesVisible" -}}
{{- if kindIs "bool" .Values.nodes.visible }}{{ if .Values.nodes.visible }}true{{ end }}
{{- else if not .Values.watchNamespaces }}true{{ end }}
{{- end }}

{{- /* Fails where a release of the other scope serves a namespace of this one: the two would undo each other's
work. A dry run on the client sees no cluster. */ -}}
{{- define "ratchet.noOverlap" -}}
{{- if .Values.rbac.refuseOverlap }}
{{- $rbac := "rbac.authorization.k8s.io/v1" }}
{{- $others := (lookup $rbac "Role" "" "").items | default list }}
{{- if .Values.watchNamespaces }}
{{- $others = list (lookup $rbac "ClusterRole" "" "ratchet-operator") }}
{{- end }}
{{- range $others }}
{{- $it := .metadata | default dict }}
{{- if eq ($it.name | default "") "ratchet-operator" }}
{{- $by := $it.annotations | default dict }}
{{- $release := printf "%s of namespace %s" (get $by "meta.helm.sh/release-name") (get $by "meta.helm.sh/release-namespace") }}
{{- if ne $release (printf "%s of namespace %s" $.Release.Name $.Release.Namespace) }}
{{- fail (printf "\nThe release %s serves %s already, and two operators would undo each other's work.\nUninstall it, or give the two releases different watchNamespaces." $release (ternary (printf "the namespace %s" ($it.namespace | default "")) "the whole cluster" (hasKey $it "namespace"))) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "ratchet.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "ratchet.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

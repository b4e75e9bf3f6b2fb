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

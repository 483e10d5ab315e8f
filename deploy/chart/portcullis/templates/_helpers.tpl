{{- /* One name for all objects: a cluster has one agent a node. */ -}}
{{- define "portcullis.name" -}}
portcullis
{{- end }}

{{- define "portcullis.selector" -}}
app.kubernetes.io/name: portcullis
app.kubernetes.io/component: agent
{{- end }}

{{- /* Every object's; those of the agent have its component too. */ -}}
{{- define "portcullis.labels" -}}
app.kubernetes.io/name: portcullis
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: portcullis
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "portcullis.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "portcullis.name" .) }}
{{- end }}

{{- define "portcullis.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "portcullis.metrics" -}}
{{- if or .Values.metrics.enabled .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}true{{ end -}}
{{- end }}

{{- define "portcullis.apparmorField" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}true{{ end -}}
{{- end }}

{{- define "portcullis.apparmorAnnotation" -}}
{{- if eq .Values.appArmorProfile.type "Unconfined" }}unconfined{{ else }}runtime/default{{ end -}}
{{- end }}

{{- define "portcullis.podSecurity" -}}
{{- with .Values.seccompProfile }}
seccompProfile:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "portcullis.security" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
# BPF and PERFMON load programs, NET_ADMIN hangs them on interfaces.
capabilities:
  drop: [ALL]
  add: [BPF, NET_ADMIN, PERFMON]
{{- if and .Values.appArmorProfile (include "portcullis.apparmorField" .) }}
appArmorProfile:
  {{- toYaml .Values.appArmorProfile | nindent 2 }}
{{- end }}
{{- end }}

{{- define "portcullis.mounts" -}}
- name: bpffs
  mountPath: /sys/fs/bpf
  mountPropagation: HostToContainer
- name: cgroup
  mountPath: /host/cgroup
  readOnly: true
  mountPropagation: HostToContainer
# The same path as on the node, where the CNI plugin looks for the socket.
- name: run
  mountPath: {{ .Values.paths.run }}
{{- end }}

{{- define "portcullis.cniDirs" -}}
- --bin-dir=/host/cni/bin
- --conf-dir=/host/cni/net.d
- --run-dir={{ .Values.paths.run }}
{{- end }}

{{- /* Of the agent and of what installs: both write the same configuration. */ -}}
{{- define "portcullis.cniSettings" -}}
- --cni-timeout={{ int .Values.cni.timeoutSeconds }}
- --cni-when-unavailable={{ .Values.cni.whenUnavailable }}
{{- end }}

{{- /* What writes to the node's directories needs to be root, and no more. */ -}}
{{- define "portcullis.cniContainer" -}}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - name: cni-bin
    mountPath: /host/cni/bin
  - name: cni-conf
    mountPath: /host/cni/net.d
  - name: run
    mountPath: {{ .Values.paths.run }}
{{- end }}

{{- define "portcullis.cniVolumes" -}}
- name: cni-bin
  hostPath:
    path: {{ .Values.cni.binDir }}
    type: DirectoryOrCreate
- name: cni-conf
  hostPath:
    path: {{ .Values.cni.confDir }}
    type: DirectoryOrCreate
{{- end }}

{{- define "portcullis.volumes" -}}
- name: bpffs
  hostPath:
    path: {{ .Values.paths.bpffs }}
    type: Directory
- name: cgroup
  hostPath:
    path: {{ .Values.paths.cgroup }}
    type: Directory
- name: run
  hostPath:
    path: {{ .Values.paths.run }}
    type: DirectoryOrCreate
{{- end }}

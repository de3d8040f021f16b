{{/*
Undoes on every node what the proxies' init containers have done. A DaemonSet, because every node has to; a Job that waits until every
node has, because helm takes a DaemonSet for done as soon as it exists and would remove it at once. Takes (dict "root" $ "role" "..."
"hook" "..." "runtime" "..." "directory" "..." "activate" ...): the runtime and what of the node is mounted for it.
*/}}
{{- define "eagle.undo" -}}
{{- $root := .root -}}
{{- $role := dict "root" $root "role" .role -}}
{{- $name := printf "%s-%s" (include "eagle.fullname" $root) .role -}}
{{- $undo := $root.Values.proxy.configure.undo -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  labels:
    {{- include "eagle.labels" $role | nindent 4 }}
  annotations:
    {{- include "eagle.undoAnnotations" (dict "root" $root "hook" .hook "weight" "-2") | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  labels:
    {{- include "eagle.labels" $role | nindent 4 }}
  annotations:
    {{- include "eagle.undoAnnotations" (dict "root" $root "hook" .hook "weight" "-2") | nindent 4 }}
rules:
  # One object, to look at.
  - apiGroups: [apps]
    resources: [daemonsets]
    resourceNames: [{{ $name }}]
    verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  labels:
    {{- include "eagle.labels" $role | nindent 4 }}
  annotations:
    {{- include "eagle.undoAnnotations" (dict "root" $root "hook" .hook "weight" "-1") | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ $root.Release.Namespace }}
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ $name }}
  labels:
    {{- include "eagle.labels" $role | nindent 4 }}
  annotations:
    {{- include "eagle.undoAnnotations" (dict "root" $root "hook" .hook "weight" "0") | nindent 4 }}
spec:
  selector:
    matchLabels:
      {{- include "eagle.selectorLabels" $role | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "eagle.labels" $role | nindent 8 }}
      {{- with $root.Values.commonAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "eagle.podSecurityContext" $root | nindent 8 }}
      {{- include "eagle.scheduling" (merge (dict "terminationGracePeriodSeconds" 5) $root.Values.proxy) | nindent 6 }}
      initContainers:
        # Fails, and tries again, where somebody has changed a file by hand since: its log says what to do.
        - name: undo
          image: {{ include "eagle.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [eagle]
          args:
            - configure
            - {{ .runtime }}
            - --undo
            - --root
            - /host
            {{- if .activate }}
            - --activate
            {{- end }}
          {{- include "eagle.configureContainer" . | nindent 10 }}
      containers:
        # Containers of a DaemonSet may not end. This one sees nothing of the node, so it has nothing to undo.
        - name: done
          image: {{ include "eagle.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [eagle]
          args: [configure, {{ .runtime }}, --undo, --stay]
          resources:
            {{- toYaml $root.Values.proxy.configure.resources | nindent 12 }}
          securityContext:
            {{- include "eagle.containerSecurityContext" $root | nindent 12 }}
      volumes:
        {{- include "eagle.configureVolumes" . | nindent 8 }}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ $name }}
  labels:
    {{- include "eagle.labels" $role | nindent 4 }}
  annotations:
    {{- include "eagle.undoAnnotations" (dict "root" $root "hook" .hook "weight" "1") | nindent 4 }}
spec:
  activeDeadlineSeconds: {{ $undo.timeoutSeconds }}
  backoffLimit: 3
  template:
    metadata:
      labels:
        {{- include "eagle.labels" (dict "root" $root "role" (printf "%s-wait" .role)) | nindent 8 }}
    spec:
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: true
      enableServiceLinks: false
      restartPolicy: Never
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "eagle.podSecurityContext" $root | nindent 8 }}
      {{- with $root.Values.proxy.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: wait
          image: {{ $undo.image }}
          args:
            - --namespace={{ $root.Release.Namespace }}
            # Not below the home directory, which cannot be written.
            - --cache-dir=/tmp
            - rollout
            - status
            - daemonset/{{ $name }}
            - --timeout={{ $undo.timeoutSeconds }}s
          resources:
            requests:
              cpu: 10m
              memory: 64Mi
            limits:
              memory: 256Mi
          securityContext:
            {{- include "eagle.containerSecurityContext" $root | nindent 12 }}
          volumeMounts:
            - name: tmp
              mountPath: /tmp
      volumes:
        - name: tmp
          emptyDir:
            sizeLimit: 16Mi
{{- end -}}

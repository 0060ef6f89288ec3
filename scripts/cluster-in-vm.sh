#!/bin/sh
# What a user does first, on a machine with cgroup v2 alone. Run by test-in-vm.sh, in the guest, with busybox as all tools.
set -eu
export PATH=$PATH:/t HOME=/tmp KUBECONFIG=/etc/llmagentos/kubeconfig.yaml
step() { echo "VM cluster: $*"; }
fail() {
  echo "VM cluster: FAILED: $*"
  tail -40 /var/lib/llmagentos/server.log || true
  kubectl get pods,events -o wide || true
  kubectl logs -l app=web --prefix || true
  exit 1
}
# Asks for up to two minutes: everything is emulated here.
eventually() {
  what=$1; shift
  deadline=$(($(date +%s) + 120))
  until "$@" >/tmp/last 2>&1; do
    [ "$(date +%s)" -lt $deadline ] || { cat /tmp/last; fail "$what"; }
    sleep 1
  done
}
[ "$(mount | grep -c 'type cgroup ')" = 0 ] || fail "a cgroup v1 hierarchy is mounted"

ip link add uplink type bridge && ip addr add 192.0.2.2/24 dev uplink && ip link set uplink up
ip route add default via 192.0.2.1 dev uplink
mounts_before=$(mount | grep -v ' /run' | sort)

step init
llmagentos init --no-systemd >/tmp/init 2>&1 || { cat /tmp/init; fail init; }
step "an image and a deployment"
llmagentos image build --binary /bin/busybox localhost/box:1
eventually "the default service account" kubectl get serviceaccount default
kubectl apply -f - <<EOF
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: localhost/box:1
        # Images that 'image build' makes run as nobody in particular.
        securityContext: {runAsUser: 0}
        command: [/busybox, sh, -c, "/busybox mkdir -p /www; echo hello from cgroup v2 >/www/index.html; exec /busybox httpd -f -p 8080 -h /www"]
        resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 100m}}
EOF
eventually "the deployment is available" kubectl wait --for=condition=Available deployment/web --timeout=5s
kubectl expose deployment web --type=NodePort --port=8080
port=$(kubectl get service web -o jsonpath='{.spec.ports[0].nodePort}')
eventually "the service answers" wget -q -O - "http://192.0.2.2:$port/"
grep -q 'hello from cgroup v2' /tmp/last || fail "the page is $(cat /tmp/last)"

step "limits in cgroup v2"
grep -rhE '^50000 100000$' /sys/fs/cgroup --include=cpu.max >/dev/null 2>&1 || {
  find /sys/fs/cgroup -name cpu.max -exec grep -l '^50000 100000$' {} + | grep -q . || fail "no cgroup has the limit of 500m"
}
find /sys/fs/cgroup -name memory.max -exec grep -l '^67108864$' {} + | grep -q . || fail "no cgroup has the limit of 64Mi"

step "logs, exec, a kill of the server, OOM"
pod=$(kubectl get pods -l app=web -o jsonpath='{.items[0].metadata.name}')
[ "$(kubectl exec "$pod" -- /busybox cat /www/index.html)" = "hello from cgroup v2" ] || fail "exec"
kubectl run loud --image=localhost/box:1 --restart=Never --command -- /busybox echo loud and clear
eventually "the log" sh -c 'kubectl logs loud | grep "loud and clear"'
kubectl run greedy --image=localhost/box:1 --restart=Never --overrides='{"spec":{"containers":[{"name":"greedy","image":"localhost/box:1","command":["/busybox","sh","-c","x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"],"resources":{"limits":{"memory":"20Mi"}}}]}}'
eventually "the OOM kill" sh -c 'kubectl get pod greedy -o jsonpath="{.status.containerStatuses[0].state.terminated.reason}" | grep OOMKilled'
llmagentos status | tee /tmp/status
kill -9 "$(sed -n 's/.*running (process \([0-9]*\)).*/\1/p' /tmp/status)"
llmagentos init --no-systemd >/tmp/init 2>&1 || { cat /tmp/init; fail init; }
eventually "the service answers again" wget -q -O - "http://192.0.2.2:$port/"
restarts=$(kubectl get pods -l app=web -o jsonpath='{.items[*].status.containerStatuses[0].restartCount}')
[ "$restarts" = "0 0" ] || fail "containers did not outlive the server: restarts $restarts"

step reset
llmagentos reset | tail -1
[ "$(mount | grep -v ' /run' | sort)" = "$mounts_before" ] || fail "mounts are left: $(mount)"
[ "$(find /sys/fs/cgroup -mindepth 1 -type d | wc -l)" = 0 ] || fail "cgroups are left: $(find /sys/fs/cgroup -mindepth 1 -type d)"
ip link | grep -q llma && fail "an interface is left"
step passed

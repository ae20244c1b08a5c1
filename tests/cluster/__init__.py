"""A real Kubernetes on this machine, for tests and for trying things out: `python -m tests.cluster --help`.

Two sizes. A control plane (etcd, kube-apiserver, kube-controller-manager) is up in seconds, needs no root and is enough
for most tests. A whole cluster adds a scheduler, nodes with containerd, kubelet and kube-proxy, and DNS: every node is
a set of Linux namespaces. `cluster.Cluster` is the one object that tests and the command line use.
"""

"""The CSI driver csi.shoal.dev: a pod's volume is a directory with a socket of its own."""

DRIVER_NAME = "csi.shoal.dev"

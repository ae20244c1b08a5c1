"""A node in Kubernetes: it follows one ConfigMap, the state of its pool, and reads the secrets of its data sets."""

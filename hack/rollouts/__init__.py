"""Rollouts of CartPole policies on the local cluster: for the demo, the cluster's tests and the benchmark."""

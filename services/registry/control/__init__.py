"""The control loop: reads the cluster's state, decides, and carries out the decisions. See README.md."""

"""The control plane: the cluster's state in PostgreSQL, the management API, and the control loop.

Several registry processes may run; one of them leads (control/leadership.py). Each table has one writing module in database/:
catalog.py for models, versions, tags and blobs; tag_history.py for tag_versions; nodes.py for nodes and blob copies;
replicas.py; deployments.py; jobs.py; keys.py. publish.py writes the routes snapshot to Redis.
"""

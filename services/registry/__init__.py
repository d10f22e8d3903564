"""The control plane: the platform's memory in PostgreSQL, and the decisions about it.

One process, with one leader among several (loop.py). Who writes what: catalog.py models, versions, tags; nodes.py nodes and
blob copies; replicas.py replicas; deployments.py deployments; jobs.py jobs; keys.py API keys; publish.py the routes snapshot.
"""

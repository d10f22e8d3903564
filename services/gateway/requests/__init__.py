"""The life of a request in the gateway, from admission to settlement."""

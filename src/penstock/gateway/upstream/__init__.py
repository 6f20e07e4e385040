"""The upstream client: HTTP/1.1 to replicas, ours because proxying is what the gateway is for."""

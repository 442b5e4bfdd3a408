"""The models that HaloMQ's demo and benchmarks use: their builders, weights and manifests."""
